"""The labels of model cards and routes: which there are, what each says, and what they add up to. Pure.

Anybody may use further labels; these are the ones the gateway itself understands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

CHAT, EMBEDDINGS, STREAMING = "chat", "embeddings", "streaming"
NO_STREAMING, CONTEXT_SIZE = "no-streaming", "num_ctx:"

ABILITIES: Mapping[str, str] = MappingProxyType(
    {
        CHAT: "Answers chats and completions. Needed only beside “embeddings”.",
        STREAMING: "Sends its answer piece by piece. Assumed of every model that answers chats.",
        "tools": "Calls tools (functions).",
        "vision": "Takes images.",
        "audio": "Takes or makes sound.",
        "json_schema": "Answers in the shape of a JSON schema.",
        EMBEDDINGS: "Makes embeddings.",
        "thinking": "Thinks before it answers.",
        "insert": "Fills in the middle of a text.",
    }
)
TIERS: Mapping[str, str] = MappingProxyType(  # ascending
    {
        "economy": "Small and cheap.",
        "standard": "For most work.",
        "premium": "For hard work.",
        "reasoning": "For the hardest; it thinks before it answers.",
    }
)
LIMITS: Mapping[str, str] = MappingProxyType(
    {
        "no-system": "Takes no system prompt.",
        NO_STREAMING: "Cannot send its answer piece by piece.",
        "responses-only": "Answers only on the provider's Responses API.",
        "thinking-budget": "Takes a budget of thinking tokens instead of an effort (older Claude models).",
        "truncate": "Ollama: cuts a prompt that is too long instead of refusing it.",
    }
)
KNOWN: Mapping[str, str] = MappingProxyType({**ABILITIES, **TIERS, **LIMITS})

_THINKS = frozenset(("thinking", "reasoning", "thinking-budget"))
_NAMED = (*ABILITIES, "reasoning", "thinking-budget")  # labels that say what a model can do
_OTHER_WORDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("tool", "tool_calls", "tool-calls", "tool_use", "function_calling", "functions"), "tools"),
        **dict.fromkeys(("image", "images"), "vision"),
        **dict.fromkeys(("embed", "embedding"), EMBEDDINGS),
        **dict.fromkeys(("json-schema", "structured_outputs", "structured-outputs"), "json_schema"),
        **dict.fromkeys(("stream", "streams"), STREAMING),
        **dict.fromkeys(("speech", "sound"), "audio"),
        "fim": "insert",
    }
)


def canonical(label: str) -> str:
    """The word known here for what a label says; a label of which none is known stays as it is."""
    return _OTHER_WORDS.get(label, label)


def problem(label: str) -> str:
    """What is wrong with a label that looks like one of ours; "" when nothing is."""
    if not label.startswith(CONTEXT_SIZE.rstrip(":")):
        return ""
    name, colon, size = label.partition(":")
    if name + colon != CONTEXT_SIZE or not size.isascii() or not size.isdigit() or not 0 < len(size) <= 9:
        return f"Write {CONTEXT_SIZE}8192 for a context of 8,192 tokens."
    return ""


def capabilities(labels: Iterable[str]) -> dict[str, bool | None]:
    """What a model can do by its labels. None = nobody has said: there is no label about abilities at all."""
    found = frozenset(map(canonical, labels))
    is_told = not found.isdisjoint(_NAMED)

    def can(*words: str) -> bool | None:
        return not found.isdisjoint(words) if is_told else None

    return {
        "streaming": NO_STREAMING not in found and not embeds_only(found),
        "vision": can("vision"),
        "tools": can("tools"),
        "json_schema": can("json_schema"),
        "embeddings": can(EMBEDDINGS),
        "audio": can("audio"),
        "reasoning": can(*_THINKS),
    }


def embeds_only(labels: Iterable[str]) -> bool:
    """Whether a model with these labels makes embeddings and answers no chats."""
    found = frozenset(map(canonical, labels))
    return EMBEDDINGS in found and CHAT not in found


def tier(labels: Iterable[str]) -> str | None:
    """The highest tier among the labels."""
    found = frozenset(labels)
    return next((name for name in reversed(tuple(TIERS)) if name in found), None)
