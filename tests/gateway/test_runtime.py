"""A worker's state under pushes from control that fail, repeat or are large, and under faults of its own books."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.fernet import Fernet

from budgets.records import Draw, PoolRecord, PriceRecord, UsageRecord
from gateway.runtime import Runtime, RuntimeOptions
from gateway.snapshot import MODEL_TESTS, Candidate, list_models
from providers.config import CardDoc, ConfigDocument, CredentialDoc, PolicyDoc, SettingsDoc, pack
from providers.routing import Shape
from providers.vault import Vault
from tests.gateway.harness import KEY, OTHER_KEY, GatewayServer, held, key_record, provider, route, usage_rows, wait_for
from tests.upstream import FaultUpstream


@pytest.fixture
def up() -> Iterator[FaultUpstream]:
    with FaultUpstream() as server:
        yield server


def ask(server: GatewayServer, model: str, *, key: str = KEY, size: int = 10) -> httpx.Response:
    content = {"model": model, "messages": [{"role": "user", "content": "x" * size}], "max_tokens": 3}
    return httpx.post(server.url + "/v1/chat/completions", json=content, headers={"x-api-key": key}, timeout=20)


def models(server: GatewayServer) -> list[str]:
    reply = httpx.get(server.url + "/v1/models", headers={"x-api-key": KEY})
    return [model["id"] for model in reply.json()["data"]]


def test_a_build_that_fails_leaves_the_whole_old_configuration_and_is_tried_again(
    up: FaultUpstream, tmp_path: Path
) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, "old")]) as server:
        # There is no vault key here, so a configuration with a credential cannot be built.
        sealed = provider(1, up.url, credentials=(CredentialDoc(1, "c", 1),))
        document = ConfigDocument(
            providers=(sealed,), routes=(route(2, "new"),), settings=SettingsDoc(body_limit_bytes=1000)
        )
        server.call(server.runtime.on_config, 2, pack(document))
        wait_for(lambda: server.runtime.status()["build_error"])
        server.call(server.runtime.on_health, [])
        server.call(server.runtime.on_access, 2, False, [key_record(2, OTHER_KEY, enabled=False)], [])
        wait_for(lambda: ask(server, "old", key=OTHER_KEY).status_code == 401, timeout_s=2)
        reply = ask(server, "old", size=2000)
        assert (reply.status_code, reply.headers["x-hoosh-config"]) == (200, "1")
        assert ask(server, "new").status_code == 404
        assert models(server) == ["old"]
        assert server.runtime.config_version == 1
        assert server.runtime.status()["build_error"]

        key = Fernet.generate_key()
        (tmp_path / "vault.key").write_bytes(key + b"\n")
        (tmp_path / "vault.key").chmod(0o600)
        server.call(server.runtime.on_secrets, {1: Vault([key]).seal("sk-up", up.url)})
        wait_for(lambda: server.runtime.config_version == 2, timeout_s=2)
        assert server.runtime.status()["build_error"] == ""
        assert ask(server, "new").headers["x-hoosh-config"] == "2"
        assert up.inference[-1].headers["authorization"] == "Bearer sk-up"
        assert ask(server, "new", size=2000).status_code == 413
        assert ask(server, "old").status_code == 404
        assert models(server) == ["new"]


def test_only_what_changed_is_made_again(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(n, f"m{n}", 1 + n % 2) for n in (1, 2, 3, 4)]
    providers = [provider(1, up.url), provider(2, up.url)]
    with GatewayServer(tmp_path, providers=providers, routes=routes) as server:

        def made(version: int, **changes: Any) -> Mapping[int, Candidate]:
            document = ConfigDocument(**{"providers": tuple(providers), "routes": tuple(routes), **changes})
            server.call(server.runtime.on_config, version, pack(document))
            wait_for(lambda: server.runtime.config_version == version)
            candidates: Mapping[int, Candidate] = server.runtime.snapshot.candidates
            return candidates

        first = made(2)
        edited = route(3, "m3", 2, priority=1)
        second = made(3, routes=(routes[0], edited, routes[3]))
        assert second.keys() == {1, 3, 4}
        assert second[1] is first[1]
        assert second[4] is first[4]
        assert second[3].route == edited
        assert ask(server, "m3").status_code == ask(server, "m1").status_code == 200
        third = made(4, providers=(providers[0], msgspec.structs.replace(providers[1], name="other")))
        assert third[2] is not first[2]
        assert third[4] is second[4]
        assert third[3].provider.name == "other"
        fourth = made(5, settings=SettingsDoc(total_timeout_s=7.0))
        assert {candidate.limits.total_s for candidate in fourth.values()} == {7.0}
        server.call(server.runtime.on_cards, [CardDoc("m1", capabilities=("tools",))], [], {})
        wait_for(lambda: server.runtime.snapshot.candidates[1] is not fourth[1])
        assert ask(server, "m1").status_code == 200


def test_a_failed_build_is_tried_again_with_any_later_push(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1, "old")]) as server:
        sealed = provider(1, up.url, credentials=(CredentialDoc(1, "c", 1),))
        server.call(server.runtime.on_config, 2, pack(ConfigDocument(providers=(sealed,), routes=(route(2, "new"),))))
        wait_for(lambda: server.runtime.status()["build_error"])
        (tmp_path / "vault.key").write_bytes(Fernet.generate_key() + b"\n")
        (tmp_path / "vault.key").chmod(0o600)
        server.call(server.runtime.on_health, [])
        wait_for(lambda: server.runtime.config_version == 2, timeout_s=2)
        assert ask(server, "new").status_code == 200


def test_a_pool_that_is_not_in_a_full_push_is_gone(up: FaultUpstream, tmp_path: Path) -> None:
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)]) as server:
        assert 2 in server.runtime.snapshot.pools
        server.call(server.runtime.on_access, 2, True, server.keys[:1], [PoolRecord(id=1, name="default")])
        wait_for(lambda: set(server.runtime.snapshot.pools) == {1})
        assert ask(server, "m").status_code == 200
        assert ask(server, "m", key=OTHER_KEY).status_code == 401


def test_the_model_list_is_made_in_slices_and_only_when_it_may_have_changed(up: FaultUpstream, tmp_path: Path) -> None:
    routes = [route(n, f"*-{n}*") for n in range(1, 1001)]
    discovered = {1: [f"model-{n}" for n in range(500)]}
    document = ConfigDocument(providers=(provider(1, up.url),), routes=tuple(routes), settings=SettingsDoc())
    made = list(list_models(document, discovered))
    assert made.count(None) == 1000 * 500 // MODEL_TESTS
    assert made[-1] is not None
    assert len(made[-1]) == 499  # each but model-0
    with GatewayServer(tmp_path, providers=document.providers, routes=routes, discovered=discovered) as server:
        first = server.runtime.snapshot.models
        assert first == made[-1]
        server.call(server.runtime.on_access, 2, False, [key_record(2, OTHER_KEY, enabled=False)], [])
        wait_for(lambda: server.runtime.snapshot.keys.keys() == {server.keys[0].digest})
        assert server.runtime.snapshot.models is first
        server.call(server.runtime.on_cards, [], [], {1: ["model-7"]})
        wait_for(lambda: server.runtime.snapshot.models == (("model-7", "up1"),))


def test_a_mistyped_price_costs_the_most_that_can_be_booked_and_no_hold_is_lost(
    up: FaultUpstream, tmp_path: Path
) -> None:
    prices = [PriceRecord(id=5, provider="*", pattern="*", input=2**62, output=2**62)]
    with GatewayServer(tmp_path, providers=[provider(1, up.url)], routes=[route(1)], prices=prices) as server:
        assert ask(server, "ok").status_code == 200
        (row,) = usage_rows(tmp_path)
        assert held(server) == 0
    assert row.cost_pico == 2**63 - 1


def record(**more: Any) -> UsageRecord:
    values: dict[str, Any] = dict.fromkeys(UsageRecord.__struct_fields__, 0)
    values.update(
        rid=b"r" * 16, endpoint="chat", model="m", upstream_model="m", error="", stream=False, shape=b"s" * 16
    )
    values.update(pool_id=1, tokens=30, held=100, client_request_id="", draws=(Draw(1, 0, 0, 100), Draw(1, 1, 0, 900)))
    return UsageRecord(**(values | more))


def test_a_record_that_cannot_be_written_at_all_raises_and_keeps_what_the_ledger_will_charge(tmp_path: Path) -> None:
    async def story() -> None:
        runtime = Runtime(RuntimeOptions("w0-test", 0, tmp_path / "journal", tmp_path / "vault.key", "test"))
        await runtime.start()
        runtime.desk.set_pools([PoolRecord(id=1, name="default", units=(0, 1))])
        for unit in (0, 1):
            runtime.desk.on_granted(1, unit, 0, 10_000, True, False, 0)
        chain = runtime.desk.chain((1,))
        assert runtime.desk.hold(chain, 100, 900)
        with pytest.raises(OverflowError):
            runtime.book(record(cost_pico=2**70), Shape(digest=b"s" * 16, payload=b"{}"), 900)
        assert [(entry["held"], entry["used"]) for entry in runtime.desk.status()] == [(0, 100), (0, 900)]
        assert runtime.journal_writable
        assert runtime.desk.hold(chain, 100, 900)
        runtime.book(record(cost_pico=70), Shape(digest=b"s" * 16, payload=b"{}"), 900)
        assert [(entry["held"], entry["used"]) for entry in runtime.desk.status()] == [(0, 130), (0, 970)]
        await runtime.stop()

    asyncio.run(story())
    assert [row.tokens for row in usage_rows(tmp_path)] == [30]


FULL_DISK = """
import asyncio, pathlib, resource, signal, sys
from budgets.journal import JournalError
from budgets.records import PoolRecord
from gateway.runtime import Runtime, RuntimeOptions
from providers.routing import Shape
from tests.gateway.test_runtime import record

