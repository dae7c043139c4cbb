"""Reading the configuration file of hoosh, the project this gateway is compatible with, into a plan. Pure.

Both of its generations are understood (`hoosh.toml` and `hoosh.cyml`, which is TOML too): every key either of them
has is known here, and what this gateway does not do is listed with its value and the reason, never dropped in
silence. Where the generations differ, the second one's defaults count, except a provider's priority (10).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from providers.catalog import CATALOG
from providers.hoosh_keys import KINDS, SECTIONS, STRATEGIES, UNSUPPORTED
from providers.privacy.about import ABOUT
from providers.privacy.patterns import LEVELS

MAX_FILE_BYTES = 4 * 1024 * 1024
DEFAULT_PRIORITY = 10
PRIVACY_NAME = "hoosh"  # of the privacy policy that does what hoosh's scanner does
DEFAULT_CACHE_S, MAX_CACHE_S = 300, 7 * 86_400
RATE_LIMIT = 10**9
MAX_DEPTH = 32  # tables within tables; the formats here need three
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


class HooshTomlError(Exception):
    """The file is not TOML, is far too large or holds what no value here can be; the message names the place."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A key of the file that has no effect: where it stands, what it says, why."""

    key: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.why}"


@dataclass(frozen=True, slots=True)
class PlanSecret:
    """A secret of the file. `text` is None when it is a `$NAME` that is not set."""

    text: str | None = field(repr=False)
    origin: str  # where it stands, for messages
    variable: str = ""  # NAME, when it is one

    @property
    def identity(self) -> tuple[str, str]:
        """What tells two secrets apart, also while their variables are not set."""
        return ("$", self.variable) if self.text is None else ("", self.text)


@dataclass(frozen=True, slots=True)
class PlanRoute:
    """One model pattern of a provider entry."""

    pattern: str
    priority: int
    output_cap: int | None
    enabled: bool
    cache_s: int | None = None  # how long answers are kept; None = the file does not say


@dataclass(slots=True)
class PlanProvider:
    """A provider: all entries of the file with the same type, address, secret and certificates."""

    origin: str
    kind: str
    base_url: str  # as written; "" = the kind's own
    secret: PlanSecret | None
    ca_files: tuple[str, ...] = ()
    enabled: bool = True
    requests_per_minute: int | None = None  # None = no limit
    routes: list[PlanRoute] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PlanPool:
    """A token pool and its capacity."""

    name: str
    capacity_tokens: int


@dataclass(slots=True)
class Plan:
    """What a file asks for. `errors` forbid applying it; the other lists are for the operator to read."""

    providers: list[PlanProvider] = field(default_factory=list)
    pools: list[PlanPool] = field(default_factory=list)
    tokens: list[PlanSecret] = field(default_factory=list)
    tokens_known: bool = True  # False: the variable of one is not set, so `tokens` may lack some that are in use
    patterns: list[dict[str, Any]] = field(default_factory=list)  # of each: DataPattern field -> value
    privacy: dict[str, Any] = field(default_factory=dict)  # PrivacyPolicy field -> value; empty = there is none
    settings: dict[str, Any] = field(default_factory=dict)  # GatewaySettings field -> value
    unsupported: list[Finding] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


_MISSING: Final = object()


def load(data: bytes) -> dict[str, Any]:
    """The tables of a TOML file. Raises `HooshTomlError`."""
    if len(data) > MAX_FILE_BYTES:
        raise HooshTomlError(f"The file has more than {MAX_FILE_BYTES:,} bytes.")
    try:
        tables = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:  # also numbers with thousands of digits and absurd nesting
        # Not the parser's own text for a bad line: that line may hold a secret.
        place = re.search(r"\(at [^)]*\)$", str(exc))
        reason = (
            "it is not UTF-8" if isinstance(exc, UnicodeDecodeError) else f"it is not TOML {place[0] if place else ''}"
        )
        raise HooshTomlError(f"The file cannot be read: {reason.strip()}.") from None
    _check_values(tables)
    return tables


