"""The built-in patterns in words, for people who choose among them. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "email": "an e-mail address",
        "ipv4": "an IPv4 address; no version numbers, net masks or 127.0.0.1",
        "ipv6": "an IPv6 address: global, unique local or link-local",
        "phone_us": "a North American phone number, its groups apart",
        "phone_international": "a phone number with + and country code",
        "ssn": "a US social security number, with hyphens or named as one",
        "credit_card": "a card number of 13 to 19 digits with a right checksum",
        "iban": "a bank account number (IBAN) with a right checksum",
        "openai_key": "OpenAI, and others whose keys begin with sk- or pk-",
        "anthropic_key": "Anthropic",
        "openrouter_key": "OpenRouter",
        "hoosh_key": "a key of this gateway",
        "aws_access_key": "AWS, the id of an access key",
        "aws_secret_key": "AWS, a secret key that is named as one",
        "github_token": "GitHub",
        "gitlab_token": "GitLab",
        "slack_token": "Slack",
        "slack_webhook": "Slack, the address of a webhook",
        "google_api_key": "Google, an API key",
        "google_oauth": "Google, an OAuth token or client secret",
        "stripe_key": "Stripe",
        "twilio_key": "Twilio",
        "sendgrid_key": "SendGrid",
        "npm_token": "npm",
        "pypi_token": "PyPI",
        "huggingface_token": "Hugging Face",
        "groq_key": "Groq",
        "xai_key": "xAI",
        "perplexity_key": "Perplexity",
        "replicate_token": "Replicate",
        "nvidia_key": "NVIDIA",
        "mistral_key": "Mistral, where it is named as one",
        "digitalocean_token": "DigitalOcean",
        "telegram_token": "Telegram, a bot's token",
        "discord_token": "Discord, a bot's token",
        "discord_webhook": "Discord, the address of a webhook",
        "databricks_token": "Databricks",
        "shopify_token": "Shopify",
        "vault_token": "HashiCorp Vault",
        "age_secret_key": "age, a secret key",
        "jwt": "a JSON Web Token",
        "private_key": "a private key in PEM, or of PGP: the whole block",
        "azure_storage_key": "Azure Storage, in a connection string",
        "connection_string": "the password in an address such as postgres://user:password@host",
        "authorization": "what stands behind Bearer or Authorization: Basic",
        "api_key": "what looks random behind api_key",
        "generic_secret": "what looks random behind password, token, secret and the like",
    }
)
