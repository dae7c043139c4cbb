"""Requests that wait for a place, through a whole worker: who is answered, in which order, what the others hear."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import pytest

from budgets.records import KeyRecord
from gateway.limits.status import read_status
from gateway.queueing.stats import OUTCOMES
from providers.config import PrivacyDoc, SettingsDoc
from tests.gateway.harness import (
    KEY,
    OTHER_KEY,
    Bank,
    GatewayServer,
    held,
    hold_records,
    key_record,
    provider,
    route,
    usage_rows,
    wait_for,
)
from tests.gateway.test_limits import SERVED, body, code, start
from tests.upstream import FaultUpstream

CHAT = "/v1/chat/completions"
BATCH_KEY = "hk-batch-123456789abcdefghijklmnopqrstuvwxyzABCDEF"
_TLS = ssl.create_default_context()  # made once: it takes as long as some of the requests here
TIMEOUT, FULL = (503, "queue_timeout"), (503, "queue_full")


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def keys() -> list[KeyRecord]:
    return [key_record(1, KEY), key_record(2, OTHER_KEY), key_record(3, BATCH_KEY, queue_class=2)]


def one_place(directory: Path, up: FaultUpstream, *, places: int = 1, **more: Any) -> GatewayServer:
    """A gateway with one provider that limits its requests at once."""
    settings = SettingsDoc(**{name: more.pop(name) for name in list(more) if name in SettingsDoc.__struct_fields__})
    more.setdefault("providers", [provider(1, up.url, concurrent_requests=places)])
    return start(directory, up.url, settings=settings, keys=more.pop("keys", None) or keys(), **more)


class Asked:
    """A request that is under way in a thread; `reply` waits for its answer."""

    def __init__(
        self, server: GatewayServer, model: str = "ok", *, key: str = KEY, path: str = CHAT, **more: Any
    ) -> None:
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        self.seconds = 0.0
        self._got: httpx.Response | None = None
        self.failure: BaseException | None = None
        self.client = httpx.Client(timeout=20, verify=_TLS)

        def ask() -> None:
            began = time.monotonic()
            try:
                self._got = self.client.post(server.url + path, json=body(model, **more), headers=headers)
            except httpx.HTTPError as failure:
                self.failure = failure
            self.seconds = time.monotonic() - began

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()

    @property
    def is_under_way(self) -> bool:
        return self._thread.is_alive()

    @property
    def reply(self) -> httpx.Response:
        self._thread.join(20)
        self.client.close()
        assert self._got is not None, self.failure
        return self._got


class Occupied:
    """The place of a gateway is taken until the end of the block."""

    def __init__(self, server: GatewayServer, *, key: str = KEY, model: str = "stall-mid@occupied") -> None:
        self.client = httpx.Client(timeout=20, verify=_TLS)
        request = self.client.build_request(
            "POST", server.url + CHAT, json=body(model, stream=True), headers={"authorization": f"Bearer {key}"}
        )
        self._reply = self.client.send(request, stream=True)
        assert self._reply.status_code == 200

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        self._reply.close()
        self.client.close()


def leaving(server: GatewayServer) -> socket.socket:
    """A client that has sent a request and leaves when the socket is closed."""
    data = json.dumps(body("ok@leaves")).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(data)}"
    client.sendall(head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + data)
    return client


def waiting(server: GatewayServer, count: int) -> None:
    """Until so many wait."""
    wait_for(lambda: len(server.runtime.queue.room.waiting) == count)


def served(up: FaultUpstream) -> list[str]:
    """The labels of the models asked for, in the order the provider was called; without that of who had the place."""
    labels = [str(request.json["model"]).partition("@")[2] for request in up.inference]
    return [label for label in labels if label != "occupied"]


def in_flight(directory: Path) -> dict[str, int]:
    """What the host's table has in flight, of whatever kind."""
    status = read_status(directory / "limits")
    assert status is not None
    return {slot.name: slot.in_flight for slot in status.slots if slot.in_flight}


