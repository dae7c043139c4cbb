"""Which models this gateway has heard of, and which of them a pattern means: what routes name and providers listed."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError

from providers import validation
from providers.globs import matcher
from providers.models import ProviderProbe, Route

SHOWN = 50  # names told of one pattern
_READ = 20_000  # names of one source


def known_models() -> dict[str, list[str]]:
    """The models known by name, sorted, each with the enabled providers that listed it: two queries."""
    found: dict[str, list[str]] = {}
    probes = ProviderProbe.objects.filter(provider__enabled=True).order_by("provider__name")
    for provider, names in probes.values_list("provider__name", "models"):
        for name in dict.fromkeys(names[:_READ]):
            found.setdefault(name, []).append(provider)
    for name in Route.objects.exclude(pattern__contains="*").order_by().values_list("pattern", flat=True)[:_READ]:
        found.setdefault(name, [])
    return dict(sorted(found.items()))


def told(pattern: str) -> dict[str, Any]:
    """What a pattern means at present.

    `problem` says in words why it is none, else "". `matching` are the first `SHOWN` known models it stands for, each
    with `name` and `providers`; `total` is how many there are, `known` how many models are known at all.
    """
    pattern = pattern.strip()
    try:
        validation.pattern(pattern)
        problem = "" if pattern else "Enter a pattern."
    except ValidationError as exc:
        problem = " ".join(exc.messages)
    names = known_models()
    matches = matcher(pattern)
    hits = [] if problem else [name for name in names if matches(name)]
    return {
        "pattern": pattern,
        "problem": problem,
        "matching": [{"name": name, "providers": names[name]} for name in hits[:SHOWN]],
        "total": len(hits),
        "known": len(names),
    }
