"""What an operator may write into configuration rows. Each check raises `ValidationError` saying what to do instead.

The single-value checks are field validators, so forms, the importer and services all refuse the same things. Rows
that need a look at several fields or at the network are checked in `providers.services`.
"""

from __future__ import annotations

import base64
import math
import re
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from django.core.exceptions import ValidationError

from providers.tls import PIN

NAME_LIMIT = 64
MODEL_LIMIT = 256
_NAME = re.compile(r"[!-~](?: ?[!-~])*")
_LABEL = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,31}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_SCHEMES = ("http", "https", "unix")
DEMO_URL = "demo://local"
PINS_MAX = 16
RATE_LIMIT = 10**9  # requests or tokens per minute, requests at once: as far as the workers' counters go


def split(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated field, blanks dropped, order kept, doubles removed."""
    return tuple(dict.fromkeys(entry.strip() for entry in text.split(",") if entry.strip()))


def name(value: str) -> None:
    """A name that may stand in a response header: visible ASCII, single spaces inside, 1 to 64 characters."""
    if len(value) > NAME_LIMIT or not _NAME.fullmatch(value):
        raise ValidationError(
            f"Use 1 to {NAME_LIMIT} visible ASCII characters, single spaces inside only: the name is sent in headers.",
            code="name",
        )


def pattern(value: str) -> None:
    """A glob over model names: 1 to 256 printable characters, no outer blanks, `*` the only wildcard."""
    _model_text(value, what="A pattern")
    if "**" in value:
        raise ValidationError("Write a single * ; ** means the same and is refused.", code="pattern")


def model_name(value: str) -> None:
    """One model's name, sent as written: no wildcard, 1 to 256 printable characters, no outer blanks."""
    _model_text(value, what="A model name")
    if "*" in value:
        raise ValidationError("This is one model's name: * has no meaning here.", code="model_name")


def model_names(value: str) -> None:
    """A comma-separated list of model names."""
    for entry in split(value):
        model_name(entry)


def _model_text(value: str, *, what: str) -> None:
    if not 1 <= len(value) <= MODEL_LIMIT:
        raise ValidationError(f"{what} has 1 to {MODEL_LIMIT} characters.", code="length")
    if not value.isprintable():
        raise ValidationError(f"{what} has no control characters, nor others that cannot be seen.", code="control")
    if value != value.strip():
        raise ValidationError(f"{what} neither starts nor ends with a blank.", code="blank")


def finite(value: float) -> None:
    """A real number: neither infinite nor NaN, which slip through range checks."""
    if not math.isfinite(value):
        raise ValidationError("This must be a plain number.", code="finite")


def threshold(value: float) -> None:
    """A cosine from which on two texts count as the same; 0 = none."""
    if not (value == 0 or 0.5 <= value <= 1):  # what is below is hardly related; NaN is neither
        raise ValidationError("This must be 0, or from 0.5 to 1.", code="threshold")


def times_problem(connect_s: float | None, first_byte_s: float | None, total_s: float | None) -> str:
    """What is wrong with the deadlines of a call; None = the gateway's default, which is compared with nothing."""
    if total_s is not None and total_s < max(connect_s or 0, first_byte_s or 0):
        return "The total cannot be shorter than the time to connect or to the first byte."
    return ""


def labels(value: str) -> None:
    """A comma-separated list of tags or capabilities: lower-case words of letters, digits and `_ . : -`."""
    for entry in split(value):
        if not _LABEL.fullmatch(entry):
            raise ValidationError(
                f"“{entry}” is not a label: use up to 32 of a-z, 0-9, _ . : - and start with a letter or digit.",
                code="label",
            )


def label_name(value: str) -> None:
    """One label: a lower-case word of letters, digits and `_ . : -`."""
    if "," in value or not value.strip():
        raise ValidationError("Enter one word of a-z, 0-9, _ . : -", code="label")
    labels(value)


def certificates(value: str) -> None:
    """One or more PEM certificates (blank = none). Private keys are refused: they do not belong here."""
    if not value.strip():
        return
    if "PRIVATE KEY" in value:
        raise ValidationError("This contains a private key. Paste certificates only.", code="private_key")
    try:
        x509.load_pem_x509_certificates(value.encode("ascii"))
    except ValueError as exc:
        raise ValidationError(
            "This is not a list of PEM certificates (-----BEGIN CERTIFICATE----- …).", code="pem"
        ) from exc


def split_pins(text: str) -> tuple[str, ...]:
    """The entries of a list of pins, which may stand one per line or behind commas."""
    return split(",".join(text.split()))


def pins(value: str) -> None:
    """A list of certificate pins, `sha256/` and the Base64 of 32 bytes each."""
    found = split_pins(value)
    if len(found) > PINS_MAX:
        raise ValidationError(f"A provider has at most {PINS_MAX} pins.", code="pins")
    for entry in found:
        text = entry.removeprefix("sha256/")
        if not PIN.fullmatch(entry) or base64.b64encode(base64.b64decode(text)).decode() != text:
            raise ValidationError(
                f"“{entry:.80}” is not a pin: write sha256/ and the Base64 of a public key's SHA-256 (44 characters).",
                code="pins",
            )


def origins(value: str) -> None:
    """A comma-separated list of web origins (`https://host[:port]`), or `*`."""
    for entry in split(value):
        if entry == "*":
            continue
        parts = _urlsplit(entry)
        if parts.scheme not in ("http", "https") or not parts.hostname or entry != f"{parts.scheme}://{parts.netloc}":
            raise ValidationError(f"“{entry}” is not an origin such as https://app.example.com.", code="origin")


# What people paste behind the base URL: /v1, or one of its endpoints.
_ENDPOINT = re.compile(r"(?:/+v1(?:/+(?:chat/completions|completions|embeddings|models|responses))?)?/*$")


def base_url(value: str, *, default: str = "") -> str:
    """The base URL in its stored form: scheme://host[:port][/prefix] or unix:///path, without a final slash, `/v1` or
    an endpoint below it.

    A blank value becomes `default` (the kind's usual address).
    """
    text = value.strip() or default
    if not text:
        raise ValidationError("A base URL is needed: this kind has no usual address.", code="required")
    if text == DEMO_URL:
        return text
    parts = _urlsplit(text)
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise ValidationError(
            "A base URL starts with http://, https:// or unix:///, for example http://127.0.0.1:8080.", code="scheme"
        )
    if _CONTROL.search(text) or any(blank in text for blank in (" ", "\\")):
        raise ValidationError("A base URL has no blanks, backslashes or control characters.", code="characters")
    if parts.username is not None or parts.password is not None:
        raise ValidationError(
            "Leave user and password out of the URL; save the secret as a credential.", code="userinfo"
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValidationError("A base URL has no query (?…) and no fragment (#…).", code="query")
    path = _ENDPOINT.sub("", parts.path)
    if any(step in (".", "..") for step in path.split("/")) or "//" in path or "%" in path:
        raise ValidationError(
            "The path of a base URL is plain: no empty, dotted or percent-encoded parts.", code="path"
        )
    if scheme == "unix":
        return _unix_url(parts, path)
    return f"{scheme}://{_host_and_port(parts, scheme)}{path}"


def _unix_url(parts: SplitResult, path: str) -> str:
    if parts.netloc or not path:
        raise ValidationError("A Unix socket is written unix:///path/of/the.socket.", code="unix")
    if len(path.encode()) > 107:
        raise ValidationError("The path of a Unix socket has at most 107 bytes.", code="unix")
    return f"unix://{path}"


def _host_and_port(parts: SplitResult, scheme: str) -> str:
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError as exc:
        raise ValidationError("The port of a base URL is a number from 1 to 65535.", code="port") from exc
    if port == 0 or parts.netloc.endswith(":"):
        raise ValidationError("The port of a base URL is a number from 1 to 65535.", code="port")
    if ":" in host:
        written = f"[{host}]"  # urlsplit has already checked that this is an IPv6 address
    else:
        try:
            written = host if host.isascii() else host.encode("idna").decode("ascii")
        except UnicodeError as exc:
            raise ValidationError(f"“{host}” is not a host name.", code="host") from exc
        if not _HOST.fullmatch(written) or len(written) > 253 or ".." in written:
            raise ValidationError(f"“{host}” is not a host name.", code="host")
    usual = {"http": 80, "https": 443}[scheme]
    return written if port in (None, usual) else f"{written}:{port}"


def _urlsplit(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as exc:
        raise ValidationError(f"This is not a URL: {exc}.", code="url") from exc
