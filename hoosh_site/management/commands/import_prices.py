"""`manage.py import_prices`: price rows from the price list of the installed package genai-prices, after a look."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from budgets import price_import
from budgets.price_list import Amounts, PriceList, Remark
from hoosh_site.management.importing import AskingCommand
from hoosh_site.management.remote import printable
from providers.catalog import CATALOG
from providers.models import Provider

if TYPE_CHECKING:
    from budgets.price_import import Change, Plan

ACTOR = "import_prices"
KINDS: Mapping[str, str] = {  # the package's providers that are kinds of ours
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "azure": "azure",
    "deepseek": "deepseek",
    "mistral": "mistral",
    "groq": "groq",
    "x-ai": "grok",
    "openrouter": "openrouter",
}
_SHOWN = 20  # new rows and names told per provider and reason; -v 2 tells all
_LABELS: Mapping[str, str] = {
    "input_usd_per_mtok": "input",
    "output_usd_per_mtok": "output",
    "cached_read_usd_per_mtok": "cached",
    "cache_write_usd_per_mtok": "cache write",
    "reasoning_usd_per_mtok": "reasoning",
    "input_audio_usd_per_mtok": "audio in",
    "output_audio_usd_per_mtok": "audio out",
    "input_image_usd_per_mtok": "image in",
    "request_usd": "per request",
}


class Command(AskingCommand):
    """Shows what would change, asks, and adds rows; an operator's own rows stay and win."""

    help = "Add price rows from the installed genai-prices package. Shows the difference and asks before it writes."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to import and whether to ask."""
        parser.add_argument(
            "--provider",
            action="append",
            default=[],
            metavar="ID[=NAME]",
            help="a provider of the package, or a kind; with =NAME its rows are for the provider of that name here. "
            "Default: all kinds of the catalogue.",
        )
        parser.add_argument("--actor", default=ACTOR, help=argparse.SUPPRESS)  # for the management API
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Compare, show, ask, write."""
        from budgets import price_package  # only here: the list is large, and no server needs it

        now = timezone.now()
        prices = price_package.read(_names(options["provider"], price_package.package_ids()), now)
        planned = price_import.plan(prices, now)
        if options["json"]:
            shown = _as_json(prices, planned)
        else:
            limit = None if options["verbosity"] > 1 else _SHOWN
            for line in lines(prices, planned, limit):
                self.stdout.write(printable(line))
        written = 0
        if self.may_write(len(planned.changes), "rows", options):
            try:
                written = price_import.apply(prices, planned, now=now, actor=options["actor"])
            except price_import.PricesMovedError as exc:
                raise CommandError(str(exc)) from exc
        if options["json"]:
            self.stdout.write(json.dumps({**shown, "written": written}))
        else:
            self.tell_written(written, "rows", of=len(planned.changes))


