"""What translation costs: clients of one API on a provider of another, beside clients whose API the provider speaks.

One conversation of about 4 KB, with a system prompt, a few turns and one tool, written as each API wants it; the
upstream says the same text in each API, in the same number of writes (`bench.mock_apis`). The difference of the
worker's CPU time is the translation's, in both directions together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import scenarios
from bench.mock_apis import PIECES, TEXT
from bench.scenarios import Sample
from bench.targets import Setup, Target
from tests.servers import ProviderEntry

CONNECTIONS = 32
STREAMS = 64  # at once, as in the figures beside nginx
PROVIDERS = ("custom", "anthropic", "google")


@dataclass(frozen=True)
class Case:
    """Clients of one API on a provider of one kind. `beside` names the case it is compared with: "" for those that
    pass, and others are compared with."""

    client: str
    provider: str
    beside: str = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.client} onto {self.provider}"


PASSING = Case("openai", "custom")
CASES = (
    PASSING,
    Case("openai", "anthropic", beside=PASSING.name),
    Case("openai", "google", beside=PASSING.name),
    Case("anthropic", "custom", beside=PASSING.name),  # the same upstream
    Case("anthropic", "anthropic"),
)


class TranslationError(RuntimeError):
    """An answer that is to be measured is wrong."""


# --- the conversation -----------------------------------------------------------------------------------------------

_SYSTEM = (
    "You are the assistant of the platform team. Answer in a few plain sentences, name the runbook you rely on, and "
    "say so when you are not sure. Never invent host names, and never suggest a step that deletes data without backup. "
) * 5
_TURNS = (
    "Our nightly export has been late three times this week. What should I look at first? " * 4,
    "Start with the queue depth at the time the export begins; the runbook 'late exports' has the query. " * 6,
    "It is flat until two o'clock and then grows by a few hundred entries a minute until the export starts. " * 6,
    "That is the time at which the index is rebuilt, and both compete for the same disk. " * 5,
    "Can the two be separated without moving either of them to another host? " * 3,
)
_TOOL = {
    "name": "read_runbook",
    "description": "Read one section of a runbook. Use it before you recommend a step that changes anything.",
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "runbook": {"type": "string", "description": "The runbook's name, as in the list."},
        "section": {"type": "string", "description": "A heading; the whole runbook without it."},
        "format": {"type": "string", "enum": ["text", "steps"]},
    },
    "required": ["runbook"],
}


def _turns() -> list[dict[str, str]]:
    return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(_TURNS)]


def _openai(model: str, *, stream: bool) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, *_turns()],
        "tools": [{"type": "function", "function": {**_TOOL, "parameters": _SCHEMA}}],
        "temperature": 0.2,
        "max_tokens": 256,
    }
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def _anthropic(model: str, *, stream: bool) -> dict[str, Any]:
    body = {
        "model": model,
        "max_tokens": 256,
        "system": _SYSTEM,
        "messages": _turns(),
        "tools": [{**_TOOL, "input_schema": _SCHEMA}],
        "temperature": 0.2,
    }
    return {**body, "stream": True} if stream else body


@dataclass(frozen=True)
class _Client:
    path: str
    body: Callable[..., dict[str, Any]]
    headers: Mapping[str, str]
    end: str  # how its streams end


_CLIENTS = {
    "openai": _Client("/v1/chat/completions", _openai, {}, "data: [DONE]\n\n"),
    "anthropic": _Client(
        "/v1/messages", _anthropic, {"anthropic-version": "2023-06-01"}, 'data: {"type":"message_stop"}\n\n'
    ),
}


# --- measuring ------------------------------------------------------------------------------------------------------


class TranslationSetup(Setup):
    """A gateway with one provider of each kind, all of them the same mock."""

    port_names = ("APIS",)

    def providers(self) -> list[ProviderEntry]:
        """One of each kind, told apart by the model's name."""
        return [
            ProviderEntry(self.url("APIS"), kind=kind, models=[f"bench-{kind}-*"], api_key="bench-only")
            for kind in PROVIDERS
        ]

    def start_mocks(self, stack: contextlib.ExitStack) -> None:
        """The one upstream."""
        self.spawn(stack, [sys.executable, "-m", "bench.mock_apis", str(self.ports["APIS"])], "apis")
        self.wait_for("APIS")


def measure(directory: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """The samples by case, each with "unary" and "stream", and what was added where something is to be compared."""
    with TranslationSetup(directory / "translation") as setup:
        gateway = setup.gateway_target()
        figures: dict[str, Any] = {case.name: {} for case in CASES}
        for kind, stream in (("unary", False), ("stream", True)):
            for name, sample in _samples(setup, gateway, runs, seconds, stream=stream).items():
                figures[name][kind] = sample
    for case in CASES:
        if case.beside:
            told, beside = figures[case.name], figures[case.beside]
            for kind, added in (("unary", "added_request_us"), ("stream", "added_chunk_us")):
                told[added] = round(told[kind]["cpu_us"] - beside[kind]["cpu_us"], 2)
    return figures


def _samples(setup: Setup, gateway: Target, runs: int, seconds: float, *, stream: bool) -> dict[str, Sample]:
    environments = {case.name: _prepared(setup, case, stream=stream) for case in CASES}

    def load(target: Target) -> Sample:
        return scenarios.closed_loop(
            target,
            target.unary_port,
            environments[target.name],
            connections=STREAMS if stream else CONNECTIONS,
            seconds=seconds,
            events=PIECES if stream else 0,
        )

    return scenarios.in_turn([dataclasses.replace(gateway, name=case.name) for case in CASES], runs, load)


def _prepared(setup: Setup, case: Case, *, stream: bool) -> dict[str, str]:
    """What wrk is told to send for a case, tried once."""
    client = _CLIENTS[case.client]
    body = json.dumps(client.body(f"bench-{case.provider}-model", stream=stream), separators=(",", ":")).encode()
    headers = {**setup.gateway.auth, "content-type": "application/json", **client.headers}
    reply = httpx.post(setup.gateway.base_url + client.path, content=body, headers=headers, trust_env=False)
    found = _said(reply.text, client) if stream else _text_of(reply.json())
    if reply.status_code != 200 or found != TEXT:
        raise TranslationError(f"{case.name} was answered with {reply.status_code}:\n{reply.text[:2000]}")
    path = setup.directory / f"{case.client}-{case.provider}-{'stream' if stream else 'unary'}.json"
    path.write_bytes(body)
    lines = "\n".join(f"{name}: {value}" for name, value in client.headers.items())
    return {"BODY_FILE": str(path), "REQUEST_PATH": client.path, "REQUEST_HEADERS": lines}


def _said(streamed: str, client: _Client) -> str:
    """The text of a stream that came to its end."""
    if not streamed.endswith(client.end):
        return ""
    lines = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: {")]
    return "".join(_text_of(json.loads(line)) for line in lines)


def _text_of(told: dict[str, Any]) -> str:
    """The text of a whole answer or of one event, in either of the clients' APIs."""
    if "choices" in told:
        held = [choice.get("message") or choice.get("delta") or {} for choice in told["choices"]]
        return "".join(one.get("content") or "" for one in held)
    if "content" in told:
        return "".join(block.get("text", "") for block in told["content"])
    return str(told.get("delta", {}).get("text", ""))
