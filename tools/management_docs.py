"""The table of paths in docs/management-api.md, made from the paths themselves.

`python -m tools.management_docs` writes it; `tools.check_docs` says when it is not what the code says.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "management-api.md"
BEGIN, END = "<!-- paths: made by python -m tools.management_docs -->", "<!-- end of paths -->"
_METHODS = ("get", "post", "put", "patch", "delete")
_PLAIN = frozenset({"list", "retrieve", "create", "partial_update", "destroy"})
_PLACE = re.compile(r"\{[^}]*\}|<[^>]*>")
_MANY = 3  # permissions named one by one


def table() -> str:
    """All paths, with methods, what they are for and the permission each needs. Needs Django's settings."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hoosh_site.settings")
    django.setup()
    summaries = _summaries()
    lines = ["| path | methods and permissions | |", "| --- | --- | --- |"]
    for path, view, actions in _views():
        asked = ", ".join(f"{method.upper()} {_needed(view, action)}" for method, action in actions.items())
        told = [summaries[path, method] for method, action in actions.items() if action not in _PLAIN]
        lines.append(f"| `{path}` | {asked} | {'; '.join(told)} |")
    return "\n".join(lines)


def _views() -> Iterator[tuple[str, Any, dict[str, str]]]:
    from hoosh_site.management_api.urls import urlpatterns

    for entry in urlpatterns:
        view: Any = entry.callback
        if hasattr(view, "actions") and not str(entry.pattern).endswith("/"):
            actions = {method: view.actions[method] for method in _METHODS if method in view.actions}
            yield _PLACE.sub("{id}", f"/api/v1/{entry.pattern}"), view.cls, actions


def _needed(view: Any, action: str) -> str:
    from hoosh_site.management_api.rows import ManagementView

    names = ManagementView.needed(view(action=action, request=None))
    if len(names) > _MANY:
        return "all permissions of what a document holds"
    return " and ".join(f"`{name}`" for name in names) or "of each line its own"


def _summaries() -> dict[tuple[str, str], str]:
    """What each operation is for, by path and method."""
    from hoosh_site.management_api.docs import description

    return {
        (_PLACE.sub("{id}", path), method): str(told.get("summary", ""))
        for path, item in description()["paths"].items()
        for method, told in item.items()
    }


def written(page: str, content: str) -> str:
    """The page with this table in its place. Raises `ValueError` where it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for the table: write {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def problems() -> list[str]:
    """What is wrong with the table, one message or none."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    try:
        is_current = written(page, table()) == page
    except ValueError as exc:
        return [str(exc)]
    return [] if is_current else [f"docs/{PAGE.name} is not what the paths say: run python -m tools.management_docs"]


def main() -> int:
    """Write the table."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(page, table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
