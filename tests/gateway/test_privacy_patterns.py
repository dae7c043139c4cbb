"""The built-in patterns: what each finds, and what looks alike and is left alone."""

from __future__ import annotations

import pytest

from providers.privacy import checks
from providers.privacy.patterns import BUILT_IN, LEVELS, Pattern, chosen, compile_error, custom
from providers.privacy.scanner import Scanner

SCANNER = Scanner(BUILT_IN)
# Random characters, so that no line of this file is itself what it tests for.
ALNUM = "a7Bx9QzK2mW4pT6vY8cD1fG3hJ5kL0nR7sU9wE2iO4bX6yN8qM1tV3jC5gZ7dP0lHaF"
LOWER = "a7bx9qzk2mw4pt6vy8cd1fg3hj5kl0nr7su9we2io4bx6yn8qm1tv3jc5gz7dp0lhaf"
HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
UPPER = "Q7ZK2MW4PT6VY3CD5FGA"


def found(text: str) -> dict[str, list[str]]:
    """The names found in a text, with what matched."""
    data, told = text.encode(), {}
    for match in SCANNER.scan([text]).matches:
        told.setdefault(match.pattern, []).append(data[match.start : match.end].decode())
    return told


PEOPLE = [
    ("email", "alice@example.com"),
    ("email", "first.last+tag@sub.example.co.uk"),
    ("email", "jürgen@müller.de"),
    ("email", "x@xn--bcher-kva.example"),
    ("ipv4", "192.168.17.4"),
    ("ipv4", "8.8.8.8"),
    ("ipv6", "2001:db8:85a3:0:0:8a2e:370:7334"),
    ("ipv6", "fe80::1ff:fe23:4567:890a"),
    ("ipv6", "2001:db8::1"),
    ("phone_us", "555-123-4567"),
    ("phone_us", "(555) 123-4567"),
    ("phone_us", "+1 555 123 4567"),
    ("phone_us", "1-800-555-0199"),
    ("phone_us", "555.123.4567"),
    ("phone_international", "+4915112345678"),
    ("phone_international", "+49 30 1234567"),
    ("phone_international", "+44 (20) 7946 0958"),
    ("ssn", "078-05-1120"),
    ("ssn", "078\u201105\u20111120"),
    ("credit_card", "4111111111111111"),
    ("credit_card", "4111 1111 1111 1111"),
    ("credit_card", "4111-1111-1111-1111"),
    ("credit_card", "4111\u00a01111\u00a01111\u00a01111"),
    ("credit_card", "4111.1111.1111.1111"),
    ("credit_card", "4111\u20111111\u20111111\u20111111"),
    ("credit_card", "4111\u20131111\u20131111\u20131111"),
    ("credit_card", "4111\u202f1111\u202f1111\u202f1111"),
    ("credit_card", "378282246310005"),
    ("credit_card", "3782 822463 10005"),
    ("credit_card", "5555555555554444"),
    ("credit_card", "6011111111111117"),
    ("credit_card", "3530111333300000"),
    ("credit_card", "4222222222222"),
    ("credit_card", "6304000000000000"),
    ("iban", "DE89370400440532013000"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB29 NWBK 6016 1331 9268 19"),
    ("iban", "NO9386011117947"),
    ("iban", "MT84MALT011000012345MTLCAST001S"),
]

PEM = "-----BEGIN {0}PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bx9QzK2\nmW4pT6vY8cD1fG==\n-----END {0}PRIVATE KEY-----"
SECRETS = [
    ("openai_key", "sk-" + ALNUM[:48]),
    ("openai_key", "sk-" + LOWER[:32]),
    ("openai_key", "pk-" + ALNUM[:32]),
    ("openai_key", "sk-" + "abcdefghijklm" + "nopqrstuvwxyz"),
    ("openai_key", "sk-proj-" + ALNUM[:40] + "_-" + ALNUM[:40]),
    ("openai_key", "sk-svcacct-" + ALNUM[:40]),
    ("anthropic_key", "sk-ant-api03-" + ALNUM[:60] + "-" + ALNUM[:20] + "AA"),
    ("openrouter_key", "sk-or-v1-" + HEX),
    ("hoosh_key", "hk-" + ALNUM[:20] + "-_" + ALNUM[:21]),
    ("aws_access_key", "AKIA" + UPPER[:16]),
    ("aws_access_key", "ASIA" + UPPER[2:18]),
    ("github_token", "ghp_" + ALNUM[:36]),
    ("github_token", "gho_" + ALNUM[:36]),
    ("github_token", "ghs_" + ALNUM[:40]),
    ("github_token", "github_pat_" + ALNUM[:22] + "_" + ALNUM[:59]),
    ("gitlab_token", "glpat-" + ALNUM[:20]),
    ("gitlab_token", "glpat-" + ALNUM[:27] + ".01." + LOWER[:9]),
    ("slack_token", "xoxb-" + "123456789012-1234567890123-" + ALNUM[:24]),
    ("slack_token", "xapp-1-A012345-678-" + HEX[:40]),
    ("slack_webhook", "https://hooks.slack.com/services/T0" + UPPER[:8] + "/B0" + UPPER[:8] + "/" + ALNUM[:24]),
    ("google_api_key", "AIza" + ALNUM[:33] + "-_"),
    ("google_oauth", "ya29." + ALNUM[:60]),
    ("google_oauth", "GOCSPX-" + ALNUM[:28]),
    ("stripe_key", "sk_" + "live_" + ALNUM[:24]),
    ("stripe_key", "rk_" + "live_" + ALNUM[:24]),
    ("twilio_key", "SK" + HEX[:32]),
    ("sendgrid_key", "SG." + ALNUM[:22] + "." + ALNUM[:43]),
    ("npm_token", "npm_" + ALNUM[:36]),
    ("pypi_token", "pypi-AgEIcHlwaS5vcmc" + ALNUM[:60]),
    ("huggingface_token", "hf_" + ALNUM[:34]),
    ("groq_key", "gsk_" + ALNUM[:52]),
    ("xai_key", "xai-" + ALNUM[:60] + ALNUM[:20]),
    ("perplexity_key", "pplx-" + LOWER[:48]),
    ("replicate_token", "r8_" + ALNUM[:37]),
    ("nvidia_key", "nvapi-" + ALNUM[:64]),
    ("digitalocean_token", "dop_v1_" + HEX),
    ("telegram_token", "123456789:AA" + ALNUM[:33]),
    ("discord_token", "MTIzNDU2Nzg5MDEyMzQ1Njc4" + ".G" + ALNUM[:5] + "." + ALNUM[:38]),
    ("discord_webhook", "https://discord.com/api/webhooks/123456789012345678/" + ALNUM[:64]),
    ("databricks_token", "dapi" + HEX[:32]),
    ("shopify_token", "shpat_" + HEX[:32]),
    ("vault_token", "hvs." + ALNUM[:40]),
    ("age_secret_key", "AGE-SECRET-KEY-1" + UPPER + UPPER + UPPER[:18]),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0xxxx." + ALNUM[:43]),
    ("private_key", PEM.format("")),
    ("private_key", PEM.format("RSA ")),
    ("private_key", PEM.format("OPENSSH ")),
]

IN_CONTEXT = [
    ("aws_secret_key", "aws_secret_access_key = {}", ALNUM[:38] + "/+"),
    ("aws_secret_key", '"secretAccessKey": "{}"', ALNUM[:40]),
    ("azure_storage_key", "AccountName=x;AccountKey={};EndpointSuffix=y", ALNUM[:64] + ALNUM[:22] + "=="),
    ("mistral_key", "MISTRAL_API_KEY={}", ALNUM[:32]),
    ("connection_string", "postgres://u:{}@db.internal:5432/app", "p"),
    ("connection_string", "mongodb+srv://admin:{}@cluster0.example.net", "s3cr3t!"),
    ("connection_string", "redis://:{}@localhost:6379", "hunter2"),
    ("authorization", "Authorization: Bearer {}", ALNUM[:30]),
    ("authorization", "authorization: Basic {}", "dXNlcjpwYXNzd29yZDE4NzY="),
    ("api_key", "api_key = '{}'", ALNUM[:24]),
    ("api_key", "x-api-key: {}", LOWER[:28]),
    ("api_key", '{{"apiKey":"{}"}}', ALNUM[:24]),
    ("generic_secret", '"client_secret": "{}"', ALNUM[:32]),
    ("generic_secret", "DB_PASSWORD={}", "xK9#mP2$vL7@qR4!"),
    ("generic_secret", "auth-token: {}", LOWER[:28]),
    ("ssn", "his SSN is {} he said", "078 05 1120"),
    ("ssn", "social security number: {}", "078051120"),
]


@pytest.mark.parametrize(("name", "value"), PEOPLE + SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "it is {} today", '{{"k":"{}"}}', '"a\\n{}"', "<{}>", "x={}\n", "({}),", "“{}”", "`{}`", "a: {}."]
)
def test_a_value_is_found_whole_wherever_it_stands(name: str, value: str, around: str) -> None:
    if around.startswith("x=") and name.startswith("phone"):
        around = "x: {}\n"  # after an equals sign digits with dashes are an expression
    assert found(around.format(value)) == {name: [value]}


