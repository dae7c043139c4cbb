"""What the queue does for a provider that takes eight requests at once and answers each after 20 ms.

Twenty agents with a key each: nineteen ask one request at a time and think in between, which takes about half of the
provider; the twentieth does nothing, or floods. `fair` compares the p99 of the nineteen. `open_loop` offers four times
what the provider can take, and compares what is answered with the most there is.

`python -m bench.overload PORT` is the provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from bench import mock
from bench.load.client import Connection, chat_request
from bench.scenarios import Sample
from bench.targets import Setup
from tests.servers import ProviderEntry

MODEL = "bench-slow"
PLACES, LATENCY_S = 8, 0.02
JITTER = 0.25  # of the latency: calls that begin together do not all end together
AGENTS = 20
THINK_S = 0.07  # on average; with the answer's 20 ms nineteen agents ask for half of the provider
FLOOD = 200  # requests of the greedy agent at a time
OVERLOAD = 4
SATURATE = 64  # connections, to see the most there is
CONNECTIONS = 1500  # of the open loop: more than may wait
WARM_S = 1.0
BEAT_S, CALM_S, ATTEMPTS = 0.002, 0.03, 4

T = TypeVar("T")

_ROWS = """
import json
from budgets import access, keys
from budgets.models import Agent, Pool, Team
from providers import publish
from providers.models import Provider
Provider.objects.update(concurrent_requests=@PLACES@)
team, pool = access.save_team(Team(name="overload"), actor="bench"), Pool.objects.first()
agents = [access.save_agent(Agent(team=team, name=f"a{n}"), actor="bench") for n in range(@AGENTS@)]
texts = [keys.create_key(agent, pool, agent.name, actor="bench")[1] for agent in agents]
publish.publish(author="bench")
print(json.dumps(texts))
"""
_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 160, "completion_tokens": 2, "total_tokens": 162},
}
_REPLY = mock.whole(json.dumps(_ANSWER).encode())


class SlowMock(mock.Mock):
    """Answers each chat 20 ms later, as many at once as it is asked."""

    def reply(self, request: bytes, end: int) -> tuple[bytes, tuple[bytes, ...], float]:
        """Nothing at once for a chat."""
        if not request.startswith(b"POST"):
            return super().reply(request, end)
        self._loop.call_later(random.uniform(1 - JITTER, 1 + JITTER) * LATENCY_S, self._answer)
        return b"", (), 0.0

    def _answer(self) -> None:
        if self._transport is not None:
            self._transport.write(_REPLY)


class OverloadSetup(Setup):
    """A gateway with one provider that limits its requests at once."""

    port_names = ("MOCK",)

    def providers(self) -> list[ProviderEntry]:
        """The slow mock."""
        return [ProviderEntry(self.url("MOCK"), models=[MODEL])]

    def start_mocks(self, stack: contextlib.ExitStack) -> None:
        """Start it."""
        self.spawn(stack, [sys.executable, "-m", "bench.overload", str(self.ports["MOCK"])], "slow")
        self.wait_for("MOCK")

    def keys(self) -> list[str]:
        """Limit the provider; the keys of all agents, the greedy one's first."""
        text = _ROWS.replace("@PLACES@", str(PLACES)).replace("@AGENTS@", str(AGENTS))
        found: list[str] = json.loads(self.gateway.manage("shell", "-c", text).splitlines()[-1])
        time.sleep(2)  # the worker has heard of it by then
        return found


@dataclasses.dataclass
class Heard:
    """What clients heard between two moments."""

    latencies_s: list[float] = dataclasses.field(default_factory=list)  # of answers
    refused: int = 0
    failed: int = 0
    missed: int = 0  # due while no connection was idle

    def take(self, connection: Connection, reply: bytes, since: float) -> None:
        """Count one reply to a request that was sent after `since`."""
        if not reply:
            self.failed += 1
        elif connection.sent_at >= since:
            if reply.startswith(b"HTTP/1.1 200"):
                self.latencies_s.append(time.perf_counter() - connection.sent_at)
            elif reply.startswith(b"HTTP/1.1 503"):
                self.refused += 1
            else:
                self.failed += 1

    def p_ms(self, share: float) -> float:
        """A percentile of the answers."""
        values = sorted(self.latencies_s)
        return round(values[int(len(values) * share)] * 1000, 2) if values else 0.0


def measure(directory: Path, *, runs: int, seconds: float) -> dict[str, Any]:
    """Medians of `runs` runs, those of each kind in turn."""
    with OverloadSetup(directory / "overload") as setup:
        port, keys = setup.gateway.port, setup.keys()
        setup.gateway_target()
        uvloop.run(_closed(port, keys[1:], 1.0))
        fair, loads = [], []
        for _ in range(runs):
            quiet = _calmly(lambda: _agents(port, keys[1:], seconds))
            loud = _calmly(lambda: _agents(port, keys[1:], seconds, greedy=keys[0]))
            fair.append({"quiet_p99_ms": quiet.p_ms(0.99), "greedy_p99_ms": loud.p_ms(0.99)})
            fair[-1] |= {"quiet_p50_ms": quiet.p_ms(0.5), "greedy_p50_ms": loud.p_ms(0.5)}
            fair[-1] |= {"ratio": fair[-1]["greedy_p99_ms"] / fair[-1]["quiet_p99_ms"]}
            fair[-1] |= {"failed": quiet.failed + loud.failed + quiet.refused + loud.refused}
            peak = _calmly(lambda: _closed(port, keys, seconds))
            over = _calmly(lambda: _open(port, keys, seconds))
            loads.append({"peak_per_second": peak, **over, "goodput": over["per_second"] / peak})
    return {"fair": _medians(fair), "open_loop": _medians(loads)}


