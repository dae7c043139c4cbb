"""`manage.py import_cards`: model cards from our data file and the installed package genai-prices, after a look."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.core.management.base import CommandError, CommandParser

from hoosh_site.management.importing import AskingCommand
from hoosh_site.management.remote import printable
from providers import card_import, card_list
from providers.card_import import Change, Plan
from providers.card_list import Facts, Listed

ACTOR = "import_cards"
_SHOWN = 20  # cards told per kind of change; -v 2 tells all
_LABELS: Mapping[str, str] = {
    "display_name": "name",
    "context_tokens": "context",
    "max_output_tokens": "output",
    "capabilities": "labels",
}


class Command(AskingCommand):
    """Shows what would change, asks, and writes imported cards; an operator's own cards stay and win."""

    help = "Fill in model cards of well-known models. Shows the difference and asks before it writes."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to import and whether to ask."""
        parser.add_argument(
            "--provider",
            action="append",
            default=[],
            metavar="KIND",
            help="besides our own list, only the models the package knows of this kind; may be repeated. Nothing is "
            "removed then. Default: of all kinds it knows, and imported cards that no list has any more are removed.",
        )
        parser.add_argument("--remove", action="store_true", help="remove every imported card")
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, show, ask, write."""
        kinds = options["provider"]
        if kinds and options["remove"]:
            raise CommandError("--remove is for all imported cards: a card does not say of which kind it is.")
        wanted = {} if options["remove"] else _wanted(kinds)
        planned = card_import.plan(wanted, removes=not kinds)
        if not options["json"]:
            limit = None if options["verbosity"] > 1 else _SHOWN
            for line in lines(planned, limit):
                self.stdout.write(printable(line))
        written = 0
        if self.may_write(len(planned.changes), "cards", options):
            try:
                written = card_import.apply(wanted, planned, removes=not kinds, actor=ACTOR)
            except card_import.CardsMovedError as exc:
                raise CommandError(str(exc)) from exc
        if options["json"]:
            self.stdout.write(json.dumps({**_as_json(planned), "written": written}))
        else:
            self.tell_written(written, "cards", of=len(planned.changes))


def _wanted(kinds: Sequence[str]) -> dict[str, Listed]:
    """Our list and the package's, as one; of the package's, what these kinds have (all kinds where none is named)."""
    from providers import card_package  # only here: the package is large, and no server needs it

    known = card_package.PROVIDERS
    for kind in kinds:
        if kind not in known:
            raise CommandError(f"The list has no kind '{kind}'. It has {', '.join(sorted(known))}.")
    ours = card_list.read_file()
    found = card_list.merged(ours, card_package.read(known.values()))  # a name may be known to other kinds as well
    if not kinds:
        return found
    asked = {each.pattern for each in (*ours, *card_package.read(known[kind] for kind in dict.fromkeys(kinds)))}
    return {pattern: listed for pattern, listed in found.items() if pattern in asked}


def lines(planned: Plan, limit: int | None) -> Iterator[str]:
    """The difference for people; with a `limit`, so many cards of each kind."""
    changed = [each for each in planned.changes if each.before is not None and each.after is not None]
    new = [each for each in planned.changes if each.before is None]
    gone = [each for each in planned.changes if each.after is None]
    yield f"{len(new)} new cards, {len(changed)} changed, {len(gone)} removed, {planned.unchanged} unchanged"
    for sign, group in (("~", changed), ("+", new), ("-", gone)):
        yield from (f"  {sign} {each.pattern}{_told(each)}" for each in group[:limit])
        if len(group) > len(group[:limit]):
            yield f"  {sign} and {len(group) - len(group[:limit])} more (-v 2 shows all)"
    for pattern in planned.own[:limit]:
        yield f"  ! {pattern}: your own card stands first; the imported one fills what it leaves blank"
    if len(planned.own) > len(planned.own[:limit]):
        yield f"  ! and {len(planned.own) - len(planned.own[:limit])} more of your own cards"
    if not planned.changes:
        yield "All imported cards are up to date."


def _told(change: Change) -> str:
    if change.after is None:
        return ""
    before, after = (change.before or Facts())._asdict(), change.after._asdict()
    arrow = change.before is not None
    parts = [
        f"{_LABELS[name]} {_plain(before[name])} → {_plain(value)}" if arrow else f"{_LABELS[name]} {_plain(value)}"
        for name, value in after.items()
        if value != before[name]
    ]
    return f": {', '.join(parts) or 'nothing more is known'}"


def _plain(value: str | int | None) -> str:
    return f"{value:,}" if isinstance(value, int) else (value or "none").replace(",", " ")


def _as_json(planned: Plan) -> dict[str, Any]:
    def facts(found: Facts | None) -> dict[str, Any] | None:
        return None if found is None else found._asdict()

    return {
        "changes": [
            {
                **{"pattern": each.pattern, "source": each.source},
                **{"before": facts(each.before), "after": facts(each.after)},
            }
            for each in planned.changes
        ],
        "unchanged": planned.unchanged,
        "own": planned.own,
    }
