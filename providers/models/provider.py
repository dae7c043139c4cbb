"""Who answers: providers, their credentials and certificates, and what was found when they were looked at."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models

from providers import validation
from providers.catalog import CATALOG
from providers.models.fields import AddressClass, kind_choices, limit


class Provider(models.Model):
    """An upstream server that speaks one of the catalogue's dialects."""

    name = models.CharField(
        max_length=64,
        unique=True,
        validators=(validation.name,),
        help_text="Short name, shown in headers and reports.",
    )
    kind = models.CharField(max_length=32, choices=kind_choices)
    base_url = models.CharField(
        "base URL",
        max_length=500,
        blank=True,
        help_text="Without /v1 (a pasted one is removed). Blank = the kind's usual address.",
    )
    address_class = models.CharField(
        max_length=16,
        choices=AddressClass.choices,
        editable=False,
        default=AddressClass.PUBLIC,
        help_text="Seen when the URL was saved; connections to any other class are refused.",
    )
    ca_pem = models.TextField(
        "private CA (PEM)",
        blank=True,
        validators=(validation.certificates,),
        help_text="Only these authorities are trusted, if set.",
    )
    pins = models.TextField(
        "certificate pins",
        blank=True,
        validators=(validation.pins,),
        help_text="sha256/…, one per line: the server's certificate, or one above it, must have one of these keys.",
    )
    requests_per_minute = limit("requests per minute")
    tokens_per_minute = limit("tokens per minute")
    concurrent_requests = limit("requests at once")
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False, help_text="Set on imported rows.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Pins that could never be looked at must not seem to protect anything."""
        url = self.base_url or (CATALOG[self.kind].base_url if self.kind in CATALOG else "")
        if self.pins and not url.startswith("https://"):
            raise ValidationError({"pins": "Pins need a base URL with https://."})


class Credential(models.Model):
    """A secret for a provider, encrypted, bound to the base URL it was saved with."""

    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="credentials")
    name = models.CharField(max_length=64, default="default", validators=(validation.name,))
    ciphertext = models.TextField(editable=False, default="")
    last4 = models.CharField(max_length=4, editable=False, default="")
    bound_base_url = models.CharField(max_length=500, editable=False, default="")
    revision = models.PositiveIntegerField(default=1, editable=False)
    position = models.PositiveIntegerField(default=0)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    rotated_at = models.DateTimeField(null=True, blank=True, editable=False)
    used_at = models.DateTimeField(
        null=True, blank=True, editable=False
    )  # last call, to the minute; see providers.uses

    class Meta:
        ordering = ("provider", "position", "id")
        constraints = (models.UniqueConstraint(fields=("provider", "name"), name="credential_name_per_provider"),)

    def __str__(self) -> str:
        return f"{self.provider} / {self.name} (…{self.last4})" if self.last4 else f"{self.provider} / {self.name}"

    @property
    def is_usable(self) -> bool:
        """Whether a secret is stored and was typed for the provider's present base URL."""
        return bool(self.ciphertext) and self.bound_base_url == self.provider.base_url


class ClientCertificate(models.Model):
    """What the gateway shows to a provider that asks for a certificate. The key is encrypted, together with the chain,
    and bound to the base URL it was saved with."""

    provider = models.OneToOneField(Provider, on_delete=models.CASCADE, related_name="client_certificate")
    chain_pem = models.TextField(validators=(validation.certificates,))
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of the first certificate, hex.")
    ciphertext = models.TextField(editable=False)
    bound_base_url = models.CharField(max_length=500, editable=False)
    rotated_at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return f"{self.provider} / {self.fingerprint[:16]}"

    @property
    def is_usable(self) -> bool:
        """Whether the key was saved for the provider's present base URL."""
        return self.bound_base_url == self.provider.base_url


class ProviderProbe(models.Model):
    """What the last look at a provider found: written by control's probes and by "Test connection"."""

    provider = models.OneToOneField(Provider, on_delete=models.CASCADE, related_name="probe")
    ok = models.BooleanField(default=False)
    consecutive_failures = models.PositiveIntegerField(default=0)
    detail = models.CharField(max_length=300, blank=True)
    latency_ms = models.FloatField(null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)
    answered_at = models.DateTimeField(null=True, blank=True, help_text="When it was last found well.")
    certificates = models.JSONField(
        default=dict, blank=True, help_text="The chain seen last: base_url, seen_at, chain of name, not_after, pin."
    )
    # Last: inside this class body the name hides the module it comes from.
    models = models.JSONField(default=list, blank=True, help_text="Model names the provider listed.")

    def __str__(self) -> str:
        return f"{self.provider}: {'ok' if self.ok else 'down'}"
