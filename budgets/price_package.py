"""The package genai-prices as a `PriceList`. Loading it takes memory: only the command that imports prices may.

The package asks the clauses of its models in their order and takes the first that fits; our price book takes the most
specific pattern. So a name that an earlier model claims goes to that one here, and a glob that an earlier one covers
is left out.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version

from genai_prices import types as package
from genai_prices.data import providers as _package_data

from budgets.price_list import Amounts, Expectation, PriceList, Remark, Stage, Tiers, Wanted, at_step
from budgets.prices import IMPORT_SOURCE, matches
from budgets.validation import PRICE_LIMIT_USD

_CLASSES: Mapping[str, str] = {  # by the package's name
    "input_mtok": "input_usd_per_mtok",
    "output_mtok": "output_usd_per_mtok",
    "cache_read_mtok": "cached_read_usd_per_mtok",
    "cache_write_mtok": "cache_write_usd_per_mtok",
    "output_reasoning_mtok": "reasoning_usd_per_mtok",
    "input_audio_mtok": "input_audio_usd_per_mtok",
    "output_audio_mtok": "output_audio_usd_per_mtok",
    "input_image_mtok": "input_image_usd_per_mtok",
}
_PER_THOUSAND_REQUESTS = "requests_kcount"
# Classes we do not tell apart, and the class their tokens are counted in.
_PARENTS: Mapping[str, str] = {
    "cache_audio_read_mtok": "cache_read_mtok",
    "cache_image_read_mtok": "cache_read_mtok",
    "cache_write_1h_mtok": "cache_write_mtok",
    "input_video_mtok": "input_mtok",
    "output_image_mtok": "output_mtok",
    "output_video_mtok": "output_mtok",
    "output_citation_mtok": "output_mtok",
}
_ASKED_FOR = frozenset(("cache_write_1h_mtok",))  # charged only where a request asks for it: told, not refused
_LABELS: Mapping[str, str] = {
    "audio_hours": "hours of audio",
    "input_audio_hours": "hours of audio",
    "input_document_kpages": "pages",
    "input_annotated_document_kpages": "pages",
    "input_mchars": "characters",
    "input_text_messages_kcount": "messages",
    "web_searches_kcount": "web searches",
    "storage_searches_kcount": "file searches",
    "cache_write_1h_mtok": "an hour in the cache",
}
_PLACES = Decimal("0.000001")
_PLAIN = re.compile(r"[A-Za-z0-9 _:/@~-]|\\[^A-Za-z0-9*]")  # what stands for itself in a regular expression
_FREE_SUFFIX = ":free"


class _NotExpressedError(Exception):
    """A price or a pattern our rows cannot hold; the text says what."""


def package_ids() -> tuple[str, ...]:
    """The package's names of its providers."""
    return tuple(provider.id for provider in _package_data)


def read(
    names: Mapping[str, str], now: dt.datetime, providers: Sequence[package.Provider] = _package_data
) -> PriceList:
    """The prices of the providers in `names` (the package's id -> what our rows call it), in force at `now` and later.

    Raises `KeyError` for an id the package does not have.
    """
    by_id = {provider.id: provider for provider in providers}
    found = PriceList(source=f"{IMPORT_SOURCE} {version('genai-prices')}")
    for package_id, name in names.items():
        _Reader(found, name, now, by_id).read(by_id[package_id])
    return found


