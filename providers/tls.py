"""TLS towards providers: what a connection trusts, which certificate it shows, and pins. Pure; workers load this.

A pin is `sha256/BASE64`: the SHA-256 of a certificate's SubjectPublicKeyInfo, of the server's own or of any in the
chain that was verified. Pins narrow what the authorities allow; they replace nothing of the usual verification.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import certifi

PIN = re.compile(r"sha256/[A-Za-z0-9+/]{43}=")
# Alerts with which a server tells that it misses, or does not like, our certificate.
_ABOUT_OURS = re.compile("ALERT_.*(CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)")
_SEQUENCE, _VERSION = 0x30, 0xA0
_BEFORE_KEY = 5  # serial number, signature algorithm, issuer, validity, subject


def context(ca_pem: str, client_pem: str = "") -> ssl.SSLContext:
    """What to connect with: only the given authorities, else the system's, else certifi's; `client_pem` is the
    certificate chain to show with its key behind it. Raises `OSError` or `ValueError` on PEM that OpenSSL refuses."""
    if not client_pem:
        return _shared_context(ca_pem)
    made = _new_context(ca_pem)  # not kept for others: a key goes when its pool goes
    load_client(made, client_pem)
    return made


@functools.lru_cache(maxsize=64)
def _shared_context(ca_pem: str) -> ssl.SSLContext:
    return _new_context(ca_pem)


def _new_context(ca_pem: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=ca_pem or None)
    if not ca_pem and not made.cert_store_stats()["x509_ca"]:
        made.load_verify_locations(certifi.where())
    made.set_alpn_protocols(["http/1.1"])
    return made


def load_client(into: ssl.SSLContext, client_pem: str) -> None:
    """Make a context show a client certificate. The key is never on a disk: OpenSSL reads it from a file in memory."""
    with os.fdopen(os.memfd_create("client", os.MFD_CLOEXEC), "wb") as file:
        file.write(client_pem.encode("ascii"))
        file.flush()
        # The password is for keys that need one, which are refused when saved: without it OpenSSL would ask a terminal.
        into.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")


def refuses_ours(exc: BaseException | None) -> bool:
    """Whether this is a server's alert about the certificate that we showed, or did not."""
    return isinstance(exc, ssl.SSLError) and _ABOUT_OURS.search(exc.reason or "") is not None


def verified_chain(ssl_object: Any) -> tuple[bytes, ...]:
    """The certificates of a connection as they were verified, DER, the server's own first; nothing = none to be had."""
    found: Iterable[Any]
    if ssl_object is None:  # the connection ended meanwhile
        found = ()
    elif hasattr(ssl_object, "get_verified_chain"):  # Python 3.13 on
        found = ssl_object.get_verified_chain()
    else:
        found = ssl_object._sslobj.get_verified_chain() or ()
    return tuple(_der(certificate) for certificate in found)


def _der(certificate: Any) -> bytes:
    if isinstance(certificate, bytes):
        return certificate
    return ssl.PEM_cert_to_DER_cert(certificate.public_bytes())


def pins_of(chain: Iterable[bytes]) -> tuple[str, ...]:
    """The pin of each certificate, in order. One that cannot be read has none, so nothing can match it."""
    found = []
    for der in chain:
        with suppress(ValueError):
            found.append(pin_of(der))
    return tuple(found)


def pin_of(der: bytes) -> str:
    """The pin of a DER certificate. Raises `ValueError` when it is none."""
    return "sha256/" + base64.b64encode(hashlib.sha256(_public_key(der)).digest()).decode("ascii")


def _public_key(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo as it stands in the certificate (RFC 5280, 4.1); read here, since loading a library
    for X.509 would cost every worker 4 MB."""
    _, at, _ = _element(der, 0, _SEQUENCE)  # Certificate
    _, at, _ = _element(der, at, _SEQUENCE)  # TBSCertificate
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in range(_BEFORE_KEY):
        _, _, at = _element(der, at)
    _, _, end = _element(der, at, _SEQUENCE)
    return der[at:end]


def _element(der: bytes, at: int, wanted: int | None = None) -> tuple[int, int, int]:
    """Tag, begin and end of the contents of the element at `at`."""
    try:
        tag, length = der[at], der[at + 1]
    except IndexError as exc:
        raise ValueError("not a certificate") from exc
    begin = at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[begin : begin + size], "big")
        begin += size
    if (wanted is not None and tag != wanted) or begin + length > len(der):
        raise ValueError("not a certificate")
    return tag, begin, begin + length
