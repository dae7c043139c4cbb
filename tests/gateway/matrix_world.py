"""One worker in front of one fake of every kind of provider, and what became of a request that went through both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from budgets.journal import COMPLETE, HEADER
from budgets.journal import KEY as RECORD_KEY
from budgets.journal_reader import scan
from budgets.records import PoolRecord, UsageRecord
from providers.config import CredentialDoc, ProviderDoc, RouteDoc, SettingsDoc
from providers.vault import Vault
from tests.gateway import openai_schema
from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, wait_for
from tests.gateway.matrix_clients import CLIENTS, Client, Reply
from tests.provider_fakes import KINDS, ProviderFakes, Seen
from tests.provider_fakes_base import Json

# A row of the matrix -> the kind of provider and its model there. One model of OpenAI's answers on Responses only.
ROWS: dict[str, tuple[str, str]] = {
    "openai": ("openai", "gpt-up"),
    "codex": ("openai", "gpt-codex-up"),
    "anthropic": ("anthropic", "claude-up"),
    "google": ("google", "gemini-3-up"),
    "ollama": ("ollama", "llama-up"),
    "custom": ("custom", "vllm-up"),
}
# The same model under the provider's own name: nothing of a request has to change.
SAME = {"openai": "gpt-same", "codex": "gpt-codex-same", "anthropic": "claude-same"}
SAME |= {"google": "gemini-3-same", "ollama": "llama-same", "custom": "vllm-same"}
# Another kind of provider for each row; those with legacy completions get one that has them as well.
OTHERS = {"openai": "ollama", "codex": "anthropic", "anthropic": "google"}
OTHERS |= {"google": "anthropic", "ollama": "custom", "custom": "openai"}
COMPLETIONS = ("openai", "ollama", "custom")  # the providers that have legacy completions
NATIVE = {
    "openai": ("openai", "custom"),
    "completions": COMPLETIONS,
    "responses": ("openai", "codex"),
    "anthropic": ("anthropic",),
    "gemini": ("google",),
    "ollama_chat": ("ollama",),
    "ollama_generate": ("ollama",),
}  # who speaks what the client speaks


class Books:
    """The usage records of a server's journal by request id. Only what is new is read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends: dict[Path, int] = {}
        self.rows: dict[str, list[UsageRecord]] = {}

    def read(self) -> None:
        """Take in what was written since the last time."""
        for path in sorted((self._directory / "journal").glob("*.j"), key=lambda path: path.name):
            data = path.read_bytes()
            for kind, payload, _, end in scan(data, self._ends.get(path, HEADER.size)):
                self._ends[path] = end
                if kind == COMPLETE:
                    row = msgspec.msgpack.decode(payload[RECORD_KEY.size :], type=UsageRecord)
                    self.rows.setdefault(row.rid.hex(), []).append(row)


@dataclass
class Got:
    """What came back. `clean`: the answer ended as HTTP ends one. `seen`: what the providers were asked for it."""

    status: int
    headers: httpx.Headers
    data: bytes
    clean: bool
    seen: list[Seen]

    @property
    def request_id(self) -> str:
        """The id by which the books know the request."""
        return self.headers["x-hoosh-request"]


def routes_of(numbers: dict[str, int]) -> list[RouteDoc]:
    """The routes to providers with these ids: `m-ROW` to the row's model, its own name to itself, and `next-ROW` to a
    provider of another kind, which fails, and then to the row's."""
    made: list[RouteDoc] = []

    def add(kind: str, pattern: str, upstream_model: str = "", priority: int = 10) -> None:
        number = len(made) + 1
        made.append(
            RouteDoc(
                id=number,
                name=f"r{number}",
                pattern=pattern,
                provider_id=numbers[kind],
                upstream_model=upstream_model,
                priority=priority,
            )
        )

    for row, (kind, upstream) in ROWS.items():
        add(kind, f"m-{row}", upstream)
        add(kind, SAME[row])
        add(OTHERS[row], f"next-{row}", "FAIL500-up", 1)
        add(kind, f"next-{row}", upstream, 2)
    return made


# The providers of a world: by name, which is that of the fake, their kind and base URL.
Providers = Mapping[str, tuple[str, str]]


