"""Settings that must not be served with. `unsafe_settings` is asked by `serve`; `manage.py check` shows a part of them.

Every sentence says what is wrong and what to do. Whatever depends on files that `manage.py init` makes is only asked
at `serve`, so that `check` and the tests run on a bare checkout.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from hoosh_site import env
from hoosh_site.keyfiles import KeyFileError, load_signing_key

MIN_SESSION_KEY_CHARS = 32
KEY_FILES = ("session.key", "vault.key", "signing.key")
JOURNAL_SYNCS = ("process", "host")
_ENGINES = ("django.db.backends.sqlite3", "django.db.backends.postgresql")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

Finding = tuple[str, str]  # id and sentence


def unsafe_settings() -> list[str]:
    """Why this configuration must not be served, one sentence each with its remedy; empty when nothing is wrong."""
    return [sentence for _, sentence in (*_static_findings(), *_file_findings())]


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Django's system check: the findings that do not depend on files."""
    return [Error(sentence, id=f"hoosh.{name}") for name, sentence in _static_findings()]


def is_loopback_bind(bind: str) -> bool:
    """Whether only this host can reach a listener on `bind`."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def _static_findings() -> Iterator[Finding]:
    yield from _exposure()
    yield from _proxies()
    if settings.HOOSH_JOURNAL_SYNC not in JOURNAL_SYNCS:
        yield "E006", f"HOOSH_JOURNAL_SYNC is {settings.HOOSH_JOURNAL_SYNC!r}. Use “process” or “host”."
    yield from database_findings(settings.DATABASES)
    yield from _identity_provider()
    yield from _anchors()


def _identity_provider() -> Iterator[Finding]:
    issuer = settings.HOOSH_OIDC_ISSUER
    if not issuer and not settings.HOOSH_OIDC_CLIENT_ID:
        return
    from hoosh_site.people import oidc  # only then: it brings an HTTP client

    if issuer and not oidc.is_safe(issuer):
        yield "E011", f"HOOSH_OIDC_ISSUER is {issuer!r}. Write the issuer's https:// address as the provider writes it."
    if bool(issuer) != bool(settings.HOOSH_OIDC_CLIENT_ID):
        yield "E011", "Of HOOSH_OIDC_ISSUER and HOOSH_OIDC_CLIENT_ID only one is set. Set both, or neither."


def _exposure() -> Iterator[Finding]:
    bind = settings.HOOSH_BIND
    try:
        ipaddress.ip_address("127.0.0.1" if bind == "localhost" else bind)
    except ValueError:
        yield "E001", f"HOOSH_BIND is {bind!r}, not an IP address. Use 127.0.0.1, 0.0.0.0 or an address of this host."
        return
    if is_loopback_bind(bind):
        return
    if settings.DEBUG:
        yield (
            "E002",
            f"HOOSH_DEBUG is on while HOOSH_BIND={bind} can be reached from other hosts: error pages would show "
            "internals to them. Unset HOOSH_DEBUG or bind to 127.0.0.1.",
        )
    if not env.items("HOOSH_ALLOWED_HOSTS") and not settings.HOOSH_PUBLIC_URL:
        yield (
            "E003",
            f"HOOSH_BIND={bind} can be reached from other hosts, but no name is allowed for them. Set "
            "HOOSH_ALLOWED_HOSTS (names or addresses, comma-separated) or HOOSH_PUBLIC_URL.",
        )
    if "*" in settings.ALLOWED_HOSTS:
        yield "E004", "HOOSH_ALLOWED_HOSTS contains *, which allows forged Host headers. List the real names."
    if not settings.HOOSH_PUBLIC_URL.startswith("https://") and not env.boolean("HOOSH_INSECURE_HTTP", default=False):
        yield (
            "E005",
            f"HOOSH_BIND={bind} can be reached from other hosts without TLS: keys and passwords would cross the "
            "network in clear. Put a TLS proxy in front and set HOOSH_PUBLIC_URL=https://… with "
            "HOOSH_TRUSTED_PROXIES, or set HOOSH_INSECURE_HTTP=1 where the network itself is protected.",
        )


def _proxies() -> Iterator[Finding]:
    url, proxies = settings.HOOSH_PUBLIC_URL, settings.HOOSH_TRUSTED_PROXIES
    if url and not _is_web_address(url):
        yield "E007", f"HOOSH_PUBLIC_URL is {url!r}. Write it as https://name[:port], without a path."
    if url.startswith("https://") and not proxies:
        yield (
            "E008",
            "HOOSH_PUBLIC_URL is https, but HOOSH_TRUSTED_PROXIES names nobody whose X-Forwarded-Proto is believed, so "
            "signing in would fail. Set it to the address or network of the TLS proxy, for example 127.0.0.1.",
        )
    for entry in proxies:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            yield "E009", f"HOOSH_TRUSTED_PROXIES contains {entry!r}, which is neither an address nor a network."
            continue
        if network.prefixlen == 0:
            yield "E009", f"HOOSH_TRUSTED_PROXIES contains {entry!r}: everybody could forge addresses. Name the proxy."


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url == f"{parts.scheme}://{parts.netloc}"


def database_findings(databases: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with a DATABASES setting."""
    for alias, database in databases.items():
        if database.get("ENGINE") not in _ENGINES:
            yield "E010", f"The database “{alias}” is neither SQLite nor PostgreSQL. Set DATABASE_URL=postgres://…."
        elif not database.get("NAME"):
            yield "E010", "DATABASE_URL names no database. Write postgres://user:password@host:5432/name."


