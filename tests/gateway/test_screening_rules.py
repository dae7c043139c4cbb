"""Privacy policies on the request path: whose counts, where private requests go, and that nothing is told of them.

`test_screening` has every client's API with every provider's; here all speak the OpenAI API.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.fernet import Fernet

from budgets.journal import HEADER, SHAPE
from budgets.journal_reader import scan
from providers.config import PatternDoc, PrivacyDoc, ProviderDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    GatewayServer,
    canned,
    held,
    hold_records,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.gateway.test_idempotent_requests import Memory
from tests.gateway.test_screening import assert_nowhere
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
MAIL, CARD = "alice.liddell@example.com", "4111 1111 1111 1111"
REDACT = PrivacyDoc(1, "redact", internal="redact", confidential="redact", restricted="redact")
LOCAL = PrivacyDoc(2, "local", internal="local", confidential="local")
REFUSE = PrivacyDoc(3, "refuse", internal="refuse")
OPEN = PrivacyDoc(4, "open", confidential="allow", restricted="allow")
PRIVACY = (REDACT, LOCAL, REFUSE, OPEN)
HTTP = httpx.Client(timeout=20, trust_env=False)
BY_DEFAULT = SettingsDoc(privacy_policy_id=1)


class Echo:
    """An OpenAI-compatible server that answers with what the user said, three characters an event. `heard` is that."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        echo = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                doc = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = doc["messages"][-1]["content"]
                echo.heard.append(said)
                kind = "text/event-stream" if doc.get("stream") else "application/json"
                body = echo.streamed(said) if doc.get("stream") else echo.whole(said)
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body[: len(body) // 2])
                    time.sleep(0.02)
                    self.wfile.write(body[len(body) // 2 :])

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    _USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

    def whole(self, said: str) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
        return json.dumps({**head, "choices": [choice], "usage": self._USAGE}).encode()

    def streamed(self, said: str) -> bytes:
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        deltas: list[Any] = [({"content": said[at : at + 3]}, None) for at in range(0, len(said), 3)]
        chunks: list[Any] = [
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            for delta, finish in [*deltas, ({}, "stop")]
        ]
        chunks.append({**head, "choices": [], "usage": self._USAGE})
        return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


@pytest.fixture
def other() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def serving(directory: Path, *urls: str, **options: Any) -> GatewayServer:
    """A worker in front of these providers, tried in this order."""
    docs = [provider(id, url) for id, url in enumerate(urls, 1)]
    routes = [route(id, provider_id=id, priority=id) for id in range(1, len(urls) + 1)]
    return GatewayServer(
        directory, **{"providers": docs, "routes": routes, "privacy": PRIVACY, "settings": BY_DEFAULT, **options}
    )


def ask(server: GatewayServer, said: str, *, key: str = KEY, path: str = CHAT, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    body = {"model": "m", "messages": [{"role": "user", "content": said}], "max_tokens": 8, **more}
    return HTTP.post(server.url + path, json=body, headers=headers)


def keys(first: int, second: int) -> list[Any]:
    """The two keys, of teams with these policies."""
    return [key_record(1, KEY, privacy_policy_id=first), key_record(2, OTHER_KEY, privacy_policy_id=second, pool_id=2)]


def told(up: FaultUpstream) -> str:
    """What an upstream was last told by the user."""
    return str(up.requests[-1].json["messages"][0]["content"])


# --- whose policy ---------------------------------------------------------------------------------------------------


def test_a_teams_own_policy_counts_before_the_gateways(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, keys=keys(0, OPEN.id)) as server:
        assert ask(server, MAIL).status_code == 200
        assert told(up) == "[EMAIL_1]"
        assert ask(server, MAIL, key=OTHER_KEY).status_code == 200
        assert told(up) == MAIL


def test_without_a_policy_nothing_is_looked_at(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, settings=SettingsDoc(), keys=keys(0, REFUSE.id)) as server:
        answer = ask(server, MAIL, headers={"x-hoosh-explain": "1"})
        assert told(up) == MAIL
        assert "privacy" not in json.loads(answer.headers["x-hoosh-decision"])
        assert ask(server, MAIL, key=OTHER_KEY).status_code == 403


@pytest.mark.parametrize("privacy", [PRIVACY, ()])
def test_a_team_whose_policy_is_not_known_here_yet_is_not_let_through(
    up: FaultUpstream, tmp_path: Path, privacy: tuple[PrivacyDoc, ...]
) -> None:
    with serving(tmp_path, up.url, settings=SettingsDoc(), privacy=privacy, keys=keys(9, 0)) as server:
        answer = ask(server, "nothing private")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "privacy_policy_unavailable"
        assert answer.headers["retry-after"] == "1"
        assert up.requests == []
        assert ask(server, MAIL, key=OTHER_KEY).status_code == 200
        server.reconfigure(msgspec.structs.replace(server.document, privacy=(PrivacyDoc(9, "late"),)))
        assert ask(server, "nothing private").status_code == 200


def test_another_policy_counts_from_its_publication_on(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        for policy, status, sent in ((REFUSE, 403, ""), (OPEN, 200, MAIL), (REDACT, 200, "[EMAIL_1]")):
            settings = SettingsDoc(privacy_policy_id=policy.id)
            server.reconfigure(msgspec.structs.replace(server.document, settings=settings))
            up.requests.clear()
            assert ask(server, MAIL).status_code == status
            assert [request.json["messages"][0]["content"] for request in up.requests] == ([sent] if sent else [])
        off = msgspec.structs.replace(REDACT, disabled=("email",))
        server.reconfigure(msgspec.structs.replace(server.document, privacy=(off,)))
        ask(server, MAIL)
        assert told(up) == MAIL


def test_a_pattern_that_does_not_compile_leaves_the_configuration_before_in_force(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with serving(tmp_path, up.url, patterns=[PatternDoc(1, "project", r"bluebird-\d+", "confidential")]) as server:
        ask(server, "bluebird-7")
        assert told(up) == "[PROJECT_1]"
        good = server.document
        server.document = msgspec.structs.replace(good, patterns=(PatternDoc(1, "project", "blue(bird", "internal"),))
        server.version += 1
        server.call(server.push)
        wait_for(lambda: server.runtime.build_error)
        assert "missing )" in server.runtime.build_error
        assert server.runtime.config_version == 1
        ask(server, "bluebird-8")
        assert told(up) == "[PROJECT_1]"
        off = PatternDoc(1, "project", "blue(bird", "internal", enabled=False)
        server.reconfigure(msgspec.structs.replace(good, patterns=(off,)))
        assert server.runtime.build_error == ""
        ask(server, "bluebird-9")
        assert told(up) == "bluebird-9"


# --- where it goes --------------------------------------------------------------------------------------------------


def remote(id_: int) -> ProviderDoc:
    """A provider at a public address, where nothing answers."""
    return ProviderDoc(id=id_, name=f"far{id_}", kind="custom", base_url="http://192.0.2.1", address_class="public")


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_for_local_providers_only_goes_there(up: FaultUpstream, tmp_path: Path, stream: bool) -> None:
    docs = [remote(1), provider(2, up.url)]
    with serving(tmp_path, "", up.url, providers=docs, settings=SettingsDoc(privacy_policy_id=LOCAL.id)) as server:
        answer = ask(server, MAIL, stream=stream, headers={"x-hoosh-explain": "1"})
        assert answer.status_code == 200
        assert told(up) == MAIL
        decision = json.loads(answer.headers["x-hoosh-decision"])
        assert decision["privacy"] == {"action": "local", "level": "internal", "found": ["email"]}
        assert [candidate["route"] for candidate in decision["candidates"]] == ["r2"]
        assert decision["rejected"] == [{"route": "r1", "reason": "is not local"}]
        explained = ask(server, MAIL, path="/v1/route/explain", stream=stream).json()
        assert [candidate["route"] for candidate in explained["candidates"]] == ["r2"]
        assert explained["privacy"] == decision["privacy"]
        explained = ask(server, "nothing", path="/v1/route/explain", stream=stream).json()
        assert [candidate["route"] for candidate in explained["candidates"]] == ["r1", "r2"]
        assert explained["privacy"] == {"action": "allow", "level": "public", "found": []}


def test_without_a_local_provider_nothing_is_sent_anywhere(up: FaultUpstream, tmp_path: Path) -> None:
    docs, settings = [remote(1), remote(2)], SettingsDoc(privacy_policy_id=LOCAL.id)
    with serving(tmp_path, "", "", providers=docs, settings=settings) as server:
        for path in (CHAT, "/v1/route/explain"):
            answer = ask(server, f"I am {MAIL}", path=path)
            refusal = answer.json().get("refusal") or answer.json()["error"]
            assert refusal["code"] == "privacy_refused"
            assert "may only go to local providers" in refusal["message"]
            assert MAIL not in answer.text
        assert answer.status_code == 200
        assert held(server) == 0
        assert hold_records(tmp_path) == []
        assert ask(server, MAIL, model="nothing").status_code == 403


def test_a_local_provider_that_fails_is_followed_by_local_ones_only(
    up: FaultUpstream, other: FaultUpstream, tmp_path: Path
) -> None:
    docs = [provider(1, up.url), remote(2), provider(3, other.url)]
    settings = SettingsDoc(privacy_policy_id=LOCAL.id)
    with serving(tmp_path, "", "", "", providers=docs, settings=settings) as server:
        up.script("boom-500")
        answer = ask(server, MAIL)
        assert answer.status_code == 200
        assert answer.headers["x-hoosh-route"] == "r3"
        assert [row.provider_id for row in usage_rows(tmp_path)] == [1, 3]


def test_what_goes_to_local_providers_may_be_redacted_as_well(up: FaultUpstream, tmp_path: Path) -> None:
    both = msgspec.structs.replace(LOCAL, redact_local=True)
    settings = SettingsDoc(privacy_policy_id=LOCAL.id)
    with serving(tmp_path, up.url, privacy=[both], settings=settings) as server:
        assert ask(server, MAIL).status_code == 200
        assert told(up) == "[EMAIL_1]"


def test_the_default_level_counts_where_nothing_is_found(up: FaultUpstream, tmp_path: Path) -> None:
    closed = PrivacyDoc(1, "closed", default_level="restricted")
    with serving(tmp_path, up.url, privacy=[closed]) as server:
        answer = ask(server, "nothing private")
        assert answer.status_code == 403
        assert "restricted (its level)" in answer.json()["error"]["message"]
        assert ask(server, "nothing", path="/v1/route/explain").json()["refusal"]["code"] == "privacy_refused"


# --- under way ------------------------------------------------------------------------------------------------------


def test_requests_at_once_never_get_each_others_values(tmp_path: Path) -> None:
    with Echo() as echo, serving(tmp_path, echo.url) as server:

        def one(number: int) -> None:
            mail = f"person{number}@example.com"
            said = f"{mail} and nobody{number}@example.org"
            answer = ask(server, said, stream=bool(number % 2))
            assert answer.status_code == 200
            if number % 2:
                chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
                text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
            else:
                text = answer.json()["choices"][0]["message"]["content"]
            assert text == said

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(60)))
        assert set(echo.heard) == {"[EMAIL_1] and [EMAIL_2]"}
        assert len(echo.heard) == 60


def test_a_large_request_is_looked_at_while_others_go_on(up: FaultUpstream, tmp_path: Path) -> None:
    words = "The quick brown fox jumps over the lazy dog; it costs 12.50 on 2024-01-31. " * 27_000
    with serving(tmp_path, up.url) as server:
        gaps: list[float] = []
        done = threading.Event()

        def tick(before: float) -> None:
            now = time.monotonic()
            gaps.append(now - before)
            if not done.is_set():
                server.loop.call_soon(tick, now)

        ask(server, "warm")
        server.call(tick, time.monotonic())
        gaps.clear()
        answer = ask(server, words + MAIL)
        done.set()
        assert answer.status_code == 200
        assert told(up).endswith("2024-01-31. [EMAIL_1]")
        assert len(words) > 2_000_000
        assert max(gaps) < 0.5  # 30 ms on a quiet machine: reading and writing the JSON, not the scan


@pytest.mark.parametrize("policy", [REDACT, msgspec.structs.replace(REDACT, scan_answers=True)])
def test_a_client_that_leaves_ends_the_call(up: FaultUpstream, tmp_path: Path, policy: PrivacyDoc) -> None:
    with serving(tmp_path, up.url, privacy=[policy]) as server:
        up.script("slow-20ms")
        body = {"model": "m", "messages": [{"role": "user", "content": MAIL}], "max_tokens": 500, "stream": True}
        headers = {"authorization": f"Bearer {KEY}"}
        with HTTP.stream("POST", server.url + CHAT, json=body, headers=headers) as answer:
            assert answer.status_code == 200
            if not policy.scan_answers:
                next(answer.iter_raw())
        wait_for(lambda: usage_rows(tmp_path))
        (row,) = usage_rows(tmp_path)
        assert (row.status, row.error) == (499, "client_left")
        assert wait_for(lambda: up.requests[0].closed_by_peer)
        assert held(server) == 0


def test_a_repeated_request_gets_its_own_values_again(tmp_path: Path) -> None:
    (tmp_path / "vault.key").write_bytes(Fernet.generate_key() + b"\n")
    (tmp_path / "vault.key").chmod(0o600)
    with Echo() as echo, serving(tmp_path, echo.url) as server:
        memory = Memory(server)
        for stream in (False, True):
            headers = {"idempotency-key": f"once-{stream}"}
            first = ask(server, MAIL, stream=stream, headers=headers)
            again = ask(server, MAIL, stream=stream, headers=headers)
            assert first.status_code == again.status_code == 200
            assert MAIL in first.text
            assert again.text == first.text
            assert again.headers["x-hoosh-idempotent-replay"] == "true"
        assert echo.heard == ["[EMAIL_1]", "[EMAIL_1]"]
        assert MAIL not in str(memory.rows)
        server.reconfigure(msgspec.structs.replace(server.document, settings=SettingsDoc(privacy_policy_id=REFUSE.id)))
        headers = {"idempotency-key": "refused"}
        assert ask(server, MAIL, headers=headers).status_code == 403
        server.reconfigure(msgspec.structs.replace(server.document, settings=BY_DEFAULT))
        assert ask(server, MAIL, headers=headers).status_code == 200  # a refusal of ours is not kept


def test_what_is_taken_out_and_what_is_answered_go_through_the_cache_as_placeholders(tmp_path: Path) -> None:
    with Echo() as echo, serving(tmp_path, echo.url, routes=[route(1, cache_s=60)]) as server:
        assert ask(server, MAIL).json()["choices"][0]["message"]["content"] == MAIL
        for stream in (False, True):
            answer = ask(server, "bob@example.net", stream=stream)
            assert answer.headers["x-hoosh-cache"] == "hit"
            assert "bob@example.net" in answer.text
            assert MAIL not in answer.text
        assert echo.heard == ["[EMAIL_1]"]


# --- what is told of it ---------------------------------------------------------------------------------------------


def shapes(directory: Path) -> list[dict[str, Any]]:
    """The decisions in a test server's journal."""
    found = []
    for path in sorted((directory / "journal").glob("*.j")):
        for kind, payload, _, _ in scan(path.read_bytes(), HEADER.size):
            if kind == SHAPE:
                found.append(json.loads(payload[payload.index(b"{") :]))
    return found


def test_decisions_tell_action_level_and_names(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url) as server:
        answer = ask(server, f"{MAIL}, {MAIL}, {CARD}", headers={"x-hoosh-explain": "1"})
        wanted = {"action": "redact", "level": "restricted", "found": ["credit_card", "email"]}
        assert json.loads(answer.headers["x-hoosh-decision"])["privacy"] == wanted
        assert [shape["privacy"] for shape in shapes(tmp_path)] == [wanted]


def test_nothing_that_was_found_is_kept_anywhere(
    up: FaultUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in logs, journals, metrics, events, decisions, headers or errors, whatever is done and goes wrong."""
    caplog.set_level(logging.DEBUG)
    echoed = json.dumps({"error": {"message": f"cannot do {MAIL}", "type": "server_error"}}).encode()
    seen = ""
    with canned(500, echoed) as failing:
        for number, policy in enumerate(PRIVACY):
            directory = tmp_path / policy.name
            settings = SettingsDoc(privacy_policy_id=policy.id)
            guarded = [msgspec.structs.replace(each, scan_answers=True, answer_level="internal") for each in PRIVACY]
            with serving(directory, failing, up.url, privacy=guarded, settings=settings) as server:
                sent: list[Any] = []
                server.runtime.happenings.send = lambda items, sent=sent: sent.append(items) is None
                for stream in (False, True):
                    up.script("boom-500" if number % 2 else "ok")
                    answer = ask(server, f"{MAIL} {CARD}", stream=stream, headers={"x-hoosh-explain": "1"})
                    if answer.status_code != 502:  # there the provider's own words are told to who sent it
                        assert MAIL not in answer.text
                    seen += str(answer.headers)
                ask(server, MAIL, model=[MAIL], headers={"x-hoosh-tags": "none"})
                seen += str(ask(server, MAIL, path="/v1/route/explain").text)
                wait_for(lambda: not server.runtime._unwritten)
                seen += repr(server.runtime.status()) + repr(server.runtime.jobs) + repr(sent)
                seen += "".join(str(family) for family in server.runtime.metrics.__dict__.values())
            assert_nowhere(directory, MAIL, CARD)
    seen += caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
    assert "upstream call failed" in seen
    assert MAIL not in seen
    assert CARD not in seen


def test_refusals_are_counted_and_told_as_events_of_privacy(up: FaultUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, up.url, settings=SettingsDoc(privacy_policy_id=REFUSE.id)) as server:
        items: list[Any] = []
        server.runtime.happenings.send = lambda told: items.append(told) is None
        ask(server, MAIL)
        (item,) = wait_for(lambda: [item for told in items for item in told if item[0] == "refused"])
        assert item[2:5] == ("privacy", "privacy_refused", 403)
        (line,) = wait_for(lambda: (tmp_path / "access.jsonl").read_text().splitlines())
        entry = json.loads(line)
        assert (entry["status"], entry["error"], entry.get("route")) == (403, "privacy_refused", None)


def test_a_stream_cut_for_its_contents_is_told_as_such(tmp_path: Path) -> None:
    silent = msgspec.structs.replace(OPEN, scan_answers=True, answer_level="internal", answer_action="refuse")
    with Echo() as echo:
        settings = SettingsDoc(privacy_policy_id=OPEN.id)
        with serving(tmp_path, echo.url, privacy=[silent], settings=settings) as server:
            items: list[Any] = []
            server.runtime.happenings.send = lambda told: items.append(told) is None
            body = {"model": "m", "messages": [{"role": "user", "content": f"{'word ' * 200}{MAIL}"}], "stream": True}
            data, cut = b"", False
            headers = {"authorization": f"Bearer {KEY}"}
            with HTTP.stream("POST", server.url + CHAT, json=body, headers=headers) as answer:
                assert answer.status_code == 200
                try:
                    for piece in answer.iter_raw():
                        data += piece
                except httpx.RemoteProtocolError:
                    cut = True
            assert cut
            error = json.loads(data.rsplit(b"data: ", 1)[1])["error"]
            assert error["code"] == "privacy_answer_refused"
            assert data.count(b"word ") > 10
            assert b"alice" not in data
            assert b"[DONE]" not in data
            (row,) = wait_for(lambda: usage_rows(tmp_path))
            assert (row.status, row.error) == (403, "privacy_answer_refused")
            (item,) = wait_for(lambda: [item for told in items for item in told if item[0] == "refused"])
            assert item[2:5] == ("privacy", "privacy_answer_refused", 403)
            (line,) = wait_for(lambda: (tmp_path / "access.jsonl").read_text().splitlines())
            assert json.loads(line)["error"] == "privacy_answer_refused"
            assert server.runtime.status()["circuits"] == []
        assert MAIL.encode() not in (tmp_path / "access.jsonl").read_bytes()