def counts(server: GatewayServer) -> dict[str, int]:
    """What became of those that had to wait; what is 0 left out."""
    report = server.runtime.status()["queue"]
    return {name: report[name] for name in OUTCOMES if report[name]}


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_without_a_place_waits_and_is_answered_when_one_comes_free(
    up: FaultUpstream, tmp_path: Path, binding: str, stream: bool
) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            holds, in_pools = len(hold_records(tmp_path)), held(server)
            asked = Asked(server, "ok@second", stream=stream, headers={"x-hoosh-explain": "1"})
            waiting(server, 1)
            time.sleep(0.1)
            assert (len(hold_records(tmp_path)), held(server)) == (holds, in_pools)  # who waits holds nothing
            assert server.runtime.status()["queue"]["waiting"] == [1, 0, 0]
            assert server.runtime.status()["queue"]["oldest_ms"] >= 100
        reply = asked.reply
        assert code(reply) == SERVED
        assert 100 <= int(reply.headers["x-hoosh-queue-ms"]) <= asked.seconds * 1000
        assert json.loads(reply.headers["x-hoosh-decision"])["queued_ms"] == int(reply.headers["x-hoosh-queue-ms"])
        assert counts(server) == {"admitted": 1}
        wait_for(lambda: not in_flight(tmp_path))
        assert held(server) == 0
        assert "x-hoosh-queue-ms" not in Asked(server).reply.headers


def test_a_candidate_with_a_place_is_rather_called_than_waited_for(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, concurrent_requests=1), route(2, priority=20, concurrent_requests=1)]
    with start(tmp_path, up.url, routes=routes, keys=keys()) as server, Occupied(server):
        with Occupied(server) as second:
            asked = Asked(server)
            waiting(server, 1)
            second.release()
            assert asked.reply.headers["x-hoosh-route"] == "r2"  # whichever has one first
        reply = Asked(server).reply
        assert (reply.headers["x-hoosh-route"], "x-hoosh-queue-ms" in reply.headers) == ("r2", False)


def test_limits_of_the_caller_and_limits_per_minute_are_refused_at_once(up: FaultUpstream, tmp_path: Path) -> None:
    callers = [key_record(1, KEY, key_limits=(0, 0, 1)), key_record(2, OTHER_KEY)]
    providers = [provider(1, up.url, concurrent_requests=5, requests_per_minute=2)]
    with one_place(tmp_path, up, providers=providers, keys=callers) as server:
        with Occupied(server):
            assert Asked(server).reply.status_code == 429
            assert code(Asked(server, key=OTHER_KEY).reply) == SERVED
            assert "requests per minute" in Asked(server, key=OTHER_KEY).reply.text
        assert counts(server) == {}


def test_with_no_time_to_wait_a_request_is_refused_at_once(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up, queue_wait_s=0.0) as server, Occupied(server):
        asked = Asked(server)
        assert code(asked.reply) == (429, "rate_limit_exceeded")
        assert asked.reply.headers["retry-after"] == "1"
        assert "1 requests at once of the provider that answers 'ok'" in asked.reply.text
        assert (counts(server), server.runtime.queue.room.waiting) == ({}, {})


def test_a_place_that_could_not_be_used_goes_to_the_next(up: FaultUpstream, tmp_path: Path) -> None:
    poor = key_record(2, OTHER_KEY, pool_id=2)
    bank = Bank({(1, 0): 10**8, (1, 1): 10**15})
    with one_place(tmp_path, up, keys=[key_record(1, KEY), poor], bank=bank) as server:
        with Occupied(server):
            refused = Asked(server, key=OTHER_KEY)
            waiting(server, 1)
            asked = Asked(server)
            waiting(server, 2)
        assert code(refused.reply) == (429, "insufficient_quota")
        assert code(asked.reply) == SERVED
        wait_for(lambda: not in_flight(tmp_path))