class World:
    """The worker (`server`), the providers (`fakes`) and a client's connections to the worker.

    `providers` are those of the matrix unless given, and so are `routes`, made of their ids. `server` are further
    arguments of the worker.
    """

    def __init__(
        self,
        directory: Path,
        fakes: ProviderFakes,
        settings: SettingsDoc,
        *,
        providers: Providers | None = None,
        routes: Callable[[dict[str, int]], list[RouteDoc]] = routes_of,
        **server: Any,
    ) -> None:
        found = providers or {kind: (kind, fakes.url(kind)) for kind in KINDS}
        self.fakes, self.books = fakes, Books(directory)
        (directory / "vault.key").write_bytes(Vault.new_key() + b"\n")
        (directory / "vault.key").chmod(0o600)
        self._vault = Vault.load(directory / "vault.key")
        numbers = {name: number for number, name in enumerate(found, 1)}
        keyed = {name: url for name, (kind, url) in found.items() if kind != "demo"}
        documents = [
            ProviderDoc(
                id=number,
                name=f"up-{name}",
                kind=found[name][0],
                base_url=found[name][1],
                address_class="loopback",
                credentials=(CredentialDoc(id=number, name="key", revision=1),) if name in keyed else (),
            )
            for name, number in numbers.items()
        ]
        self.server = GatewayServer(
            directory,
            providers=documents,
            routes=routes(numbers),
            settings=settings,
            pools=[PoolRecord(id=1, name="limited"), PoolRecord(id=2, name="counted", units=())],
            **server,
        )
        self.server.binding = "worker"
        self._secrets = {numbers[name]: self._vault.seal(fakes.secret(name), url) for name, url in keyed.items()}

    def __enter__(self) -> World:
        self.server.__enter__()
        self.server.call(self.server.runtime.on_secrets, self._secrets)
        self.server.reconfigure(self.server.document)
        self.http = httpx.Client(base_url=self.server.url, headers={"x-api-key": KEY}, timeout=20)
        return self

    def __exit__(self, *exc: Any) -> None:
        self.http.close()
        self.server.__exit__(*exc)

    def send(self, method: str, path: str, body: Json | bytes | None = None, **headers: str) -> Got:
        """One request and its whole answer, cut or not. Header names are written with `_`."""
        self.fakes.seen.clear()
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        data, clean = b"", True
        with self.http.stream(method, path, content=content, headers=told) as reply:
            try:
                for piece in reply.iter_raw():
                    data += piece
            except httpx.RemoteProtocolError:
                clean = False
        return Got(reply.status_code, reply.headers, data, clean, list(self.fakes.seen))

    def ask(self, client: Client, model: str, body: Json, *, stream: bool) -> Got:
        """One request of a client."""
        return self.send("POST", client.path(model, stream=stream), body)

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Within this requests draw on a pool that only counts."""
        self.http.headers["x-api-key"] = OTHER_KEY
        try:
            yield
        finally:
            self.http.headers["x-api-key"] = KEY

    def read(self, client: Client, got: Got, *, stream: bool) -> Reply:
        """A good answer as the client reads it."""
        assert got.status == 200, (got.data, [seen.refusal for seen in got.seen])
        assert [seen.refusal for seen in got.seen] == [""]
        assert got.clean
        check_schema(client, got, stream=stream)
        if not stream:
            assert got.headers["content-type"] == "application/json"
            return client.whole(got.data)
        assert got.headers["content-type"] == client.stream_type
        return client.streamed(got.data)

    def rows(self, got: Got) -> list[UsageRecord]:
        """What the books say of a request by now: one record for each call of a provider."""
        self.books.read()
        return self.books.rows[got.request_id]

    def row(self, got: Got) -> UsageRecord:
        """The same where one provider was called."""
        (row,) = self.rows(got)
        return row

    def row_later(self, known: set[str]) -> UsageRecord:
        """The record of a request whose client did not wait for it: the only one that is not among the known."""

        def new() -> list[str]:
            self.books.read()
            return [id for id in self.books.rows if id not in known]

        (found,) = wait_for(new)
        (row,) = self.books.rows[found]
        return row


def passed(client: Client, got: Got) -> bool:
    """Whether the provider speaks the client's API, so that what it says passes as it is."""
    path = client.path("", stream=False)
    return any(seen.path.endswith(path) for seen in got.seen)


def check_schema(client: Client, got: Got, *, stream: bool) -> None:
    """What a client of OpenAI's APIs got is what those document: to the last field where the gateway wrote it, and as
    far as all servers of that API do so where it is the provider's."""
    if client.name in openai_schema.WHOLE:
        wrong = openai_schema.wrong_in(client.name, got.data, stream=stream, lenient=passed(client, got))
        assert not wrong, "\n".join(wrong)


def pairs(*, tools: bool = False, thinks: bool = False, streams: tuple[bool, ...] = (False, True)) -> list[Any]:
    """Every client with every row of providers that serves it, whole and streamed: (client, row, stream)."""
    found = []
    for name, client in CLIENTS.items():
        if (tools and not client.tools) or (thinks and not client.thinks):
            continue
        for row in ROWS:
            for stream in streams:
                if stream or name != "gemini_array":  # whole answers are the same as without
                    found.append(pytest.param(name, row, stream, id=f"{name}-{row}-{'stream' if stream else 'whole'}"))
    return found


def worlds(directory: Path, settings: SettingsDoc) -> Iterator[World]:
    """A world for a fixture."""
    with ProviderFakes() as fakes, World(directory, fakes, settings) as world:
        yield world
