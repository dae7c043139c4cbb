"""What tests of similar questions share: an upstream that makes vectors of known angles, and a model2vec folder."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from budgets.records import UsageRecord
from providers.config import SettingsDoc
from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, key_record, provider, route, usage_rows, wait_for
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
MATE_KEY = "hk-mate-0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
SETTINGS = SettingsDoc(embedding_model="embed")


class Vectors:
    """The upstream: the vector of a text is at the angle `degrees` says, 0 for others. `asked` are the texts."""

    def __init__(self) -> None:
        self.degrees: dict[str, float] = {}
        self.asked: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Answer properly, at once."""
        self.degrees.clear()
        self.asked.clear()
        self.status, self.wait_s = 200, 0.0
        self.body: bytes | None = None  # instead of a proper answer

    def answer(self, asked: dict[str, Any]) -> bytes:
        """The answer to a request."""
        self.asked.append(asked["input"])
        if self.body is not None:
            return self.body
        angle = math.radians(self.degrees.get(asked["input"], 0.0))
        data = [{"object": "embedding", "index": 0, "embedding": [math.cos(angle), math.sin(angle)]}]
        tokens = len(asked["input"].split())
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json.dumps({"object": "list", "model": asked["model"], "data": data, "usage": usage}).encode()


@contextlib.contextmanager
def vectors_upstream() -> Iterator[tuple[Vectors, str]]:
    """Run the upstream; itself and its URL."""
    vectors = Vectors()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = vectors.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            time.sleep(vectors.wait_s)
            with contextlib.suppress(ConnectionError):
                self.send_response(vectors.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield vectors, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def say(
    server: GatewayServer,
    text: Any,
    *,
    model: str = "ok",
    system: str = "",
    key: str = KEY,
    control: str = "",
    timeout: float = 20,
    **more: Any,
) -> httpx.Response:
    """One question; `control` is its Cache-Control header, fields that are None are left out."""
    headers = {"authorization": f"Bearer {key}"} | ({"cache-control": control} if control else {})
    messages = [{"role": "system", "content": system}] if system else []
    body = {"model": model, "max_tokens": 5, "messages": [*messages, {"role": "user", "content": text}], **more}
    body = {name: value for name, value in body.items() if value is not None}
    return httpx.post(server.url + CHAT, json=body, headers=headers, timeout=timeout)


class World:
    """A worker, the upstream that answers and the one that embeds."""

    def __init__(self, up: FaultUpstream, vectors: Vectors, url: str, server: GatewayServer) -> None:
        self.up, self.vectors, self.url, self.server = up, vectors, url, server

    def counts(self) -> dict[str, int]:
        """The figures of the cache."""
        counts: dict[str, int] = self.server.runtime.status()["cache"]
        return counts

    def fresh(self) -> World:
        """Itself, with nothing kept and nothing asked."""
        server = self.server
        wait_for(lambda: not server.runtime.jobs)
        server.call(server.runtime.cache.purge)
        server.runtime.embedder._paused_until = 0.0
        self.up.requests.clear()
        self.vectors.reset()
        self.vectors.degrees |= {"How tall is it?": 0, "What is its height?": 20, "Who built it?": 80}
        return self


def routes(**more: Any) -> list[Any]:
    """The models `ok` and `m1`, whose answers are kept, and `embed`."""
    kept = {"cache_s": 60, "semantic_threshold": 0.9, **more}
    return [route(1, "ok", **kept), route(2, "embed", 2), route(3, "m1", **kept)]


def serving(directory: Path, up: FaultUpstream, url: str, **more: Any) -> GatewayServer:
    """A worker with the models of `routes`."""
    more = {"routes": routes(), "settings": SETTINGS, **more}
    return GatewayServer(directory, providers=[provider(1, up.url), provider(2, url)], **more)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[World]:
    """A world with the keys `KEY`, `OTHER_KEY` of another team and `MATE_KEY` of the first one's."""
    with FaultUpstream() as up, vectors_upstream() as (vectors, url):
        mate = msgspec.structs.replace(key_record(3, MATE_KEY), team_id=100)
        keys = [key_record(1, KEY), key_record(2, OTHER_KEY, pool_id=2), mate]
        with serving(directory, up, url, keys=keys) as server:
            yield World(up, vectors, url, server)


def rows_of(directory: Path) -> tuple[list[UsageRecord], list[UsageRecord]]:
    """The usage rows of embeddings, and the others."""
    rows = usage_rows(directory)
    return [row for row in rows if row.endpoint == "embeddings"], [row for row in rows if row.endpoint != "embeddings"]


def write_tensors(path: Path, **arrays: Any) -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8", "int64": "I64", "uint16": "BF16"}
    for name, array in arrays.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + data)


def write_model(folder: Path, words: dict[str, Sequence[float]]) -> Path:
    """A static model of these words."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["[UNK]", *words]
    model: Any = WordLevel({word: number for number, word in enumerate(names)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = [[0.0] * len(next(iter(words.values()))), *map(list, words.values())]
    write_tensors(folder / "model.safetensors", embeddings=np.array(rows, "float32"))
    return folder
