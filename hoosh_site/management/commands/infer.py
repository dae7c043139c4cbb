"""`manage.py infer "prompt" --model M`: one chat request to the running gateway."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
from django.core.management.base import BaseCommand, CommandError

from hoosh_site.management import remote
from providers.sse import Splitter, data_of


class Command(BaseCommand):
    """Sends a prompt as any client would: with a key, through routing and budgets."""

    help = "Send one prompt to a running gateway and print the answer."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The prompt, the model and how to print the answer."""
        parser.add_argument("prompt", help="What to ask; - reads it from standard input.")
        parser.add_argument("-m", "--model", required=True, help="Model name, see `manage.py models`.")
        parser.add_argument("--system", default="", help="System message.")
        parser.add_argument("--max-tokens", type=int, default=None, help="Longest answer, in tokens.")
        parser.add_argument("--temperature", type=float, default=None)
        parser.add_argument("--stream", action="store_true", help="Print the answer while it is made.")
        remote.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask and print."""
        body = request_body(options)
        with remote.Gateway(options) as gateway:
            if options["stream"]:
                self._stream(gateway, body, as_json=options["json"])
                return
            reply = gateway.post("/v1/chat/completions", body)
        self.stdout.write(remote.dump(reply) if options["json"] else remote.printable(answer_text(reply)))

    def _stream(self, gateway: remote.Gateway, body: dict[str, Any], *, as_json: bool) -> None:
        with gateway.stream("POST", "/v1/chat/completions", body={**body, "stream": True}) as reply:
            for chunk in chunks(reply):
                if as_json:
                    self.stdout.write(msgspec.json.encode(chunk).decode())
                else:
                    self.stdout.write(remote.printable(delta_text(chunk)), ending="")
                self.stdout.flush()
        if not as_json:
            self.stdout.write("")


def request_body(options: dict[str, Any]) -> dict[str, Any]:
    """The chat request the options describe."""
    prompt = sys.stdin.read() if options["prompt"] == "-" else options["prompt"]
    messages = [{"role": "system", "content": options["system"]}] if options["system"] else []
    body: dict[str, Any] = {
        "model": options["model"],
        "messages": [*messages, {"role": "user", "content": prompt}],
    }
    for name in ("max_tokens", "temperature"):
        if options[name] is not None:
            body[name] = options[name]
    return body


def chunks(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """The stream's chunks. Raises `CommandError` for an error told in the stream and for a stream cut short."""
    splitter = Splitter()
    for piece in reply.iter_bytes():
        for event in splitter.feed(piece):
            data = data_of(event)
            if data is None or not data.strip():
                continue
            if data.strip() == b"[DONE]":
                return
            chunk = remote.decode(data, "the gateway")
            if isinstance(chunk, dict) and "error" in chunk:
                raise CommandError(f"The stream ended with an error: {_message(chunk['error'])}")
            if isinstance(chunk, dict):
                yield chunk
    raise CommandError("The stream was cut before its end.")


def _message(error: Any) -> str:
    return remote.printable(error.get("message", "") if isinstance(error, dict) else error)


def answer_text(reply: Any) -> str:
    """The answer's text; a tool call or a refusal is shown as JSON."""
    try:
        message = reply["choices"][0]["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise CommandError("The answer has no choices.") from exc
    return content if isinstance(content, str) and content else remote.dump(message)


def delta_text(chunk: dict[str, Any]) -> str:
    """The text a chunk adds."""
    parts = []
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        content = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(content, str):
            parts.append(content)
    return "".join(parts)
