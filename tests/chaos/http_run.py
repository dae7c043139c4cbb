"""A run over HTTP: supervisor, control and workers as users run them, killed at random under load."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import children
from tests.chaos import books, databases, http_setup, schedule
from tests.chaos.books import Verdict
from tests.chaos.population import STEP_TOKENS
from tests.chaos.sampler import Sampler
from tests.chaos.schedule import CONTROL, DATABASE, WORKER
from tests.load import Load, Outcome
from tests.postgres import PostgresServer
from tests.servers import PROJECT_DIR, Gateway, ProviderEntry, UpstreamProcess

WORKERS, CLIENTS, LONG_WORDS = 2, 16, 150
TOKENS_PER_ANSWER = 26
STALLED_S = 60.0
SETTLE_S = 60.0


@dataclass
class HttpOptions:
    """The size of a run."""

    seed: int
    requests: int
    worker_kills: int
    control_kills: int
    database_stops: int = 0
    postgres: bool = False
    clients: int = CLIENTS


@dataclass
class Scene:
    """A gateway with its upstream, its database and its operator."""

    directory: Path
    gateway: Gateway
    upstream: UpstreamProcess
    server: PostgresServer | None = None
    pools: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=lambda: {WORKER: 0, CONTROL: 0, DATABASE: 0})
    operator: subprocess.Popen[bytes] | None = None
    # A child process is told to end when the thread that started it does: this one lives as long as the scene.
    hands: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="strike"))

    name = "HTTP"

    def environment(self) -> dict[str, str]:
        """As `databases.Database`."""
        own = {"DJANGO_SETTINGS_MODULE": "hoosh_site.settings", "PYTHONPATH": str(PROJECT_DIR)}
        return {**self.gateway.environment(), **own}

    def connect(self) -> Any:
        """As `databases.Database`: the gateway's ledger."""
        return databases.connect(self.gateway.database_url or self.gateway.data_dir / "ledger.sqlite3")

    def headers(self) -> list[dict[str, str]]:
        """What the clients send: each key with its default pool and with each project."""
        return [
            {"authorization": f"Bearer {key}", **({"x-hoosh-pool": pool} if pool else {})}
            for key in self.keys
            for pool in ("", "edge", "rolling", "")
        ]

    def set_up(self, **options: Any) -> None:
        """Make teams, agents, keys, pools and prices, and wait until workers know them."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.http_setup", json.dumps(options)],
            cwd=PROJECT_DIR,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise children.ChildError(f"http_setup: {done.stdout}{done.stderr}")
        made = json.loads(done.stdout)
        self.keys, self.pools = made["keys"], made["pools"]
        time.sleep(1)  # the bound on how long workers may not know

    def shell(self, code: str, *, save: bool = False) -> None:
        """Run a line of Python beside the gateway; with `save` the pool it changed is stored."""
        lines = ["from budgets import access", "from budgets.models import Pool", code]
        self.gateway.manage("shell", "-c", "\n".join([*lines, "access.save_pool(pool, actor='chaos')" if save else ""]))
        time.sleep(1)

    def start_operator(self, **options: Any) -> None:
        """Set an operator to work, and wait until the first round is done."""
        told = self.directory / "operator.json"
        told.unlink(missing_ok=True)
        self.operator = children.spawn(
            [
                sys.executable,
                "-m",
                "tests.chaos.operator_process",
                json.dumps({"directory": str(self.directory), **options}),
            ],
            log=self.directory / "operator.log",
            env=self.environment(),
            cwd=PROJECT_DIR,
        )
        children.wait_for(told.exists, "the operator", timeout_s=90, log=self.directory / "operator.log")

    def operator_did(self) -> dict[str, int]:
        """What the operator did up to now."""
        told: dict[str, int] = json.loads((self.directory / "operator.json").read_text())
        return told

    def stop_operator(self) -> dict[str, int]:
        """What the operator did; empty when there was none."""
        if self.operator is None:
            return {}
        children.stop(self.operator)
        self.operator = None
        return self.operator_did()

    def strike(self, blow: schedule.Blow) -> None:
        """Kill what the plan says; the supervisor starts it again."""
        self.kills[blow.what] += 1
        if blow.what == DATABASE:
            assert self.server is not None
            self.server.stop()
            self.server.start_again()
            return
        pids = children.wait_for(
            lambda: found if len(found := self.gateway.role_pids(blow.what)) > blow.index else [],
            f"{blow.what} {blow.index}",
            log=self.gateway.log,
        )
        self.gateway.kill(pids[blow.index])

    def close(self) -> None:
        """End everything."""
        if self.operator is not None:
            children.stop(self.operator)
        self.gateway.stop()
        self.upstream.stop()
        if self.server is not None:
            self.server.stop()
        self.hands.shutdown()


@contextmanager
def scene(directory: Path, *, postgres: bool, edge_tokens: int, workers: int = WORKERS) -> Iterator[Scene]:
    """A running gateway with the rows of `http_setup`."""
    upstream = UpstreamProcess(directory / "upstream")
    gateway = Gateway(
        directory / "gateway",
        providers=[ProviderEntry(upstream.base_url)],
        workers=workers,
        env={"HOOSH_ACCESS_LOG": "off"},
    )
    made = Scene(directory, gateway, upstream)
    try:
        if postgres:
            made.server = PostgresServer(directory / "pg", keeps_commits=True)
            made.server.start()
            gateway.database_url = made.server.create_database("hoosh")
        upstream.start()
        gateway.start()
        made.set_up(edge_tokens=edge_tokens)
        yield made
    finally:
        made.close()


def http_run(directory: Path, options: HttpOptions) -> tuple[Verdict, str]:
    """The whole run: its verdict, and a sentence on what happened. `directory` has a short path."""
    edge_tokens = options.requests * TOKENS_PER_ANSWER // 8  # about half of what is asked of that project
    with scene(directory, postgres=options.postgres, edge_tokens=edge_tokens) as made:
        strict = [made.pools[name] for name in ("team red", "agent counting", "edge", "rolling", "key 0")]
        sampler = Sampler(made, strict)
        made.start_operator(rolling=["rolling"])
        sampler.start()
        try:
            began = time.monotonic()
            load = asyncio.run(strike_on(made, options))
            took_s = time.monotonic() - began
            operator = made.stop_operator()
            made.gateway.wait_ready()
            wait_settled(made)
            made.gateway.stop()
        finally:
            sampler.stop()
        verdict = Verdict(options.seed, over=sampler.over)
        verdict.bound = made.kills[WORKER] * options.clients * STEP_TOKENS
        verdict.problems += [f"over: {row}" for row in sampler.violations]
        check(made, load.outcomes, verdict)
        served = load.complete()
        refused = sum(outcome.status == 429 for outcome in load.outcomes)
        database = "PostgreSQL" if options.postgres else "SQLite"
        told = (
            f"HTTP on {database}: {len(load.outcomes)} requests, {served} answered, {refused} times 429, "
            f"in {took_s:.0f} s; kills: {made.kills[WORKER]} workers, {made.kills[CONTROL]} control, "
            f"{made.kills[DATABASE]} database; {operator.get('rolled', 0)} windows begun; {sampler.samples} samples"
        )
    return verdict, told


async def strike_on(made: Scene, options: HttpOptions) -> Load:
    """Load, and the plan of blows, until there are enough answers; the last blow hits all workers."""
    blows = schedule.plan(
        options.seed,
        answers=options.requests,
        workers=WORKERS,
        worker_kills=options.worker_kills,
        control_kills=options.control_kills,
        database_stops=options.database_stops,
    )
    load = Load(made.gateway, clients=options.clients, headers=made.headers(), long_words=LONG_WORDS)
    async with load:
        done, moved_at = 0, time.monotonic()
        while done < options.requests:
            await asyncio.sleep(0.02)
            if (now := load.complete()) != done:
                done, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                raise children.ChildError(f"No answer for {STALLED_S} s.{children.tail(made.gateway.log)}")
            while blows and blows[0].at <= done:
                await asyncio.get_running_loop().run_in_executor(made.hands, made.strike, blows.pop(0))
        for pid in made.gateway.role_pids(WORKER):
            made.gateway.kill(pid)
            made.kills[WORKER] += 1
    return load


def wait_settled(made: Scene) -> None:
    """Wait until what the dead left is settled: only the workers that live now have leases and positions."""

    def settled() -> bool:
        connection = made.connect()
        try:
            owners = databases.fetch(connection, "SELECT DISTINCT owner FROM budgets_lease")
        finally:
            connection.close()
        return len(owners) <= WORKERS and len(list((made.gateway.data_dir / "journal").glob("*.lock"))) <= WORKERS + 1

    children.wait_for(settled, "the dead workers' books to be closed", timeout_s=SETTLE_S, log=made.gateway.log)


def check(made: Scene, outcomes: list[Outcome], verdict: Verdict) -> None:
    """Clients, upstream and ledger side by side, then the purses."""
    connection = made.connect()
    try:
        booked, sums = read_rows(connection, verdict)
        check_clients(outcomes, booked, verdict)
        check_upstream(made.upstream.truth(), booked, verdict)
        books.check_purses(connection, sums, verdict)
        files = {path.name for path in (made.gateway.data_dir / "journal").iterdir()} - {"writer.lock"}
        books.check_leftovers(connection, sorted(files), verdict)
    finally:
        connection.close()


@dataclass
class Booked:
    """The usage rows of one request."""

    tokens: int = 0
    told: list[int] = field(default_factory=list)  # tokens of the rows with status 200
    rows: int = 0


def read_rows(connection: Any, verdict: Verdict) -> tuple[dict[str, Booked], books.Sums]:
    """Usage rows by model (every request has its own), with each cost counted anew."""
    booked: dict[str, Booked] = defaultdict(Booked)
    sums = books.Sums()
    query = (
        "SELECT rid, model, status, input_tokens, output_tokens, tokens, cost_pico, price_id, pools FROM budgets_usage"
    )
    for rid, model, status, input_tokens, output_tokens, tokens, pico, price_id, pools in databases.rows(
        connection, query
    ):
        entry = booked[model]
        entry.rows += 1
        entry.tokens += tokens
        if status == 200:
            entry.told.append(tokens)
        sums.count += 1
        sums.tokens += tokens
        sums.pico += pico
        sums.by_pools[pools][0] += tokens
        sums.by_pools[pools][1] += pico
        wanted = http_setup.cost(input_tokens, output_tokens) if tokens else pico
        if pico != wanted or (tokens and not price_id):
            verdict.note("doubled" if pico > wanted else "lost", f"{rid} costs {pico}, not {wanted} pico-USD")
    return booked, sums


def check_clients(outcomes: list[Outcome], booked: dict[str, Booked], verdict: Verdict) -> None:
    """A whole answer is booked as it was told, once; what was cut, at least for what arrived."""
    for outcome in outcomes:
        entry = booked.get(outcome.model, Booked())
        if outcome.complete:
            if outcome.words != outcome.wanted:
                verdict.note("lost", f"{outcome.model}: {outcome.words} words of {outcome.wanted} in a whole answer")
            if sum(entry.told) != outcome.tokens or entry.rows != 1:
                kind = "doubled" if entry.tokens > outcome.tokens else "lost"
                verdict.note(kind, f"{outcome.model} was told {outcome.tokens}, booked {entry}")
            continue
        if entry.tokens < outcome.words:
            verdict.note("lost", f"{outcome.model} got {outcome.words} words, booked {entry}")
        verdict.charged_not_delivered += entry.tokens - outcome.words if entry.tokens else 0


def check_upstream(calls: list[dict[str, Any]], booked: dict[str, Booked], verdict: Verdict) -> None:
    """Every call the upstream got is booked."""
    for call in calls:
        if call["model"] and call["model"] not in booked:
            verdict.note("lost", f"{call['model']} reached the upstream and is not booked")