def _check_values(tables: dict[str, Any]) -> None:
    """Refuse what TOML allows, but neither a database nor a message can hold. Without recursion: nesting is free."""
    waiting: list[tuple[str, int, object]] = [("", 0, tables)]
    while waiting:
        place, depth, value = waiting.pop()
        if depth > MAX_DEPTH:
            raise HooshTomlError(f"{place[:200]} is nested more than {MAX_DEPTH} deep.")
        if isinstance(value, dict):
            for key, each in value.items():
                shown = _printable(key)
                if "\0" in key:
                    raise HooshTomlError(f"The key {shown[:200]} holds a NUL character (\\u0000).")
                waiting.append((f"{place}.{shown}" if place else shown, depth + 1, each))
        elif isinstance(value, list):
            waiting += [(f"{place}[{number}]", depth + 1, each) for number, each in enumerate(value, 1)]
        elif isinstance(value, str) and "\0" in value:
            raise HooshTomlError(f"{place[:200]} holds a NUL character (\\u0000).")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise HooshTomlError(f"{place[:200]} is a number beyond 64 bits.")


def parse(tables: Mapping[str, Any], environ: Mapping[str, str]) -> Plan:
    """The plan of a file's tables; `$NAME` is looked up in `environ`."""
    return _Reader(environ).read(tables)


def referenced_variables(data: bytes) -> list[str]:
    """Names of the environment variables a file mentions, in order."""
    found = _VARIABLE.findall(data.decode("utf-8", "replace"))
    return list(dict.fromkeys(bare or braced for bare, braced in found))


