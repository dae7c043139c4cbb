"""What may be written into configuration rows."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core.exceptions import ValidationError

from providers import validation


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("https://api.openai.com", "https://api.openai.com"),
        ("https://api.openai.com/v1", "https://api.openai.com"),
        ("https://api.openai.com/v1/", "https://api.openai.com"),
        ("https://api.openai.com//v1//", "https://api.openai.com"),
        (" https://API.OpenAI.com/ ", "https://api.openai.com"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api"),
        ("https://h.example/deep/prefix", "https://h.example/deep/prefix"),
        ("https://h.example/v1beta", "https://h.example/v1beta"),
        ("http://127.0.0.1:8080/v1/chat/completions", "http://127.0.0.1:8080"),
        ("https://openrouter.ai/api/v1/models/", "https://openrouter.ai/api"),
        ("https://h.example/chat/completions", "https://h.example/chat/completions"),
        ("https://h.example/v1/files", "https://h.example/v1/files"),
        ("https://h.example/v1/tenant", "https://h.example/v1/tenant"),
        ("http://localhost:11434", "http://localhost:11434"),
        ("http://h.example:80", "http://h.example"),
        ("https://h.example:443/v1", "https://h.example"),
        ("http://h.example:443", "http://h.example:443"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://my_container:8000", "http://my_container:8000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("unix:///run/vllm.sock", "unix:///run/vllm.sock"),
        ("demo://local", "demo://local"),
    ],
)
def test_a_base_url_is_brought_into_its_stored_form(typed: str, stored: str) -> None:
    assert validation.base_url(typed) == stored
    assert validation.base_url(stored) == stored


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("", "required"),
        ("api.openai.com", "scheme"),
        ("localhost:11434", "scheme"),
        ("ftp://h.example", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("demo://elsewhere", "scheme"),
        ("https://user:pw@h.example", "userinfo"),
        ("https://user@h.example", "userinfo"),
        ("https://@h.example", "userinfo"),
        ("https://h.example?key=1", "query"),
        ("https://h.example/?", "query"),
        ("https://h.example/#", "query"),
        ("https://h.example/a/../b", "path"),
        ("https://h.example/a//b", "path"),
        ("https://h.example/%2e%2e", "path"),
        ("https://h.example:0", "port"),
        ("https://h.example:", "port"),
        ("https://h.example:99999", "port"),
        ("https://h.example:x", "port"),
        ("https://", "host"),
        ("https://h..example", "host"),
        ("https://-", "host"),
        ("https://h.example\\@evil", "characters"),
        ("https://h.exa mple", "characters"),
        ("https://h.example/\r\nX: y", "characters"),
        ("http://[::1", "url"),
        ("unix://host/run.sock", "unix"),
        ("unix://", "unix"),
        ("unix:///" + "a" * 120, "unix"),
    ],
)
def test_a_base_url_that_could_mislead_is_refused(typed: str, code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        validation.base_url(typed)
    assert caught.value.code == code
    assert caught.value.messages[0].endswith(".") or code == "unix"


def test_a_blank_base_url_becomes_the_kinds_usual_address() -> None:
    assert validation.base_url("  ", default="https://api.openai.com") == "https://api.openai.com"


@pytest.mark.parametrize("pattern", ["*", "gpt-*", "*-mini", "a*b*c", "llama3:8b", "org/model", "模型-*", "a" * 256])
def test_usual_patterns_are_accepted(pattern: str) -> None:
    validation.pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["", "a" * 257, "a\nb", "a\x00", " gpt", "gpt ", "a\u2028b", "a\u202eb", "a\xa0b", "**", "gpt-**"]
)
def test_patterns_that_cannot_be_meant_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        validation.pattern(pattern)


def test_a_model_name_has_no_wildcard() -> None:
    validation.model_name("llama3:8b")
    with pytest.raises(ValidationError):
        validation.model_name("llama*")
    with pytest.raises(ValidationError):
        validation.model_names("llama3, gpt-*")


@pytest.mark.parametrize("name", ["a", "openai-2", "ollama: llama*", "x" * 64])
def test_usual_names_are_accepted(name: str) -> None:
    validation.name(name)


@pytest.mark.parametrize("name", ["", " a", "a ", "a  b", "a\r\nb", "größe", "x" * 65])
def test_names_that_cannot_stand_in_a_header_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        validation.name(name)


def test_labels_are_plain_words() -> None:
    validation.labels("local, cheap,eu-west")
    validation.labels("")
    with pytest.raises(ValidationError):
        validation.labels("Local")
    with pytest.raises(ValidationError):
        validation.labels("a b")


@pytest.mark.parametrize("value", ["*", "https://app.example.com", "http://localhost:3000, https://b.example", ""])
def test_origins_are_accepted(value: str) -> None:
    validation.origins(value)


@pytest.mark.parametrize(
    "value", ["app.example.com", "https://a.example/", "https://a.example/path", "null", "javascript:x"]
)
def test_what_is_no_origin_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        validation.origins(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_slip_through_range_checks_are_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        validation.finite(value)


def test_certificates_are_parsed_and_private_keys_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    validation.certificates(pem)
    validation.certificates(pem + pem)
    validation.certificates("")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    for bad in (pem + secret, "garbage", pem[:-60], "ü" + pem[:10]):
        with pytest.raises(ValidationError):
            validation.certificates(bad)
