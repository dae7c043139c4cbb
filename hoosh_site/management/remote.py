"""What the client commands share: they talk to a running gateway over HTTP like any other client."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
from django.conf import settings
from django.core.management.base import CommandError

from hoosh_site import env

MAX_REPLY_BYTES = 32 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options every client command has."""
    parser.add_argument("--server", default="", help="Base address of the gateway; default http://127.0.0.1:$PORT.")
    parser.add_argument(
        "--key", default="", help="API key; better in HOOSH_API_KEY, since others on this host can see command lines."
    )
    parser.add_argument("--json", action="store_true", help="Print the answer as JSON.")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="Longest wait for an answer.")


class Gateway:
    """A gateway's HTTP API as the commands use it. Every failure is a `CommandError` in plain words."""

    def __init__(self, options: dict[str, Any]) -> None:
        """`options` are the parsed options of `add_arguments`."""
        server = options["server"] or f"http://127.0.0.1:{settings.HOOSH_PORT}"
        self.address = server.rstrip("/").removesuffix("/v1")
        if not self.address.startswith(("http://", "https://")):
            raise CommandError(f"--server is {server!r}; write it as http://host:port or https://host.")
        key = options["key"] or env.text("HOOSH_API_KEY")
        try:
            self._client = httpx.Client(
                base_url=self.address,
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(options["timeout"], connect=5.0),
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as exc:
            raise CommandError(f"The address or the key cannot be used: {exc}") from exc
        self._has_key = bool(key)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def get(self, path: str, *, accepted: tuple[int, ...] = (200,)) -> tuple[int, Any]:
        """Status and JSON of a GET; any status but `accepted` is a `CommandError`."""
        with self.stream("GET", path, accepted=accepted) as reply:
            return reply.status_code, decode(read(reply), self.address)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST."""
        with self.stream("POST", path, body=body) as reply:
            return decode(read(reply), self.address)

    @contextmanager
    def stream(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, accepted: tuple[int, ...] = (200,)
    ) -> Iterator[httpx.Response]:
        """The reply once its head is there, checked."""
        try:
            with self._client.stream(method, path, json=body) as reply:
                if reply.status_code not in accepted:
                    raise CommandError(self._refusal(reply))
                yield reply
        except httpx.ConnectError as exc:
            raise CommandError(f"No gateway answers at {self.address}. Is it running (manage.py serve)?") from exc
        except httpx.TimeoutException as exc:
            raise CommandError(f"The gateway at {self.address} did not answer in time.") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise CommandError(f"The call to {self.address} failed: {str(exc) or type(exc).__name__}") from exc

    def _refusal(self, reply: httpx.Response) -> str:
        try:
            message = msgspec.json.decode(read(reply))["error"]["message"]
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
            message = f"{self.address} does not answer like a gateway."
        hint = ""
        if reply.status_code == 401 and not self._has_key:
            hint = " Set HOOSH_API_KEY or use --key."
        return f"{message} (HTTP {reply.status_code}){hint}"


def read(reply: httpx.Response) -> bytes:
    """The whole body, bounded."""
    body = bytearray()
    for piece in reply.iter_bytes():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            raise CommandError("The answer is too large.")
    return bytes(body)


def decode(body: bytes, address: str) -> Any:
    """The body as JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CommandError(f"{address} does not answer like a gateway.") from exc


def dump(value: object) -> str:
    """Readable JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def printable(text: object) -> str:
    """Text from elsewhere, safe for a terminal: control characters (escape sequences) replaced."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in str(text))