def _names(chosen: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The package's id of each chosen provider and what our rows call it."""
    if not chosen:
        return dict(KINDS)
    kinds = {kind: package_id for package_id, kind in KINDS.items()}
    found: dict[str, str] = {}
    for each in chosen:
        asked, _, name = each.partition("=")
        package_id = asked if asked in (available := set(known)) else kinds.get(asked, "")
        if package_id not in available:
            raise CommandError(f"There are no prices for '{asked}'. There are some for {', '.join(sorted(available))}.")
        own_name, name = name.strip(), name.strip() or KINDS.get(package_id, package_id)
        if own_name and own_name not in CATALOG and not Provider.objects.filter(name=own_name).exists():
            raise CommandError(f"There is no provider named '{own_name}' here.")  # rows cannot be deleted again
        if package_id in found or name in found.values():
            raise CommandError(f"'{asked}' is asked for twice, or two providers for the name '{name}'.")
        found[package_id] = name
    return found


def lines(prices: PriceList, planned: Plan, limit: int | None) -> Iterator[str]:
    """The difference for people; with a `limit`, so many new rows per provider and names per reason."""
    by_provider: defaultdict[str, list[Change]] = defaultdict(list)
    for change in planned.changes:
        by_provider[change.provider].append(change)
    for provider in prices.providers:
        changes = by_provider[provider]
        refused = [remark for remark in prices.refused if remark.provider == provider]
        new = [change for change in changes if change.before is None]
        yield (
            f"{provider}: {len(new)} new rows, {len(changes) - len(new)} changed, "
            f"{planned.unchanged[provider]} patterns unchanged, {len(refused)} models could not be expressed"
        )
        yield from (f"  ~ {_place(change)}: {_difference(change)}" for change in changes if change.before is not None)
        yield from (f"  + {_place(change)}: {_told(change.after)}" for change in new[:limit])
        if len(new) > len(new[:limit]):
            yield f"  + and {len(new) - len(new[:limit])} more (-v 2 shows all)"
        yield from _by_reason("  ! not expressed: ", refused, limit)
        remarks = [remark for remark in prices.remarks if remark.provider == provider]
        yield from _by_reason("  ? ", remarks, limit)
    for provider, pattern in planned.gone:
        yield f"{provider}: the list does not price {pattern} any more; its rows stay in force."
    agreed = planned.checked - len(planned.disagreements)
    share = _percent(agreed, planned.checked)
    yield f"{agreed} of {planned.checked} names tried cost what {planned.source} says ({share})."
    for each in planned.disagreements:
        charged, listed = _told(each.charged), _told(each.listed)
        yield f"Warning: {each.provider} {each.name} would cost {charged}; the list says {listed}."
    if not planned.changes:
        yield f"All prices are those of {planned.source}."


def _place(change: Change) -> str:
    tier = f" from {change.from_tokens:,} input tokens" if change.from_tokens else ""
    known = change.before is not None or change.valid_from != price_import.BEGINNING
    since = f" from {change.valid_from:%Y-%m-%d}" if known else ""
    return f"{change.pattern}{tier}{since}"


def _told(amounts: Amounts | None) -> str:
    if amounts is None:
        return "nothing that is known"
    said = [f"{_LABELS[name]} {_plain(value)}" for name, value in amounts._asdict().items() if value]
    return ", ".join(said) or "free"


def _difference(change: Change) -> str:
    assert change.before is not None
    before = change.before._asdict()
    return ", ".join(
        f"{_LABELS[name]} {_plain(before[name])} → {_plain(value)}"
        for name, value in change.after._asdict().items()
        if value != before[name]
    )


def _by_reason(start: str, remarks: Iterable[Remark], limit: int | None) -> Iterator[str]:
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for remark in remarks:
        by_reason[remark.reason].append(remark.model)
    for reason, models in by_reason.items():
        models = list(dict.fromkeys(models))
        more = f" and {len(models) - len(models[:limit])} more" if len(models) > len(models[:limit]) else ""
        yield f"{start}{reason}: {', '.join(models[:limit])}{more}"


def _plain(value: Decimal | None) -> str:
    return "none" if value is None else f"{value.normalize():f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _as_json(prices: PriceList, planned: Plan) -> dict[str, Any]:
    def amounts(found: Amounts | None) -> dict[str, str | None] | None:
        if found is None:
            return None
        return {name: None if value is None else _plain(value) for name, value in found._asdict().items()}

    return {
        "source": planned.source,
        "changes": [
            {
                **{"provider": each.provider, "pattern": each.pattern, "model": each.model},
                **{"from_tokens": each.from_tokens, "valid_from": each.valid_from.isoformat()},
                **{"before": amounts(each.before), "after": amounts(each.after)},
            }
            for each in planned.changes
        ],
        "unchanged": dict(planned.unchanged),
        "not_expressed": [remark._asdict() for remark in prices.refused],
        "remarks": [remark._asdict() for remark in prices.remarks],
        "gone": [{"provider": provider, "pattern": pattern} for provider, pattern in planned.gone],
        "checked": planned.checked,
        "disagreements": [
            {
                **{"provider": each.provider, "name": each.name},
                **{"listed": amounts(each.listed), "charged": amounts(each.charged)},
            }
            for each in planned.disagreements
        ],
    }
