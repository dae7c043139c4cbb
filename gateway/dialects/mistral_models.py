"""Models as Mistral's own SDK reads them: the extended model object, with the fields without which it reads none.

Its clients speak the OpenAI API otherwise, and are known by their `User-Agent` only. Source: the types of the public
Python client, 3.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_AGENT = b"mistral-client-"


def is_asked(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Mistral's SDK asks."""
    return any(name == b"user-agent" and value.lower().startswith(_AGENT) for name, value in headers)


def model(described: Mapping[str, Any]) -> dict[str, Any]:
    """An extended model object (`gateway.model_cards`) that is a base model of Mistral's as well."""
    can = described["capabilities"]
    answers = {endpoint for provider in described["providers"] for endpoint in provider["endpoints"]}
    told = {
        "completion_chat": "chat" in answers and can["streaming"] is not False,
        "function_calling": can["tools"] is True,
        "vision": can["vision"] is True,
        "reasoning": can["reasoning"] is True,
        "audio": can["audio"] is True,
        "completion_fim": False,
        "fine_tuning": False,
    }
    room = described["context_length"]
    known = {} if room is None else {"max_context_length": room}
    return {**described, "type": "base", "capabilities": {**can, **told}, **known}
