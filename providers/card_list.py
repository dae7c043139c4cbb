"""Lists of what is known of models: our own data file, and how it and another list become one. No database.

Our file says more of a model and says it exactly; another list (`providers.card_package`) knows more models. So our
file counts for everything its patterns cover, and the other list for the rest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from providers.cards import Patterns

FILE = Path(__file__).with_name("data") / "cards.toml"
CATALOGUE = "catalogue"  # the source of cards from our file


class Facts(NamedTuple):
    """What an imported card says, under the names of its columns."""

    display_name: str = ""
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    capabilities: str = ""


class Listed(NamedTuple):
    """One pattern of a list."""

    pattern: str
    facts: Facts
    source: str


def read_file(path: Path = FILE) -> list[Listed]:
    """Every pattern of our data file. Raises `ValueError` for a pattern that stands there twice."""
    found: dict[str, Listed] = {}
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["cards"]:
        facts = _facts(row)
        for pattern in (row["name"], *row.get("also", ())):
            if pattern in found:
                raise ValueError(f"{path.name} has {pattern} twice")
            found[pattern] = Listed(pattern, facts, CATALOGUE)
    return list(found.values())


def _facts(row: Mapping[str, Any]) -> Facts:
    return Facts(row["title"], row.get("context"), row.get("output"), ",".join(row["labels"].split()))


def merged(ours: Iterable[Listed], others: Iterable[Listed]) -> dict[str, Listed]:
    """Both lists as one, by pattern."""
    found = {each.pattern: each for each in ours}
    rows = Patterns([(each.pattern, each.pattern) for each in found.values()])
    for each in others:
        same = found.get(each.pattern)
        if same is not None:
            found[each.pattern] = same._replace(facts=_filled(same.facts, each.facts))
        elif rows.find(each.pattern.replace("*", "\0")) is None:  # a glob is covered where all it stands for is
            found[each.pattern] = each
    return found


def _filled(first: Facts, second: Facts) -> Facts:
    """The first, and the second where the first says nothing."""
    return Facts(
        first.display_name or second.display_name,
        first.context_tokens or second.context_tokens,
        first.max_output_tokens or second.max_output_tokens,
        first.capabilities or second.capabilities,
    )
