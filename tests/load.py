"""Load on a gateway whose processes are being killed, and the accounts that must come out right afterwards.

Three parties write down what happened, independently: the client (`Outcome`), the upstream (its truth file) and the
gateway (usage rows, read straight from its database). Every request has a model name of its own, so the three can be
laid side by side without trusting anybody's ids.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests import children
from tests.servers import Gateway, UpstreamProcess

WORDS = 20


@dataclass
class Outcome:
    """What the client saw of one request. `status` 0 = no answer at all (connection refused or cut)."""

    model: str
    stream: bool
    wanted: int = WORDS  # words it asks for
    status: int = 0
    complete: bool = False  # the whole answer: 200 and, on a stream, [DONE]
    error_event: bool = False
    words: int = 0
    tokens: int = 0  # the usage it was told, 0 = none
    problem: str = ""


@dataclass
class Load:
    """`clients` clients that ask without pause, alternating single answers and streams, until the context ends.

    `headers` are shared out among the clients (keys, pools); none = the gateway's own key. Of the streams every
    fourth asks for `long_words`, if that is given.
    """

    gateway: Gateway
    clients: int = 8
    behaviour: str = "ok"
    headers: Sequence[Mapping[str, str]] = ()
    long_words: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(self.clients)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def wait_complete(self, count: int, timeout_s: float = 30) -> None:
        """Wait until so many more complete answers came in than now."""
        before = self.complete()
        async with asyncio.timeout(timeout_s):
            while self.complete() < before + count:
                await asyncio.sleep(0.02)

    def complete(self) -> int:
        """How many complete answers clients have got so far."""
        return sum(outcome.complete for outcome in self.outcomes)

    async def _ask_on(self, index: int) -> None:
        headers = self.headers[index % len(self.headers)] if self.headers else self.gateway.auth
        async with httpx.AsyncClient(
            base_url=self.gateway.base_url, headers=headers, timeout=30, trust_env=False
        ) as client:
            while not self._stopping:
                number = next(self._numbers)
                outcome = Outcome(f"{self.behaviour}@{number}", stream=number % 2 == 1)
                if self.long_words and number % 8 == 1:
                    outcome.wanted = self.long_words
                try:
                    await ask(client, outcome)
                except httpx.HTTPError as exc:
                    outcome.problem = repr(exc)
                    await asyncio.sleep(0.05)
                else:
                    if outcome.status in (429, 503):
                        await asyncio.sleep(0.05)
                self.outcomes.append(outcome)


async def ask(client: httpx.AsyncClient, outcome: Outcome, words: int = 0) -> None:
    """Send one chat request and write into `outcome` what comes back, as it comes. Raises when it is cut off."""
    body: dict[str, Any] = {
        "model": outcome.model,
        "messages": [{"role": "user", "content": "count for me"}],
        "max_tokens": words or outcome.wanted,
    }
    if outcome.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        outcome.status = response.status_code
        if response.status_code != 200 or not outcome.stream:
            reply = json.loads(await response.aread())
            if response.status_code == 200:
                outcome.words = len(reply["choices"][0]["message"]["content"].split())
                outcome.tokens = reply["usage"]["total_tokens"]
                outcome.complete = True
            else:
                outcome.problem = str(reply)
            return
        async for line in response.aiter_lines():
            _take_line(outcome, line)


def _take_line(outcome: Outcome, line: str) -> None:
    if not line.startswith("data:"):
        return
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        outcome.complete = True
        return
    event = json.loads(data)
    if "error" in event:
        outcome.error_event = True
        outcome.problem = str(event["error"])
        return
    for choice in event["choices"]:
        outcome.words += len((choice["delta"].get("content") or "").split())
    if event.get("usage"):
        outcome.tokens = event["usage"]["total_tokens"]


def settle_and_check(gateway: Gateway, upstream: UpstreamProcess, outcomes: list[Outcome]) -> None:
    """Lay the three accounts side by side; AssertionError names every request that does not fit.

    Complete answers are booked exactly, calls the upstream answered are booked at least once and never for less than
    it sent, and the pool's balance is the sum of its rows.
    """
    complete = {outcome.model: outcome for outcome in outcomes if outcome.complete}
    answered: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in upstream.truth():
        if entry["words_sent"]:
            answered[entry["model"]].append(entry)
    children.wait_for(
        lambda: {row["model"] for row in gateway.usage().values()} >= complete.keys() | answered.keys(),
        "every answered request to be settled",
        timeout_s=20,
        step_s=0.25,
        log=gateway.log,
    )
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in gateway.rows("SELECT * FROM budgets_usage"):
        rows[row["model"]].append(row)
    wrong = [
        f"{model}: client was told {outcome.tokens} tokens, booked {[row['tokens'] for row in rows[model]]}"
        for model, outcome in complete.items()
        if sum(row["tokens"] for row in rows[model] if row["status"] == 200) != outcome.tokens
    ]
    wrong += [
        f"{model}: {outcome.words} words came in for a complete answer of {outcome.wanted}"
        for model, outcome in complete.items()
        if outcome.words != outcome.wanted
    ]
    for model, entries in answered.items():
        sent = sum(entry["words_sent"] for entry in entries if entry["finished"])
        booked = sum(row["tokens"] for row in rows[model])
        if booked < max(sent, 1):
            wrong.append(f"{model}: upstream sent {sent} words in {len(entries)} calls, booked {booked} tokens")
    assert wrong == []
    assert complete, "no request was answered at all"
    assert_balanced(gateway)


def assert_balanced(gateway: Gateway) -> None:
    """What every purse has committed is the sum of its usage rows, and nothing is above its limit."""
    windows = gateway.rows("SELECT * FROM budgets_poolwindow")
    charged: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for row in gateway.rows("SELECT pools, SUM(tokens) AS n, SUM(cost_pico) AS pico FROM budgets_usage GROUP BY pools"):
        for pool in row["pools"].split():
            pool_id, _, start = pool.partition("@")
            tokens, pico = charged[int(pool_id), int(start)]
            charged[int(pool_id), int(start)] = (tokens + int(row["n"]), pico + int(row["pico"]))
    assert windows
    for window in windows:
        assert window["committed"] == charged[window["pool_id"], window["window_start"]][window["unit"]]
        if window["capacity"] is not None:
            assert window["committed"] + window["leased"] <= window["capacity"] + window["overrun"]


def assert_all_returned(gateway: Gateway) -> None:
    """After a stop nothing is leased out of any purse any more."""
    leased = [row["leased"] for row in gateway.rows("SELECT leased FROM budgets_poolwindow")]
    assert leased
    assert set(leased) == {0}
