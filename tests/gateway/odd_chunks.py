"""Canonical answers and chunks in which any field may be any JSON, for fuzzing what tells them to clients."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "{}", '{"a":1}', "stop", "length", "tool_calls", "text", "openai-responses-v1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


def _of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """An object with any of these fields, each as it should be or odd; sometimes the whole is odd."""
    return st.fixed_dictionaries({}, optional={name: told | ODD for name, told in fields.items()}) | ODD


def odd_chunks() -> st.SearchStrategy[Any]:
    """One document that is an answer and a chunk at once."""
    word = st.sampled_from(["", "x", "y", "{}", '{"a":'])
    place = st.integers(0, 2)
    function = _of({"name": word, "arguments": word})
    google = {"google": _of({"thought_signature": word})}
    call = _of({"index": place, "id": word, "function": function, "extra_content": _of(google)})
    kind = st.sampled_from(["reasoning.text", "reasoning.encrypted", "text", "thinking"])
    names = ("text", "signature", "data", "format", "id", "summary", "thinking")
    detail = _of({"type": kind, "index": place, **dict.fromkeys(names, word)})
    message = _of(
        {
            "content": word | st.lists(detail, max_size=2),
            "reasoning_content": word,
            "reasoning": word,
            "refusal": word,
            "reasoning_details": st.lists(detail, max_size=2),
            "tool_calls": st.lists(call, max_size=3),
            "function_call": function,
            "extra_content": _of(google),
            "annotations": st.lists(_of({"type": word, "url_citation": ODD}), max_size=2),
        }
    )
    token = _of({"token": word, "logprob": ODD, "bytes": ODD, "top_logprobs": ODD})
    logprobs = _of({"content": st.lists(token, max_size=2)})
    choice = _of({"index": place, "message": message, "delta": message, "finish_reason": word, "logprobs": logprobs})
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), place)
    return _of({"id": word, "model": word, "created": place, "usage": _of(counts), "choices": st.lists(choice)})