def _calmly(load: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a load measured in a calm moment: it is repeated where this process itself was held up by others, as then a
    percentile is theirs. After a few attempts the calmest counts."""
    held_up_s, result = uvloop.run(_held_up(load()))
    for _ in range(ATTEMPTS - 1):
        if held_up_s <= CALM_S:
            break
        again_s, again = uvloop.run(_held_up(load()))
        if again_s < held_up_s:
            held_up_s, result = again_s, again
    return result


async def _held_up(load: Coroutine[Any, Any, T]) -> tuple[float, T]:
    """What a load measured, and the longest time for which this process did not get to run."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT_S)
            longest = max(longest, time.perf_counter() - before - BEAT_S)

    beating = asyncio.create_task(beat())
    result = await load
    beating.cancel()
    return longest, result


def _medians(samples: Sequence[Sample]) -> Sample:
    return {name: round(statistics.median(sample[name] for sample in samples), 3) for name in samples[0]}


async def _connect(port: int, on_reply: Callable[[Connection, bytes], None]) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(on_reply), "127.0.0.1", port)
    return connection


async def _agents(port: int, keys: Sequence[str], seconds: float, *, greedy: str = "") -> Heard:
    """The nineteen, and beside them the greedy one."""
    heard, chance, loop = Heard(), random.Random(1), asyncio.get_running_loop()
    since = time.perf_counter() + WARM_S
    end = since + seconds

    def again(request: bytes, *, thinks: bool) -> Callable[[Connection, bytes], None]:
        def replied(connection: Connection, reply: bytes) -> None:
            now = time.perf_counter()
            if thinks:
                heard.take(connection, reply, since)
            if now >= end or not reply:
                return
            pause_s = chance.expovariate(1 / THINK_S) if thinks else 0.0 if b" 200 " in reply[:20] else 0.05
            loop.call_later(pause_s, lambda: connection.send(request, time.perf_counter()))

        return replied

    requests = [(chat_request(MODEL, key, stream=False), True) for key in keys]
    requests += [(chat_request(MODEL, greedy, stream=False), False)] * (FLOOD if greedy else 0)
    for request, thinks in requests:
        connection = await _connect(port, again(request, thinks=thinks))
        loop.call_later(chance.uniform(0, THINK_S), connection.send, request, time.perf_counter())
    await asyncio.sleep(end - time.perf_counter() + 1.0)
    return heard


async def _closed(port: int, keys: Sequence[str], seconds: float) -> float:
    """The most there is: answers per second while somebody always waits, but not many."""
    since = time.perf_counter() + WARM_S
    end, count = since + seconds, 0

    def again(request: bytes) -> Callable[[Connection, bytes], None]:
        def replied(connection: Connection, reply: bytes) -> None:
            nonlocal count
            now = time.perf_counter()
            count += since <= now < end and reply.startswith(b"HTTP/1.1 200")
            if now < end and reply:
                connection.send(request, now)

        return replied

    for number in range(SATURATE):
        request = chat_request(MODEL, keys[number % len(keys)], stream=False)
        (await _connect(port, again(request))).send(request, time.perf_counter())
    await asyncio.sleep(end - time.perf_counter() + 0.5)
    return count / seconds


async def _open(port: int, keys: Sequence[str], seconds: float) -> Sample:
    """Four times as many requests as the provider takes, whatever becomes of them."""
    idle: list[Connection] = []
    heard, answered, is_over = Heard(), 0, False
    start = time.perf_counter()
    since = start

    def replied(connection: Connection, reply: bytes) -> None:
        nonlocal answered
        if is_over:
            return
        heard.take(connection, reply, since)
        answered += since <= time.perf_counter() < since + seconds and reply.startswith(b"HTTP/1.1 200")
        if reply:
            idle.append(connection)

    for _ in range(CONNECTIONS):
        idle.append(await _connect(port, replied))
    requests = [chat_request(MODEL, key, stream=False) for key in keys]
    rate = OVERLOAD * PLACES / LATENCY_S
    start = time.perf_counter()
    since = start + 2 * WARM_S  # the queue is full by then
    for number in range(int(rate * (seconds + 2 * WARM_S))):
        due = start + number / rate
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if idle:
            idle.pop().send(requests[number % len(requests)], due)
        else:
            heard.missed += due >= since
    is_over = True
    return {
        "offered_per_second": rate,
        "per_second": answered / seconds,
        "refused_per_second": heard.refused / seconds,
        "missed": heard.missed,
        "failed": heard.failed,
        "p50_ms": heard.p_ms(0.5),
    }


if __name__ == "__main__":
    uvloop.run(mock.main(int(sys.argv[1]), SlowMock))
