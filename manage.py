#!/usr/bin/env python
"""Entry point of the command line: `python manage.py COMMAND` (see docs/operations.md)."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run one management command with the project's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        settings.DEBUG  # noqa: B018 - loads the settings, so that a bad one is told in a sentence, not a traceback
    except ImproperlyConfigured as exc:
        sys.exit(f"hoosh: {exc}")
    if sys.argv[1:2] == ["serve"]:
        # `serve` becomes another program at once: loading every application first would double the start's time.
        from hoosh_site.management.commands.serve import Command

        Command().run_from_argv(sys.argv)
    else:
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