@pytest.mark.parametrize(("name", "around", "value"), IN_CONTEXT)
def test_a_value_known_by_its_context_is_found_without_it(name: str, around: str, value: str) -> None:
    told = found(around.format(value))
    assert told[name] == [value]
    assert found(value).get(name) is None or name == "ssn"


def test_every_built_in_pattern_is_tested() -> None:
    tested = {name for name, *_ in [*PEOPLE, *SECRETS, *IN_CONTEXT]}
    assert tested == {pattern.name for pattern in BUILT_IN}
    assert len(tested) == len(BUILT_IN)
    assert all(pattern.level in LEVELS[1:] for pattern in BUILT_IN)


@pytest.mark.parametrize(
    "text",
    [
        "order 4111111111111112 was sent",  # a wrong checksum
        "4111 1111 1111 1112",
        "1234567890123452",  # a right checksum, and nobody's
        "id 1700000000000000001",
        "41111111111111111111",  # twenty digits
        "0.4111111111111111",
        "550e8400-e29b-41d4-a716-446655440000",
        "00000000-4111-1111-1111-111111111111",
        "d41d8cd98f00b204e9800998ecf8427e",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "version 1.2.3.4",
        "v1.2.3.4 and 1.2.3.4.5 and 1.3.6.1.4.1.311",
        "Chrome/120.0.0.0 Safari/537.36",
        "256.1.1.1 and 1.2.3.999 and 01.02.03.04",
        "listen on 127.0.0.1:8000 and 0.0.0.0, mask 255.255.255.0",
        "12:30:45 and 2024:01:02 and aa:bb:cc:dd:ee:ff",
        "std::vector<int> a; fd::x; beef::cafe; Foo::Bar::baz",
        "2024-01-31T12:30:45+02:00 and 2024-01-31 and 31.01.2024",
        "ORD-555-123-4567 and 555-123-45678 and 1555-123-4567",
        "x = y-555-123-4567",
        "123-456-7890",  # no area begins with 1
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000",
        "1078-05-1120 and 078-05-11201 and 078-05-1120-7",
        "x+12345678 and 1e+12345678",
        "DE89370400440532013001 and XX89370400440532013000",
        "icon@2x.png, logo@3x.jpeg, git@github.com:owner/repo.git",
        "user@localhost and @app.route and react@18.2.0 and @scope/pkg and a @ b.com",
        "user@.com and .@x and a..b@example.com",
        "pip install sk-learn; class sk-toggle sk-folding-cube-animation-container-item",
        "sk-spinner-wandering-cubes-and-circles-1",
        "task-management-system-for-everybody1 desk-abcdefghijklmnopqrstuv",
        "hk-short and hk-" + ALNUM[:50] + "-" + ALNUM[:50],
        "AKIASHORT and XAKIA" + UPPER[:16] + " and AKIA" + UPPER + UPPER,
        "ghp_short and xghp_" + ALNUM[:36],
        "hf_hub_download and hf_transformers_model_for_causal_language",
        "npm_config_registry and npm_package_version_and_some_more_words",
        "pypi-server and pypi-Agent",
        "SG.abc and MSG.something.else",
        "glpat-only-letters-and-hyphens-here",
        "eyJhbGciOiJIUzI1NiJ9 alone is a header",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "http://example.com:8080/path and https://example.com/a:b@c",
        "postgres://user:${DB_PASSWORD}@host, mysql://u:<password>@host, redis://:****@h",
        "api_key = os.environ['OPENAI_API_KEY']",
        "token = get_token_from_session_2(request)",
        "secret_key: settings.services.v2.secret_key",
        "max_tokens: 4096, prompt_tokens=1234567890123456",
        "password: correcthorsebatterystaple",
        'api_key="YOUR_API_KEY_GOES_HERE_123"',
        "token: aaaaaaaaaaaaaaaaaaa1",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4//8/w38GIAXDIBKE0DHxgljNBAAO",
        "The bearer of this letter is authorised to pass.",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "tracking 1Z999AA10123456784 and ISBN 978-3-16-148410-0 and EAN 4006381333931",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert found(text) == {}


def test_a_card_is_found_behind_digits_that_are_none_of_it() -> None:
    assert found("1234 4111 1111 1111 1111")["credit_card"] == ["4111 1111 1111 1111"]
    assert found("12 4111111111111111")["credit_card"] == ["4111111111111111"]


@pytest.mark.parametrize("after", [" 123", " 12/27", " 078-05-1120", " 2027", "\u00a0123", ", 123"])
def test_a_card_is_found_before_digits_that_are_none_of_it(after: str) -> None:
    assert found("4111 1111 1111 1111" + after)["credit_card"] == ["4111 1111 1111 1111"]
    assert found("4111111111111111" + after)["credit_card"] == ["4111111111111111"]


def test_a_phone_number_is_found_before_digits_that_are_none_of_it() -> None:
    assert found("+49 30 1234567 2024-01-31")["phone_international"][0].startswith("+49 30 1234567")


def test_an_iban_ends_where_its_country_says() -> None:
    assert found("DE89 3704 0044 0532 0130 00 IBAN")["iban"] == ["DE89 3704 0044 0532 0130 00"]


def test_a_block_without_an_end_is_taken_as_far_as_it_looks_like_one() -> None:
    text = "see -----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKC\nAQEA7bx9. So it is."
    assert found(text)["private_key"] == [text[4:-11]]


def test_a_weak_pattern_gives_way_to_the_one_that_knows() -> None:
    assert found("api_key = sk-" + ALNUM[:48]) == {"openai_key": ["sk-" + ALNUM[:48]]}


def test_checksums_are_those_of_the_standards() -> None:
    assert checks.luhn(b"79927398713")
    assert not any(checks.luhn(b"7992739871" + bytes([digit])) for digit in b"012456789")
    assert checks.entropy(b"aaaa") == 0
    assert checks.entropy(bytes(range(256))) == 8


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "empty"),
        ("(", "RE2"),
        (r"(?<=a)b", "RE2"),
        (r"(a)\1", "RE2"),
        ("x*", "matches the empty text"),
        (r"\b", "matches the empty text"),
        (r"\B", "matches the empty text"),
        ("^|a", "matches the empty text"),
        ("(?m)$", "matches the empty text"),
        ("a{0,3}", "matches the empty text"),
        ("x" * 1001, "longer"),
        ("(?:\\pL{10}){3}", "large"),
        ("\ud800", "Unicode"),
    ],
)
def test_expressions_that_cannot_be_used_are_refused_with_a_reason(source: str, why: str) -> None:
    assert why in compile_error(source)
    with pytest.raises(ValueError, match=why):
        custom("own", source)


def test_an_operators_expression_may_be_without_regard_to_case() -> None:
    assert compile_error(r"project\s+bluebird") == ""
    own = custom("own", r"project\s+bluebird", "restricted", ignore_case=True)
    findings = Scanner([own]).scan(["the PROJECT  Bluebird plan"])
    assert [(match.start, match.end) for match in findings.matches] == [(4, 21)]
    assert findings.level == "restricted"


def test_patterns_are_chosen_by_name_and_given_other_levels() -> None:
    some = chosen(BUILT_IN, enabled=["email", "ssn"], disabled=["ssn"], levels={"email": "restricted"})
    assert [(pattern.name, pattern.level) for pattern in some] == [("email", "restricted")]
    assert isinstance(some[0], Pattern)
    assert len(chosen(BUILT_IN, disabled=["email"])) == len(BUILT_IN) - 1
