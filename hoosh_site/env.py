"""Reading the process environment: typed, with clear refusals. The only module that looks at `os.environ`."""

from __future__ import annotations

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

PROJECT_DIR = Path(__file__).resolve().parent.parent
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


def text(name: str, default: str = "") -> str:
    """The variable's value without surrounding blanks, or `default` when unset or empty.

    `NAME_FILE` names a file to read the value from (container secrets) and counts before `NAME`; an unreadable file is
    refused, an empty one means unset.
    """
    file_name = os.environ.get(f"{name}_FILE")
    value = _file_text(name, file_name) if file_name else os.environ.get(name, "")
    return value.strip() or default


def _file_text(name: str, file_name: str) -> str:
    try:
        return Path(file_name).read_text(encoding="utf-8")
    except OSError as exc:
        raise ImproperlyConfigured(f"{name}_FILE names {file_name}, which cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError:  # its own text would carry the whole value, which may be a secret
        raise ImproperlyConfigured(f"{name}_FILE names {file_name}, which is not UTF-8 text.") from None


def integer(name: str, default: int, *, minimum: int, maximum: int) -> int:
    """The variable as an integer inside the given range."""
    raw = text(name)
    if not raw:
        return default
    try:
        value = int(raw)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {raw!r}.") from exc
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name} must be between {minimum} and {maximum}, not {value}.")
    return value


def boolean(name: str, *, default: bool) -> bool:
    """The variable as a truth value: 1/true/yes/on or 0/false/no/off."""
    raw = text(name, "1" if default else "0").lower()
    if raw in _TRUE:
        return True
    if raw in _FALSE:
        return False
    raise ImproperlyConfigured(f"{name} must be one of 1, true, yes, on, 0, false, no, off, not {raw!r}.")


def items(name: str, default: str = "") -> list[str]:
    """The variable as a comma-separated list, blanks dropped."""
    return [item.strip() for item in text(name, default).split(",") if item.strip()]


def data_dir() -> Path:
    """Where all run-time state lives: `HOOSH_DATA_DIR`, by default `var/` beside the code."""
    written = text("HOOSH_DATA_DIR", str(PROJECT_DIR / "var"))
    try:
        return Path(written).expanduser().resolve()
    except (RuntimeError, OSError) as exc:  # no such user, links in a circle
        raise ImproperlyConfigured(f"HOOSH_DATA_DIR is {written!r}, which is no usable path: {exc}") from exc
