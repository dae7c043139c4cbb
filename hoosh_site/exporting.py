"""The whole configuration as one TOML file that `import_config` reads back. Secrets stand there as `$NAME` only."""

from __future__ import annotations

from budgets import importing as budgets_importing
from hoosh_site import __version__, toml
from hoosh_site.importing import FORMAT, FORMAT_KEY
from providers import exporting

_HEADER = """\
# Configuration of Hoosh {version}. Read it back with: manage.py import_config FILE
# Secrets are not in here: set the variables that $NAME stands for. API keys and usage are no configuration.
"""


def export_text() -> str:
    """The file's text."""
    tables = {FORMAT_KEY: FORMAT, **exporting.tables(), **budgets_importing.tables()}
    filled = {name: value for name, value in tables.items() if value != []}
    return _HEADER.format(version=__version__) + toml.dumps(filled)