directory = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

async def story():
    runtime = Runtime(RuntimeOptions("w0-test", 0, directory / "journal", directory / "vault.key", "test"))
    await runtime.start()
    runtime.desk.set_pools([PoolRecord(id=1, name="default", units=(0, 1))])
    for unit in (0, 1):
        runtime.desk.on_granted(1, unit, 0, 10_000, True, False, 0)
    draws = runtime.desk.hold(runtime.desk.chain((1,)), 100, 900)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    shape = Shape(digest=b"s" * 16, payload=b"{}")
    try:
        runtime.book(record(draws=draws, tokens=30, cost_pico=70), shape, 900)
        raise SystemExit("it was written")
    except JournalError:
        pass
    assert [entry["held"] for entry in runtime.desk.status()] == [100, 900], "nothing is given back unbooked"
    assert not runtime.journal_writable and runtime.status()["unwritten"] == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    async with asyncio.timeout(5):
        while not runtime.journal_writable:
            await asyncio.sleep(0.05)
    assert [(entry["held"], entry["used"]) for entry in runtime.desk.status()] == [(0, 30), (0, 70)]
    await runtime.stop()

asyncio.run(story())
"""


def test_a_record_the_disk_refused_is_written_later_and_until_then_its_hold_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (row,) = usage_rows(tmp_path)
    assert (row.tokens, row.cost_pico, len(row.draws)) == (30, 70, 2)


def test_the_journal_of_a_quiet_worker_is_synced_though_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def seen(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        fdatasync(fd)

    async def story() -> None:
        options = RuntimeOptions(
            "w0-test", 0, tmp_path / "journal", tmp_path / "vault.key", "test", journal_sync="host"
        )
        runtime = Runtime(options)
        await runtime.start()
        await asyncio.sleep(0.6)
        synced.clear()
        runtime.journal.delivered(b"r" * 16, 0, 64, 256)
        async with asyncio.timeout(5):
            while not synced:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.6)
        assert synced == [runtime.journal.bytes_written], "once is enough"
        await runtime.stop()

    monkeypatch.setattr(os, "fdatasync", seen)
    asyncio.run(story())


def test_round_robin_stays_even_while_one_route_is_out(up: FaultUpstream, tmp_path: Path) -> None:
    dead = provider(2, "http://127.0.0.1:1")
    routes = [route(1, "m"), route(2, "m", 2), route(3, "m", 3), route(4, "m", 4)]
    with GatewayServer(
        tmp_path,
        providers=[provider(1, up.url), dead, provider(3, up.url), provider(4, up.url)],
        routes=routes,
        policies=[PolicyDoc(id=1, name="rr", pattern="*", strategy="round_robin")],
    ) as server:
        server.call(server.runtime.on_health, [2])
        wait_for(lambda: server.runtime.snapshot.down)
        asked = [ask(server, "m").headers["x-hoosh-route"] for _ in range(12)]
    assert sorted(asked) == ["r1"] * 4 + ["r3"] * 4 + ["r4"] * 4


def test_pushes_are_applied_without_keeping_the_loop(tmp_path: Path) -> None:
    document = ConfigDocument(
        providers=(provider(1, "http://127.0.0.1:1"),),
        routes=tuple(route(n, f"*-{n}*") for n in range(1, 1001)),
        settings=SettingsDoc(),
    )
    blob = pack(document)
    discovered = {1: [f"model-{n}" for n in range(500)]}

    async def worst_stall_s() -> float:
        runtime = Runtime(RuntimeOptions("w0-test", 0, tmp_path / "journal", tmp_path / "vault.key", "test"))
        await runtime.start()
        runtime.on_access(1, True, [key_record(1, KEY)], [PoolRecord(id=1, name="default")])
        runtime.on_cards([], [], discovered)
        runtime.on_config(1, blob)
        worst, last = 0.0, time.thread_time()
        while runtime.snapshot is None:
            await asyncio.sleep(0)
            now = time.thread_time()
            worst, last = max(worst, now - last), now
        await runtime.stop()
        for path in (tmp_path / "journal").iterdir():
            path.unlink()
        return worst

    # A busy machine may take the processor away at any time; a stall of our own comes back each time.
    assert min(asyncio.run(worst_stall_s()) for _ in range(5)) < 0.01
