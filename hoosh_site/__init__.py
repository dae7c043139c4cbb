"""Composition of the gateway: settings, processes, URLs and commands. Nothing imports this package."""

from __future__ import annotations

__version__ = "0.1.0"
