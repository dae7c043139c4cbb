"""Which parameters of the canonical form a provider honours, and what becomes of those it does not.

Each adapter declares one rule for each field it cannot simply pass on. `DROP`: leaving it out does not change what the
answer means (a hint, a label); it is left out and the caller is told in `x-hoosh-dropped-params`. `REFUSE`: it does;
the request is refused where the operator's setting is strict, and treated as `DROP` where it is lenient. `PASS`: it is
sent on. A value that says no more than the field's absence is left out under every rule, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from providers.canonical import Target, UnsupportedParamError
from providers.catalog import DROP, PASS, REFUSE, WRITTEN

__all__ = ["DROP", "PASS", "REFUSE", "dropped", "header", "is_default", "unsupported"]


def dropped(
    doc: Mapping[str, Any], target: Target, rules: Mapping[str, str], translated: Collection[str]
) -> tuple[str, ...]:
    """The fields of a request that are left out. `translated` are those the adapter carries over.

    A field that has neither a rule nor a translation is dropped. `null` is as good as absent, and so is a value that is
    the API's own default (`n` 1, penalties 0, …). Raises `UnsupportedParamError`.
    """
    left: list[str] = []
    for name, value in doc.items():
        if name in translated or name in WRITTEN or value is None or is_default(name, value):
            continue
        if target.strict and rules.get(name) == REFUSE:
            raise unsupported(name, target)
        left.append(name)
    return tuple(left)


def unsupported(name: str, target: Target, what: str = "") -> UnsupportedParamError:
    """The refusal of one field; `what` says more than that the provider has no such parameter.

    The message always quotes the field: some APIs tell their clients nothing but the message.
    """
    label, model = target.kind.label, target.upstream_model
    message = what or f"The provider ({label}) cannot honour '{name}'"
    if f"'{name}'" not in message:
        message = f"{message} ('{name}')"
    where = f" for the model '{model[:100]}'" if model else ""
    return UnsupportedParamError(name, f"{message}{where}. Leave it out or ask for another model.")


_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "store": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("auto",),
    "functions": ([],),
    "echo": (False,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "best_of": (1,),
    "top_logprobs": (0,),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
}


def is_default(name: str, value: Any) -> bool:
    """Whether the value says no more than the field's absence."""
    flag = isinstance(value, bool)
    return any(value == default and isinstance(default, bool) is flag for default in _DEFAULTS.get(name, ()))


def header(names: Iterable[str]) -> bytes:
    """The value of `x-hoosh-dropped-params`: names, each once, in order, only plain ones and not too many."""
    plain = [name for name in dict.fromkeys(names) if name.isascii() and name.isprintable() and len(name) <= 64]
    return ", ".join(plain[:32]).encode("ascii")
