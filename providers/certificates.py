"""Certificates as operators see and enter them: what they say about themselves, and client certificates with keys.

Control only: it loads a library for X.509. What connections need is in `providers.tls`.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from django.core.exceptions import ValidationError

from providers import tls

WARN_DAYS = 30
CHAIN_LIMIT = 10
_NAME_LIMIT = 120


@dataclass(frozen=True, slots=True)
class Seen:
    """What matters of one certificate: whose it is, when it ends, what to pin."""

    name: str
    not_after: dt.datetime
    pin: str


def describe(chain: Iterable[bytes]) -> list[Seen]:
    """Of DER certificates, in order; those that cannot be read are left out."""
    found = []
    for der in list(chain)[:CHAIN_LIMIT]:
        try:
            certificate = x509.load_der_x509_certificate(der)
            found.append(Seen(_name(certificate), certificate.not_valid_after_utc, tls.pin_of(der)))
        except ValueError:
            continue
    return found


def describe_pem(pem: str) -> list[Seen]:
    """Of PEM certificates, in order; nothing for what is blank or none."""
    try:
        return describe(certificate.public_bytes(Encoding.DER) for certificate in _load(pem))
    except ValueError:
        return []


def _load(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode("ascii"))


def _name(certificate: x509.Certificate) -> str:
    """The common name, else the first name it is valid for, else the whole subject."""
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if common:
        return str(common[0].value)[:_NAME_LIMIT]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(next(iter(names)).value)[:_NAME_LIMIT]
    except (x509.ExtensionNotFound, StopIteration, ValueError):
        return certificate.subject.rfc4514_string()[:_NAME_LIMIT]


def fingerprint(chain_pem: str) -> str:
    """SHA-256 over the first certificate, in hex."""
    return _load(chain_pem)[0].fingerprint(SHA256()).hex()


def client_pem(chain_pem: str, key_pem: str) -> str:
    """A client certificate as connections use it: the chain, then its key without a passphrase. Both are tried out.

    Raises `ValidationError` for "client_chain" or "client_key", without a word of the key.
    """
    try:
        chain = _load(chain_pem)
    except ValueError as exc:
        raise ValidationError({"client_chain": "This is not a list of PEM certificates."}) from exc
    if len(chain) > CHAIN_LIMIT:
        raise ValidationError({"client_chain": f"A chain has at most {CHAIN_LIMIT} certificates."})
    try:
        key = load_pem_private_key(key_pem.encode("ascii"), None)
    except TypeError as exc:
        raise ValidationError({"client_key": "The key has a passphrase. Take it off: it is encrypted here."}) from exc
    except (ValueError, UnsupportedAlgorithm):
        # Not its own text, and not as a cause: what was typed may be the key but for one letter.
        raise ValidationError(
            {"client_key": "This is not a PEM private key (-----BEGIN PRIVATE KEY----- …)."}
        ) from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise ValidationError({"client_key": "The key does not belong to the first certificate of the chain."})
    pem = "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in chain)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    try:
        tls.load_client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), pem)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or "it cannot be loaded"
        raise ValidationError({"client_chain": f"OpenSSL refuses this certificate: {reason}."}) from exc
    return pem


def key_of(pem: str) -> str:
    """The key in what `client_pem` made."""
    return pem[pem.index("-----BEGIN PRIVATE KEY-----") :]