class _Reader:
    """Reads one provider."""

    def __init__(
        self, found: PriceList, name: str, now: dt.datetime, providers: Mapping[str, package.Provider]
    ) -> None:
        self._found, self._name, self._now, self._providers = found, name, now, providers

    def read(self, provider: package.Provider) -> None:
        """Everything it says."""
        models = [*provider.models, *self._fallbacks(provider)]
        stages = {id(model): self._stages_of(model) for model in models}
        patterns = self._patterns(models)
        for pattern, model in patterns.items():
            priced = stages[id(model)]
            if priced:
                self._found.wanted.append(Wanted(self._name, pattern, model.id, priced))

        everyone = list(self._providers.values())

        def resolve(name: str) -> Tiers | None:
            owner = provider.find_model(name, all_providers=everyone)
            priced = stages[id(owner)] if owner is not None else ()
            return priced[0].tiers if priced else None

        self._found.resolvers[self._name] = resolve
        samples = [sample for pattern in patterns for sample in _samples(pattern)]
        for name in dict.fromkeys((*(model.id for model in provider.models), *samples)):
            self._found.expected.append(Expectation(self._name, name, resolve(name)))

    def _fallbacks(self, provider: package.Provider) -> Iterator[package.ModelInfo]:
        for package_id in provider.fallback_model_providers or ():
            if package_id in self._providers:
                yield from self._providers[package_id].models

    def _refuse(self, model: package.ModelInfo, reason: str) -> None:
        self._found.refused.append(Remark(self._name, model.id, reason))

    def _remark(self, model: package.ModelInfo, reason: str) -> None:
        remark = Remark(self._name, model.id, reason)
        if remark not in self._found.remarks[-8:]:
            self._found.remarks.append(remark)

    # Which names

    def _patterns(self, models: Sequence[package.ModelInfo]) -> dict[str, package.ModelInfo]:
        """Every pattern and the model it stands for."""
        literals: dict[str, int] = {}
        globs: list[tuple[int, str]] = []
        wide: list[int] = []  # models that claim more than a list of names
        for number, model in enumerate(models):
            found, missed = _globs(model.match)
            if any("*" in pattern for pattern in found) or missed:
                wide.append(number)
            for pattern in found:
                if "*" in pattern:
                    globs.append((number, pattern))
                else:
                    literals.setdefault(pattern, number)
            if model.is_match(model.id):  # the package does not tell upper and lower case apart, we do
                literals.setdefault(model.id, number)
            if missed:
                self._remark(model, f"its names that match {' or '.join(missed)} have no row")
        patterns: dict[str, package.ModelInfo] = {}
        for name, number in literals.items():
            first = next((each for each in wide if each < number and models[each].is_match(name)), number)
            patterns[name] = models[first]
        for place, (number, glob) in enumerate(globs):
            covered = any(matches(other, glob.replace("*", "\0")) for each, other in globs[:place] if each < number)
            if not covered:
                patterns.setdefault(glob, models[number])
        return patterns

    # What it costs

    def _stages_of(self, model: package.ModelInfo) -> tuple[Stage, ...]:
        """What is charged now and later; () where it cannot be expressed."""
        today = self._now.astimezone(dt.UTC).date()
        try:
            since, tiers = self._on(model, today)
            stages = [Stage(None if since is None else _midnight(since), tiers)]
            for day in sorted(day for day in _start_days(model) if day > today):
                _, tiers = self._on(model, day)
                if tiers != stages[-1].tiers:
                    stages.append(Stage(_midnight(day), tiers))
        except _NotExpressedError as exc:
            self._refuse(model, str(exc))
            return ()
        if model.price_variants:
            self._remark(model, "other prices for batches, service tiers or routes are not used")
        return tuple(stages)

    def _on(self, model: package.ModelInfo, day: dt.date) -> tuple[dt.date | None, Tiers]:
        """What is charged on a day, and since which."""
        if isinstance(model.prices, package.ModelPrice):
            return None, self._tiers(model, model.prices)
        timed: list[package.ModelPrice] = []
        for conditional in reversed(model.prices):
            constraint = conditional.constraint
            if isinstance(constraint, package.TimeOfDateConstraint):
                timed.append(conditional.prices)
            elif constraint is None or constraint.start_date <= day:
                since = constraint.start_date if constraint is not None else None
                return since, self._dearest(model, [conditional.prices, *timed])
        return None, self._dearest(model, [model.prices[0].prices, *timed])

    def _dearest(self, model: package.ModelInfo, prices: Sequence[package.ModelPrice]) -> Tiers:
        """Of prices that take turns over the day the one that is never cheaper than another."""
        every = [self._tiers(model, price) for price in prices]
        if len(every) == 1:
            return every[0]
        for tiers in every:
            if all(_is_dearer(tiers, other) for other in every):
                self._remark(model, "its price depends on the time of day; the dearest hours' is used all day")
                return tiers
        raise _NotExpressedError("its price depends on the time of day")

    def _tiers(self, model: package.ModelInfo, price: package.ModelPrice) -> Tiers:
        given = {key: value for key, value in vars(price).items() if value is not None and not key.startswith("_")}
        if not given:
            if model.id.endswith(_FREE_SUFFIX):
                return {0: Amounts()}
            raise _NotExpressedError("the list names no price")
        steps = sorted({0}.union(*(_steps(value) for value in given.values())))
        return {step: self._amounts(model, {key: _at(value, step) for key, value in given.items()}) for step in steps}

    def _amounts(self, model: package.ModelInfo, given: Mapping[str, Decimal]) -> Amounts:
        self._check(model, given)
        values = {ours: given[theirs] for theirs, ours in _CLASSES.items() if theirs in given}
        if _PER_THOUSAND_REQUESTS in given:
            values["request_usd"] = given[_PER_THOUSAND_REQUESTS] / 1000
        rounded = {name: value.quantize(_PLACES, rounding=ROUND_CEILING) for name, value in values.items()}
        if any(rounded[name] != value for name, value in values.items()):
            self._remark(model, "rounded up to six places")
        if max(rounded.values()) > PRICE_LIMIT_USD:
            raise _NotExpressedError(f"a price above {PRICE_LIMIT_USD:,} USD")
        return Amounts(**rounded)

    def _check(self, model: package.ModelInfo, given: Mapping[str, Decimal]) -> None:
        """Refuse what would be charged too little; remark on what is charged only where it is asked for."""
        others = [key for key in given if key not in _CLASSES and key != _PER_THOUSAND_REQUESTS]
        if "input_mtok" not in given:
            billed = sorted({_label(key) for key in others}) or ["output only"]
            raise _NotExpressedError(f"billed by {' and '.join(billed)}")
        if "output_mtok" not in given and "embed" not in model.id:
            raise _NotExpressedError("the list names no price for output")
        for key in others:
            parent = _PARENTS.get(key)
            if parent is None or key in _ASKED_FOR:
                if given[key]:
                    self._remark(model, f"what it charges for {_label(key)} is not counted")
            elif given[key] > given.get(parent, given["output_mtok" if key.startswith("output") else "input_mtok"]):
                raise _NotExpressedError(f"a higher price for {_label(key)}, which are not counted apart")


