"""How dates are written in admin (settings.FORMAT_MODULE_PATH)."""

from __future__ import annotations
