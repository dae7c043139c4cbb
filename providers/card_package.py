"""The context windows that the package genai-prices knows. Loading it takes memory: only the import command may.

The package asks the clauses of its models in their order and takes the first that fits. Names and beginnings of names
become patterns; what only a regular expression or the middle of a name tells is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType

from django.core.exceptions import ValidationError
from genai_prices import types as package
from genai_prices.data import providers as _package_data

from providers import validation
from providers.card_list import Facts, Listed
from providers.globs import matcher

SOURCE = "genai-prices"
PROVIDERS: Mapping[str, str] = MappingProxyType(  # the package's name of each kind of ours it knows
    {
        "openai": "openai",
        "anthropic": "anthropic",
        "google": "google",
        "deepseek": "deepseek",
        "mistral": "mistral",
        "groq": "groq",
        "grok": "x-ai",
        "openrouter": "openrouter",
    }
)
_SAMPLE = "-x1"  # what a beginning of names is tried with


def read(package_ids: Iterable[str], providers: Sequence[package.Provider] = _package_data) -> list[Listed]:
    """The patterns of some of the package's providers. Where two know one name, the smaller window counts.

    Raises `KeyError` for a provider the package does not have.
    """
    by_id = {provider.id: provider for provider in providers}
    source = f"{SOURCE} {version('genai-prices')}"
    found: dict[str, Facts] = {}
    for package_id in package_ids:
        provider = by_id[package_id]
        patterns = dict(_patterns(provider))
        tests = [(matcher(pattern), facts) for pattern, facts in patterns.items() if "*" in pattern]
        for pattern, facts in patterns.items():
            # A name without a window is only worth a card where a wider pattern would claim one for it.
            is_claimed = any(test(pattern) and claim.context_tokens for test, claim in tests)
            if facts.context_tokens or is_claimed:
                found[pattern] = _both(found[pattern], facts) if pattern in found else facts
    return [Listed(pattern, facts, source) for pattern, facts in found.items()]


def _patterns(provider: package.Provider) -> Iterator[tuple[str, Facts]]:
    for model in provider.models:
        for pattern in dict.fromkeys((model.id, *_globs(model.match))):
            sample = pattern.replace("*", _SAMPLE)
            owner = provider.find_model(sample)
            if owner is None or (owner is not model and "*" in pattern) or not _is_pattern(pattern):
                continue
            embeds = "embeddings" if "embed" in owner.id else ""
            yield pattern, Facts(owner.name or "", owner.context_window, None, embeds)


def _globs(clause: object) -> Iterator[str]:
    match clause:
        case package.ClauseOr(or_=parts):
            for part in parts:
                yield from _globs(part)
        case package.ClauseEquals(equals=name) if "*" not in name:
            yield name
        case package.ClauseStartsWith(starts_with=name) if "*" not in name:
            yield f"{name}*"


def _is_pattern(text: str) -> bool:
    try:
        validation.pattern(text)
    except ValidationError:
        return False
    return True


def _both(first: Facts, second: Facts) -> Facts:
    windows = [facts.context_tokens for facts in (first, second) if facts.context_tokens]
    return first._replace(
        display_name=first.display_name or second.display_name,
        context_tokens=min(windows, default=None),
        capabilities=first.capabilities or second.capabilities,
    )