def _file_findings() -> Iterator[Finding]:
    yield from _data_dir(settings.HOOSH_DATA_DIR)
    if len(settings.SECRET_KEY) < MIN_SESSION_KEY_CHARS or len(set(settings.SECRET_KEY)) < 8:
        yield (
            "E020",
            f"The session key has fewer than {MIN_SESSION_KEY_CHARS} characters or hardly differing ones. Unset "
            "HOOSH_SECRET_KEY and run `manage.py init`, or set a long random one.",
        )
    for name in KEY_FILES:
        if name == "session.key" and env.text("HOOSH_SECRET_KEY"):
            continue
        if name == "signing.key" and settings.HOOSH_SIGNING_KEY:
            continue
        findings = list(_key_file(settings.HOOSH_KEYS_DIR / name))
        yield from findings
        if name == "signing.key" and not findings:
            yield from _signing_key()
    if settings.HOOSH_SIGNING_KEY:
        yield from _signing_key()


def _signing_key() -> Iterator[Finding]:
    try:
        load_signing_key()
    except KeyFileError as exc:
        yield "E024", str(exc)


def _anchors() -> Iterator[Finding]:
    from audit.anchors import AnchorError, parse_address

    try:
        if settings.HOOSH_AUDIT_ANCHOR_SYSLOG:
            parse_address(settings.HOOSH_AUDIT_ANCHOR_SYSLOG)
    except AnchorError as exc:
        yield "E012", f"HOOSH_AUDIT_ANCHOR_SYSLOG: {exc}"
    if settings.HOOSH_AUDIT_ANCHOR_FILE and not os.path.isabs(settings.HOOSH_AUDIT_ANCHOR_FILE):
        yield "E012", "HOOSH_AUDIT_ANCHOR_FILE must be an absolute path, best on another volume than the database."


def _data_dir(path: Path) -> Iterator[Finding]:
    if not path.is_dir():
        yield "E021", f"The data directory {path} does not exist. Run `manage.py init`, or correct HOOSH_DATA_DIR."
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield "E021", f"The data directory {path} is not writable. Give it to the user the gateway runs as."


def _key_file(path: Path) -> Iterator[Finding]:
    try:
        found = path.stat()
        data = path.read_bytes()
    except FileNotFoundError:
        yield "E022", f"The key file {path} is missing. Run `manage.py init` (or restore it from your backup)."
        return
    except OSError as exc:
        yield "E022", f"The key file {path} cannot be read ({exc.strerror}). Give it to the user the gateway runs as."
        return
    if not data.strip():
        yield "E022", f"The key file {path} is empty. Restore it from your backup."
    elif not data.isascii():
        yield "E022", f"The key file {path} is damaged: it is not plain text. Restore it from your backup."
    if found.st_mode & _OTHERS:
        yield "E023", f"The key file {path} can be used by others on this host. Run: chmod 600 {path}"
    parent = path.parent.stat().st_mode
    if parent & (stat.S_IWGRP | stat.S_IWOTH):
        yield "E023", f"The key directory {path.parent} can be changed by others. Run: chmod 700 {path.parent}"
