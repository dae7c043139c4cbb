"""Composition of the gateway: settings, processes, URLs and commands. Nothing imports this package."""

__version__ = "0.1.0"