def test_who_waited_in_vain_for_a_provider_that_fails_goes_on_to_another(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(1, concurrent_requests=1), route(2, priority=20, requests_per_minute=1)]
    with start(tmp_path, up.url, routes=routes, keys=keys()) as server:
        with Occupied(server):
            assert Asked(server).reply.headers["x-hoosh-route"] == "r2"
            asked = Asked(server, "boom-503@x")
            waiting(server, 1)
        assert asked.reply.status_code == 502
        assert served(up) == ["", "x"]
        wait_for(lambda: not in_flight(tmp_path))


# --- who is next ------------------------------------------------------------------------------------------------------


def test_higher_classes_go_first_whenever_they_came(up: FaultUpstream, tmp_path: Path, worker_binding: None) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            asked = []
            for label, key, priority in (
                ("batch-key", BATCH_KEY, ""),
                ("still-batch", BATCH_KEY, "interactive"),
                ("agent", KEY, "Agent"),
                ("interactive", KEY, ""),
                ("also-interactive", OTHER_KEY, "interactive"),
            ):
                headers = {"x-hoosh-priority": priority} if priority else {}
                asked.append(Asked(server, f"ok@{label}", key=key, headers=headers))
                waiting(server, len(asked))
            assert server.runtime.status()["queue"]["waiting"] == [2, 1, 2]
        assert [code(each.reply) for each in asked] == [SERVED] * 5
        assert served(up) == ["interactive", "also-interactive", "agent", "batch-key", "still-batch"]


