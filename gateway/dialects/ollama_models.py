"""What Ollama's clients ask beside inference: which models there are, what one can do, and the version.

Source of the formats: Ollama's API documentation (`/api/tags`, `/api/show`, `/api/ps`, `/api/version`). Sizes, file
formats and times of models that run elsewhere are not known here; their fields are there because clients read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway import strict
from gateway.errors import BadRequestError

_LONG_AGO = "1970-01-01T00:00:00Z"
_NEVER = "9999-12-31T23:59:59Z"

# Labels of a model's card, in the words operators use for them, by the capability this API knows.
_CAPABILITIES = {
    "tools": ("tools", "tool", "tool_calls", "function_calling", "functions"),
    "vision": ("vision", "images", "image"),
    "thinking": ("thinking", "reasoning"),
    "insert": ("insert", "fim"),
}
_EMBEDDING = frozenset(("embedding", "embeddings", "embed"))

_encode = msgspec.json.Encoder().encode


def tags(models: Iterable[tuple[str, str]]) -> bytes:
    """The answer of `/api/tags`: models by name and owner."""
    return _encode({"models": [_listed(name, owner, modified_at=_LONG_AGO) for name, owner in models]})


def ps(models: Iterable[tuple[str, str]]) -> bytes:
    """The answer of `/api/ps`: the models that are ready to answer."""
    return _encode({"models": [_listed(name, owner, expires_at=_NEVER, size_vram=0) for name, owner in models]})


def version(text: str) -> bytes:
    """The answer of `/api/version`."""
    return _encode({"version": text})


def parse_show(body: bytes) -> str:
    """The model that a body of `/api/show` asks about. Raises `BadRequestError`."""
    doc, _ = strict.load(body)
    name = doc.get("model") or doc.get("name")
    if type(name) is not str:
        raise BadRequestError("'model' must be a non-empty string.", param="model")
    return name


def show(name: str, card: Mapping[str, Any]) -> bytes:
    """The answer of `/api/show`. Of `card`, read are `context_tokens`, `max_output_tokens`, `capabilities`, `owner`."""
    owner = str(card.get("owner") or "")
    family = owner or "hoosh"
    labels = frozenset(map(str, card.get("capabilities") or ()))
    info: dict[str, Any] = {"general.architecture": family, "general.basename": name}
    context, output = card.get("context_tokens"), card.get("max_output_tokens")
    if context:
        info[f"{family}.context_length"] = context
    can = ["embedding"] if labels & _EMBEDDING else ["completion"]
    can += [known for known, words in _CAPABILITIES.items() if not labels.isdisjoint(words)]
    told = {
        "modelfile": "",
        "parameters": f"num_predict {output}" if output else "",
        "template": "",
        "details": _details(owner),
        "model_info": info,
        "capabilities": can,
        "modified_at": _LONG_AGO,
    }
    return _encode(told)


def _listed(name: str, owner: str, **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "size": 0, "digest": digest, "details": _details(owner), **more}


def _details(owner: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "",
        "family": owner,
        "families": [owner] if owner else [],
        "parameter_size": "",
        "quantization_level": "",
    }