def _globs(clause: object) -> tuple[list[str], list[str]]:
    """The patterns that say what a clause does, and its parts that no pattern says."""
    if isinstance(clause, package.ClauseOr):
        parts = [_globs(each) for each in clause.or_]
        return [each for found, _ in parts for each in found], [each for _, missed in parts for each in missed]
    found = _glob(clause)
    return ([], [_told(clause)]) if found is None else ([found], [])


def _glob(clause: object) -> str | None:
    match clause:
        case package.ClauseRegex(regex=regex):
            return _glob_of_regex(regex)
        case package.ClauseAnd(and_=parts):
            return _glob_of_both(parts)
        case package.ClauseEquals(equals=text):
            before, after = "", ""
        case package.ClauseStartsWith(starts_with=text):
            before, after = "", "*"
        case package.ClauseEndsWith(ends_with=text):
            before, after = "*", ""
        case package.ClauseContains(contains=text):
            before, after = "*", "*"
        case _:
            return None
    return None if "*" in text else f"{before}{text}{after}"


def _glob_of_regex(regex: str) -> str | None:
    """The glob that says the same, if there is one: literal text, anchors, and ".*" for anything."""
    at, end, glob = int(regex.startswith("^")), len(regex), ""
    anchored = regex.endswith("$") and not regex.endswith("\\$")
    end -= anchored
    while at < end:
        plain = _PLAIN.match(regex, at, end)
        if plain is not None:
            glob += plain[0][-1]
            at = plain.end()
        elif regex.startswith(".*", at) and at + 2 <= end:
            glob += "*"
            at += 2
        else:
            return None
    if not regex.startswith("^"):
        glob = f"*{glob}"
    if not anchored:
        glob = f"{glob}*"
    return re.sub(r"\*+", "*", glob)


def _glob_of_both(parts: Sequence[object]) -> str | None:
    """A beginning and an end that cannot overlap are one glob."""
    match parts:
        case [package.ClauseStartsWith(starts_with=head), package.ClauseEndsWith(ends_with=tail)]:
            pass
        case [package.ClauseEndsWith(ends_with=tail), package.ClauseStartsWith(starts_with=head)]:
            pass
        case _:
            return None
    longest = min(len(head), len(tail))
    overlap = any(head.lower().endswith(tail.lower()[:size]) for size in range(1, longest + 1))
    return None if overlap or "*" in head + tail else f"{head}*{tail}"


def _told(clause: object) -> str:
    if isinstance(clause, package.ClauseAnd):
        return " and ".join(_told(each) for each in clause.and_)
    return str(next(iter(vars(clause).values())))


def _samples(pattern: str) -> tuple[str, ...]:
    """Names that fit a pattern."""
    return (pattern,) if "*" not in pattern else (pattern.replace("*", ""), pattern.replace("*", "-x1"))


def _steps(price: Decimal | package.TieredPrices) -> set[int]:
    # The package's tiers begin above their number, ours with it.
    return {tier.start + 1 for tier in price.tiers} if isinstance(price, package.TieredPrices) else set()


def _at(price: Decimal | package.TieredPrices, input_tokens: int) -> Decimal:
    if not isinstance(price, package.TieredPrices):
        return price
    reached = [tier.price for tier in price.tiers if input_tokens > tier.start]  # in ascending order
    return reached[-1] if reached else price.base


def _is_dearer(tiers: Tiers, other: Tiers) -> bool:
    """Whether no token of any request is cheaper than with the other."""
    return all(
        mine >= theirs
        for step in {*tiers, *other}
        for mine, theirs in zip(at_step(tiers, step).complete(), at_step(other, step).complete(), strict=True)
    )


def _start_days(model: package.ModelInfo) -> set[dt.date]:
    if isinstance(model.prices, package.ModelPrice):
        return set()
    constraints = [each.constraint for each in model.prices]
    return {each.start_date for each in constraints if isinstance(each, package.StartDateConstraint)}


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)


def _label(key: str) -> str:
    return _LABELS.get(key, key.removesuffix("_mtok").replace("_", " ") + (" tokens" if key.endswith("_mtok") else ""))