class _Reader:
    """Walks the tables once, filling a plan."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._plan = Plan()
        self._cache_s: int | None = None

    def read(self, tables: Mapping[str, Any]) -> Plan:
        """The whole file."""
        for section, value in tables.items():
            known = SECTIONS.get(section)
            if known is None:
                self._plan.unknown.append(section)
                continue
            for where, table in self._tables(section, value):
                self._plan.unknown.extend(f"{where}.{key}" for key in table if key not in known)
                self._list_unsupported(section, where, table)
        self._server(self._first(tables, "server"))
        self._cache(self._first(tables, "cache"))
        for where, table in self._tables("providers", tables.get("providers", [])):
            self._provider(where, table)
        for where, table in self._tables("budgets", tables.get("budgets", [])):
            self._pool(where, table)
        self._tokens(self._first(tables, "auth"))
        self._privacy(tables)
        return self._plan

    def _privacy(self, tables: Mapping[str, Any]) -> None:
        """A policy that does what hoosh does at each level, if its scanner is on, and the patterns of the file."""
        dlp = self._first(tables, "dlp")
        patterns = list(self._tables("dlp_pattern", tables.get("dlp_pattern", [])))
        level = self._level("dlp", dlp, "default_level", default="public")
        if not self._boolean("dlp", dlp, "enabled", default=False):
            why = "dlp.enabled is not true, so nothing is looked for."
            found = [(f"{where}.pattern", table["pattern"]) for where, table in patterns if "pattern" in table]
            self._plan.unsupported += [Finding(place, _shown(pattern), why) for place, pattern in found]
            return
        self._plan.privacy = {"name": PRIVACY_NAME, "default_level": level}
        names = set(ABOUT)
        for where, table in patterns:
            self._pattern_of_dlp(where, table, names)

    def _pattern_of_dlp(self, where: str, table: Mapping[str, Any], names: set[str]) -> None:
        text = self._text(where, table, "pattern") or ""
        level = self._level(where, table, "level", default="confidential")
        name = self._text(where, table, "name") or "custom"
        if not text or level == "public":
            why = "it is empty." if not text else "what is public is not looked for."
            self._plan.unsupported.append(Finding(f"{where}.pattern", _shown(text), why))
            return
        stem = re.sub(r"[^a-z0-9_.:-]+", "-", name.lower()).strip("_.:-")[:28].rstrip("_.:-") or "custom"
        label, number = stem, 1
        while label in names:
            number += 1
            label = f"{stem}-{number}"
        names.add(label)
        self._plan.patterns.append({"name": label, "source": re.escape(text), "level": level, "ignore_case": True})

    def _level(self, where: str, table: Mapping[str, Any], key: str, *, default: str) -> str:
        written = self._text(where, table, key)
        if written is None:
            return default
        if (level := _squeeze(written)) in LEVELS:
            return level
        why = f"it is not a level; {default} is used."
        self._plan.unsupported.append(Finding(f"{where}.{key}", _shown(written), why))
        return default

    def _tables(self, section: str, value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The tables of a section, written `[section]` or `[[section]]`, each with its place in the file."""
        if isinstance(value, Mapping):
            yield section, value
        elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
            for number, entry in enumerate(value, 1):
                yield f"{section}[{number}]", entry
        else:
            self._plan.errors.append(f"{section} must be a table, [{section}] or [[{section}]].")

    def _first(self, tables: Mapping[str, Any], section: str) -> Mapping[str, Any]:
        found = [table for _, table in self._tables(section, tables.get(section, {}))] if section in tables else []
        if len(found) > 1:
            self._plan.warnings.append(f"[[{section}]] stands there {len(found)} times; only the first one counts.")
        return found[0] if found else {}

    def _list_unsupported(self, section: str, where: str, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            why = UNSUPPORTED.get(f"{section}.{key}")
            if why is not None:
                shown = "(secret)" if key in ("signing_key", "api_key", "tokens", "client_key") else _shown(value)
                self._plan.unsupported.append(Finding(f"{where}.{key}", shown, why))

    def _server(self, table: Mapping[str, Any]) -> None:
        strategy = self._text("server", table, "strategy")
        if strategy is not None:
            name, why = STRATEGIES.get(_squeeze(strategy), (None, "it is not a strategy; priority is used."))
            if name is not None:
                self._plan.settings["strategy"] = name
            if why:
                self._plan.unsupported.append(Finding("server.strategy", _shown(strategy), why))
        interval = self._integer("server", table, "health_check_interval_secs", least=0, most=86_400)
        if interval is not None:
            self._plan.settings["probe_interval_s"] = float(interval)

    def _cache(self, table: Mapping[str, Any]) -> None:
        """How long every route of the file keeps answers. Without `ttl_secs` it is what hoosh took, 300 s."""
        if not table:
            return
        enabled = self._boolean("cache", table, "enabled", default=True)
        asked = self._integer("cache", table, "ttl_secs", least=-(2**31), most=2**31 - 1)
        seconds = DEFAULT_CACHE_S if asked is None else asked
        self._cache_s = min(max(0, seconds), MAX_CACHE_S) if enabled else 0
        if enabled and seconds <= 0:
            why = "hoosh's generations mean opposite things by it; no answers are kept."
            self._plan.unsupported.append(Finding("cache.ttl_secs", _shown(seconds), why))
        elif enabled and seconds > MAX_CACHE_S:
            self._plan.unsupported.append(
                Finding("cache.ttl_secs", _shown(seconds), "answers are kept a week at most.")
            )

    def _provider(self, where: str, table: Mapping[str, Any]) -> None:
        plan = self._plan
        written = self._text(where, table, "type")
        if written is None:
            written = "ollama"
            plan.warnings.append(f"{where} names no type; it is taken for Ollama.")
        kind = KINDS.get(_squeeze(written))
        if kind is None or kind not in CATALOG:
            why = "this type of provider is not available yet" if kind else "no such type of provider is known"
            plan.unsupported.append(Finding(f"{where}.type", _shown(written), f"{why}; its entry is left out."))
            return
        base_url = (self._text(where, table, "base_url") or "").strip()
        if base_url and "://" not in base_url:
            base_url = f"http://{base_url}"
            plan.warnings.append(f"{where}.base_url names no scheme; http:// is taken.")
        secret = self._secret(where, table, "api_key")
        entry = PlanProvider(where, kind, base_url, secret, self._texts(where, table, "tls_pinned_certs"))
        entry = self._same_provider(entry) or entry
        self._limit(where, table, entry)
        enabled = self._boolean(where, table, "enabled", default=True)
        priority = self._integer(where, table, "priority", least=-(10**6), most=10**6)
        cap = self._integer(where, table, "max_tokens_limit", least=0, most=2**31 - 1)
        patterns = self._texts(where, table, "models") or ("*",)
        entry.routes += [
            PlanRoute(pattern, DEFAULT_PRIORITY if priority is None else priority, cap or None, enabled, self._cache_s)
            for pattern in dict.fromkeys(self._pattern(where, pattern) for pattern in patterns)
        ]
        entry.enabled = any(route.enabled for route in entry.routes)
        if not any(entry is known for known in plan.providers):
            plan.providers.append(entry)

    def _limit(self, where: str, table: Mapping[str, Any], entry: PlanProvider) -> None:
        """The lowest of what the entries of a provider say, by either generation's name; 0 = none."""
        names = ("rate_limit_rpm", "rate_limit")
        found = [self._integer(where, table, name, least=0, most=RATE_LIMIT) or 0 for name in names]
        for limit in filter(None, found):
            if entry.requests_per_minute not in (None, limit):
                self._plan.warnings.append(f"{where}: its provider has several rate limits; the lowest counts.")
            entry.requests_per_minute = min(limit, entry.requests_per_minute or limit)

    def _same_provider(self, entry: PlanProvider) -> PlanProvider | None:
        def key(each: PlanProvider) -> tuple[object, ...]:
            return each.kind, each.base_url.rstrip("/"), each.secret and each.secret.identity, each.ca_files

        return next((known for known in self._plan.providers if key(known) == key(entry)), None)

    def _pattern(self, where: str, pattern: str) -> str:
        if "*" in pattern.rstrip("*"):
            self._plan.warnings.append(
                f"{where}.models: in {_shown(pattern)} the inner * now stands for any text; hoosh took it literally."
            )
        return re.sub(r"\*+", "*", pattern)

    def _pool(self, where: str, table: Mapping[str, Any]) -> None:
        name = (self._text(where, table, "name") or "").strip()
        capacity = self._integer(where, table, "capacity", least=0, most=10**15)
        if not name or capacity is None:
            self._plan.errors.append(f"{where} needs a name and a capacity.")
        elif any(pool.name == name for pool in self._plan.pools):
            self._plan.errors.append(f"{where}: the pool {_shown(name)} stands there twice.")
        else:
            self._plan.pools.append(PlanPool(name, capacity))

    def _tokens(self, table: Mapping[str, Any]) -> None:
        for number, text in enumerate(self._texts("auth", table, "tokens"), 1):
            secret = self._expand(f"auth.tokens[{number}]", text)
            if not text.strip() or secret.text is None:
                self._plan.warnings.append(f"{secret.origin} is empty or not set; it opens nothing.")
                self._plan.tokens_known &= not secret.variable
            elif any(known.text == secret.text for known in self._plan.tokens):
                self._plan.warnings.append(f"{secret.origin} is the same as one before.")
            else:
                self._plan.tokens.append(secret)

    # Single values

    def _secret(self, where: str, table: Mapping[str, Any], key: str) -> PlanSecret | None:
        text = self._text(where, table, key)
        if text is None or not text.strip():
            return None
        secret = self._expand(f"{where}.{key}", text.strip())
        if secret.text is None:
            self._plan.warnings.append(f"{secret.origin} names {text.strip()}, which is not set.")
        return secret

    def _expand(self, origin: str, text: str) -> PlanSecret:
        match = _VARIABLE.fullmatch(text)
        if match is None:
            return PlanSecret(text, origin)
        name = match[1] or match[2]
        return PlanSecret((self._environ.get(name) or "").strip() or None, origin, name)

    def _text(self, where: str, table: Mapping[str, Any], key: str) -> str | None:
        found: str | None = self._value(where, table, key, str, "a text in quotes")
        return found

    def _texts(self, where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        found = self._value(where, table, key, list, "a list of texts")
        if found is None:
            return ()
        if not all(isinstance(entry, str) for entry in found):
            self._plan.errors.append(f"{where}.{key} must be a list of texts.")
            return ()
        return tuple(found)

    def _boolean(self, where: str, table: Mapping[str, Any], key: str, *, default: bool) -> bool:
        found = self._value(where, table, key, bool, "true or false")
        return default if found is None else found

    def _integer(self, where: str, table: Mapping[str, Any], key: str, *, least: int, most: int) -> int | None:
        found: int | None = self._value(where, table, key, int, "a whole number")
        if found is not None and not least <= found <= most:
            self._plan.errors.append(f"{where}.{key} must be between {least} and {most}.")
            return None
        return found

    def _value(self, where: str, table: Mapping[str, Any], key: str, kind: type, what: str) -> Any:
        found = table.get(key, _MISSING)
        if found is _MISSING:
            return None
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            self._plan.errors.append(f"{where}.{key} must be {what}.")
            return None
        return found


def _squeeze(text: str) -> str:
    return re.sub(r"[\s._-]+", "", text).lower()


def _shown(value: object) -> str:
    text = _printable(f'"{value}"' if isinstance(value, str) else str(value))
    return text if len(text) <= 100 else text[:97] + "..."


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