def test_a_word_that_is_no_class_is_refused_in_the_callers_dialect(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up) as server:
        reply = Asked(server, headers={"x-hoosh-priority": "urgent"}).reply
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "x-hoosh-priority"
        assert "interactive, agent, batch" in reply.json()["error"]["message"]
        reply = Asked(server, path="/v1/messages", headers={"x-hoosh-priority": ""}).reply
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_key_that_floods_waits_behind_itself_and_not_before_others(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            asked = [Asked(server, f"ok@greedy{number}") for number in range(12)]
            waiting(server, 12)
            asked += [Asked(server, f"ok@other{number}", key=OTHER_KEY) for number in range(2)]
            waiting(server, 14)
        assert [code(each.reply) for each in asked] == [SERVED] * 14
        assert {label for label in served(up)[:4] if label.startswith("other")} == {"other0", "other1"}


# --- who is not answered ----------------------------------------------------------------------------------------------


def test_who_waits_too_long_hears_503_in_the_callers_dialect(up: FaultUpstream, tmp_path: Path, binding: str) -> None:
    with one_place(tmp_path, up, queue_wait_s=0.25) as server, Occupied(server):
        booked = len(usage_rows(tmp_path))
        for path, place, wanted in (
            (CHAT, ("error", "code"), "queue_timeout"),
            ("/v1/messages", ("error", "type"), "overloaded_error"),
            ("/api/chat", ("error",), "No place came free in time. Try again later."),
        ):
            asked = Asked(server, path=path, stream=False)
            reply = asked.reply
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1"), reply.text
            assert 0.25 <= asked.seconds < 1.5
            assert int(reply.headers["x-hoosh-queue-ms"]) >= 250
            told = reply.json()
            for name in place:
                told = told[name]
            assert told == wanted
        assert counts(server) == {"timed_out": 3}
        assert len(usage_rows(tmp_path)) == booked
        assert list(in_flight(tmp_path)) == ["provider:1"]


def test_no_more_than_half_of_a_requests_time_is_spent_waiting(up: FaultUpstream, tmp_path: Path) -> None:
    limited = route(1, total_timeout_s=0.6)
    with one_place(tmp_path, up, routes=[limited, route(2, "stall-mid@*")]) as server, Occupied(server):
        asked = Asked(server)
        assert code(asked.reply) == TIMEOUT
        assert 0.3 <= asked.seconds < 0.6


def test_a_full_queue_says_so_and_still_takes_those_who_wait_less(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up, queue_size=2) as server:
        with Occupied(server):
            first, newest = Asked(server, "ok@first"), None
            waiting(server, 1)
            newest = Asked(server, "ok@newest")
            waiting(server, 2)
            refused = Asked(server).reply
            assert (code(refused), refused.headers["retry-after"]) == (FULL, "1")
            other = Asked(server, "ok@other", key=OTHER_KEY)
            assert code(newest.reply) == FULL
            waiting(server, 2)
        assert [code(each.reply) for each in (first, other)] == [SERVED, SERVED]
        assert counts(server) == {"admitted": 2, "refused_full": 2}


def test_who_would_wait_too_long_hears_so_at_once(up: FaultUpstream, tmp_path: Path, worker_binding: None) -> None:
    with one_place(tmp_path, up, queue_wait_s=1.0) as server:
        asked = [Asked(server, f"first-100ms@{number}") for number in range(40)]
        wait_for(lambda: server.runtime.queue.room.counts["admitted"] >= 9)
        late = Asked(server)
        assert code(late.reply) == TIMEOUT
        assert late.seconds < 0.5
        assert int(late.reply.headers["retry-after"]) >= 2
        assert counts(server)["refused_early"] == 1
        assert code(Asked(server, key=OTHER_KEY).reply) == SERVED  # who does not queue behind itself
        assert {code(each.reply) for each in asked} == {SERVED, TIMEOUT}


def test_a_client_that_leaves_is_not_waited_for(up: FaultUpstream, tmp_path: Path, binding: str) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            staying = Asked(server, "ok@stays", key=OTHER_KEY)
            with leaving(server):
                waiting(server, 2)
            waiting(server, 1)
        assert code(staying.reply) == SERVED
        assert served(up) == ["stays"]
        assert counts(server) == {"admitted": 1, "left": 1}
        wait_for(lambda: not in_flight(tmp_path))
        wait_for(lambda: not server.runtime.jobs)


def test_a_worker_that_stops_ends_those_who_wait_and_one_that_drains_serves_them(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            asked = Asked(server)
            waiting(server, 1)
            server.call(server.runtime.drain)
        assert code(asked.reply) == SERVED
        with Occupied(server):
            asked = Asked(server)
            waiting(server, 1)
            server.call(server.runtime.abort_streams)
            assert code(asked.reply) == (503, "shutting_down")
            assert asked.reply.headers["retry-after"] == "1"
        wait_for(lambda: not in_flight(tmp_path))
        assert (counts(server), server.runtime.queue.room.waiting) == ({"admitted": 1, "left": 1}, {})


def test_one_that_is_ended_in_the_moment_it_gets_its_place_gives_it_to_the_next(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up) as server:
        with Occupied(server):
            first = Asked(server, "ok@first")
            waiting(server, 1)
            waiter = next(iter(server.runtime.queue.room.waiting))
            job = next(job for job in server.runtime.jobs if job.wait_until)
            second = Asked(server, "ok@second", key=OTHER_KEY)
            waiting(server, 2)
            told = waiter.end

            def end(outcome: Any) -> None:
                told(outcome)
                assert job.task is not None
                job.aborted = True  # as `abort_streams` does, before the task has heard of its place
                job.task.cancel()

            waiter.end = end
        assert code(first.reply) == (503, "shutting_down")
        assert code(second.reply) == SERVED
        assert served(up) == ["second"]
        wait_for(lambda: not in_flight(tmp_path))


# --- several workers --------------------------------------------------------------------------------------------------


def test_a_place_that_another_worker_gives_back_is_noticed(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up) as first, one_place(tmp_path, up, bank=first.bank) as second:
        with Occupied(first):
            asked = Asked(second)
            waiting(second, 1)
            released = time.monotonic()
        assert code(asked.reply) == SERVED
        assert time.monotonic() - released < 0.5
        wait_for(lambda: not in_flight(tmp_path))


def test_over_workers_there_are_never_more_at_once_and_all_are_answered(
    up: FaultUpstream, tmp_path: Path, worker_binding: None
) -> None:
    with one_place(tmp_path, up, places=3) as first, one_place(tmp_path, up, places=3, bank=first.bank) as second:
        asked = [
            Asked((first, second)[number % 2], "first-40ms", key=(KEY, OTHER_KEY)[number % 4 // 2])
            for number in range(60)
        ]
        most = 0
        while any(each.is_under_way for each in asked):
            most = max(most, in_flight(tmp_path).get("provider:1", 0))
            time.sleep(0.002)
        assert {code(each.reply) for each in asked} == {SERVED}
        assert most == 3
        wait_for(lambda: not in_flight(tmp_path))
        assert counts(first).keys() | counts(second).keys() == {"admitted"}


# --- what changes meanwhile -------------------------------------------------------------------------------------------


def test_a_key_that_is_revoked_while_it_waits_gets_nothing(up: FaultUpstream, tmp_path: Path, binding: str) -> None:
    with one_place(tmp_path, up) as server, Occupied(server, key=OTHER_KEY):
        asked = Asked(server)
        waiting(server, 1)
        server.call(server.runtime.on_access, 2, True, server.keys[1:], server.pools)
        assert code(asked.reply) == (401, "invalid_api_key")
        assert asked.seconds < 5
        assert served(up) == []
        assert counts(server) == {}


def test_who_waits_goes_where_a_new_configuration_says(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up, queue_wait_s=20.0) as server, Occupied(server):
        asked = [Asked(server, f"ok@{number}") for number in range(25)]
        waiting(server, 25)
        server.reconfigure(msgspec.structs.replace(server.document, providers=(provider(1, up.url),)))
        assert {code(each.reply) for each in asked} == {SERVED}
        assert max(each.seconds for each in asked) < 10
        assert all("x-hoosh-queue-ms" in each.reply.headers for each in asked)
        assert {each.reply.headers["x-hoosh-config"] for each in asked} == {str(server.version)}


def test_who_waits_on_after_a_change_keeps_its_time_and_its_place_in_line(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up, queue_wait_s=2.0) as server:
        with Occupied(server) as occupied:
            late = Asked(server, "ok@late")
            waiting(server, 1)
            time.sleep(1.2)
            then = []
            for number in range(3):
                then.append(Asked(server, f"ok@{number}"))
                waiting(server, 2 + number)
            for _ in range(3):
                server.reconfigure(server.document)
                waiting(server, 4)
            assert code(late.reply) == (503, "queue_timeout")
            assert 1.5 < late.seconds < 4
            occupied.release()
            assert {code(each.reply) for each in then} == {SERVED}
        assert served(up) == ["0", "1", "2"]


def test_a_privacy_policy_that_came_meanwhile_is_kept_to(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up, queue_wait_s=20.0) as server, Occupied(server) as occupied:
        private = Asked(server, messages=[{"role": "user", "content": "write to ada@example.org"}])
        waiting(server, 1)
        settings = msgspec.structs.replace(server.document.settings, privacy_policy_id=1)
        redact = PrivacyDoc(1, "redact", internal="redact", confidential="redact", restricted="redact")
        server.reconfigure(msgspec.structs.replace(server.document, settings=settings, privacy=(redact,)))
        waiting(server, 1)
        occupied.release()
        assert code(private.reply) == SERVED
        assert up.inference[-1].json["messages"][0]["content"] == "write to [EMAIL_1]"


def test_a_route_that_is_gone_ends_the_wait(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up) as server, Occupied(server):
        asked = Asked(server)
        waiting(server, 1)
        server.reconfigure(msgspec.structs.replace(server.document, routes=()))
        assert asked.reply.status_code == 404


# --- what operators see -----------------------------------------------------------------------------------------------


def test_a_changed_configuration_is_what_the_next_request_waits_by(up: FaultUpstream, tmp_path: Path) -> None:
    with one_place(tmp_path, up) as server, Occupied(server):
        settings = msgspec.structs.replace(server.document.settings, queue_wait_s=0.0)
        server.reconfigure(msgspec.structs.replace(server.document, settings=settings))
        assert Asked(server).reply.status_code == 429
        free = provider(1, up.url)
        server.reconfigure(msgspec.structs.replace(server.document, providers=(free,)))
        assert code(Asked(server).reply) == SERVED
