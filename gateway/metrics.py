"""Prometheus figures over several processes, without a lock or a system call per request.

A worker counts in plain integers (`Metrics`) and adds what is new once a second to prometheus_client's multiprocess
values: one memory-mapped file per process and kind, which stay when a process dies, so totals never fall. Control
merges the files when it is scraped (`exposition`).

`prometheus_client` chooses between one and several processes when it is first imported. It is therefore imported only
inside functions here, and `prepare_environment` must run (in the supervisor, before it starts the others) earlier.
Labels are bounded: names come from the configuration, never from a request, and past a limit become "other".
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgets.records import QUEUE_CLASSES

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

OTHER = "other"
MAX_PROVIDERS = 64
MAX_ROUTES = 256
MAX_CODES = 64
MAX_CELLS = 4096  # combinations of endpoint, provider, route and status class held between two flushes

DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TTFB_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_DURATION_US = tuple(int(bound * 1e6) for bound in DURATION_BUCKETS_S)
_TTFB_US = tuple(int(bound * 1e6) for bound in TTFB_BUCKETS_S)
_QUEUE_US = tuple(int(bound * 1e6) for bound in QUEUE_BUCKETS_S)
# A cell is one flat list of integers: fixed figures first, then the buckets of both histograms (last one = +Inf).
_COUNT, _LATENCY_SUM, _TTFB_SUM, _INPUT, _OUTPUT, _COST = range(6)
_LATENCY_AT = 6
_TTFB_AT = _LATENCY_AT + len(_DURATION_US) + 1
_CELL_SIZE = _TTFB_AT + len(_TTFB_US) + 1

ROOM_BYTES = 8 * 1024 * 1024  # free space below which nothing is written to the shared files

_LIVE_GAUGE = re.compile(r"gauge_live[a-z]*_(\d+)\.db\Z")

Key = tuple[str, str, str, int]


def prepare_environment(metrics_dir: Path, *, empty: bool = False) -> None:
    """Make prometheus_client share its values in `metrics_dir` in this process and those it starts.

    Call before anything imports prometheus_client. `empty` removes what an earlier run left; only the supervisor asks
    for it, once, before it starts the others. Raises `OSError` when the directory cannot be made.
    """
    metrics_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if empty:
        for leftover in metrics_dir.glob("*.db"):
            leftover.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)


def has_room() -> bool:
    """Whether the shared values may be written: their files are sparse maps, and on a full disk the first write into a
    new page of one ends the process (SIGBUS) instead of failing."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return True
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize >= ROOM_BYTES


@dataclass(frozen=True)
class WorkerFamilies:
    """The metrics of workers. Apart from control's: making a gauge writes its 0, which would count as a worker's."""

    requests: Counter
    duration: Histogram
    ttfb: Histogram
    tokens: Counter
    cost: Counter
    refusals: Counter
    attempts: Counter
    cache: Counter
    context: Counter
    queue: Counter
    queue_wait: Histogram
    waiting: Gauge
    log_dropped: Counter
    inflight: Gauge
    config_version: Gauge
    ready: Gauge


@dataclass(frozen=True)
class ControlFamilies:
    """The metrics of control."""

    settle_lag: Gauge
    settled: Counter
    failures: Counter
    overrun: Counter
    provider_up: Gauge


@cache
def worker_families() -> WorkerFamilies:
    """A worker's metric families on prometheus_client's default registry."""
    from prometheus_client import Counter, Gauge, Histogram

    by_call = ("endpoint", "provider")
    return WorkerFamilies(
        requests=Counter(
            "hoosh_requests_total", "Finished inference requests.", ("endpoint", "provider", "route", "status_class")
        ),
        duration=Histogram(
            "hoosh_request_duration_seconds", "From the request to its last byte.", by_call, buckets=DURATION_BUCKETS_S
        ),
        ttfb=Histogram(
            "hoosh_time_to_first_byte_seconds",
            "From the request to the first delivered byte of the answer.",
            by_call,
            buckets=TTFB_BUCKETS_S,
        ),
        tokens=Counter("hoosh_tokens_total", "Tokens used, by kind.", ("kind", "provider")),
        cost=Counter("hoosh_cost_usd_total", "Cost at the prices in force, in USD.", ("provider",)),
        refusals=Counter("hoosh_refusals_total", "Requests refused by the gateway itself, by error code.", ("code",)),
        attempts=Counter("hoosh_upstream_attempts_total", "Calls to providers, by outcome.", ("provider", "outcome")),
        cache=Counter("hoosh_cache_total", "Requests on routes that keep answers, by what came of it.", ("result",)),
        context=Counter("hoosh_context_total", "Prompts changed for a provider, by what was done.", ("change",)),
        queue=Counter("hoosh_queue_total", "Requests that had to wait for a place, by what came of it.", ("outcome",)),
        queue_wait=Histogram(
            "hoosh_queue_wait_seconds", "How long requests waited for the place they got.", buckets=QUEUE_BUCKETS_S
        ),
        waiting=Gauge(
            "hoosh_queue_waiting", "Requests that wait for a place now.", ("class",), multiprocess_mode="livesum"
        ),
        log_dropped=Counter("hoosh_access_log_dropped_total", "Access log lines that could not be written."),
        inflight=Gauge("hoosh_inflight", "Inference requests being answered now.", multiprocess_mode="livesum"),
        config_version=Gauge(
            "hoosh_config_version", "Oldest configuration version any worker runs by.", multiprocess_mode="livemin"
        ),
        ready=Gauge("hoosh_workers_ready", "Workers that take requests.", multiprocess_mode="livesum"),
    )


@cache
def control_families() -> ControlFamilies:
    """Control's metric families on prometheus_client's default registry."""
    from prometheus_client import Counter, Gauge

    return ControlFamilies(
        settle_lag=Gauge(
            "hoosh_settle_lag_seconds",
            "Greatest age of usage when it was booked, over the latest batches.",
            multiprocess_mode="mostrecent",
        ),
        settled=Counter("hoosh_settled_rows_total", "Usage rows booked."),
        failures=Counter("hoosh_settle_failures_total", "Failed attempts to book usage."),
        overrun=Counter("hoosh_overrun_tokens_total", "Tokens charged beyond what was held."),
        provider_up=Gauge(
            "hoosh_provider_up", "1 while probes reach the provider.", ("provider",), multiprocess_mode="mostrecent"
        ),
    )


class _Labels:
    """The first `limit` distinct names; every later one is "other"."""

    def __init__(self, limit: int) -> None:
        self._seen: set[str] = set()
        self._limit = limit

    def bound(self, name: str) -> str:
        if name in self._seen:
            return name
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(name)
        return name


class Metrics:
    """A worker's counters. All methods but `flush` only add integers in memory; one thread (the loop) uses it."""

    def __init__(self) -> None:
        """Loads prometheus_client, so that the first flush does not hold up the loop."""
        worker_families()
        self._cells: dict[Key, list[int]] = {}
        self._spill: dict[Key, list[int]] = {}
        self._refusals: dict[str, int] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._cached: dict[str, int] = {}
        self._shaped: dict[str, int] = {}
        self._queued: dict[str, int] = {}
        self._queue_wait = [0] * (len(_QUEUE_US) + 1)
        self._queue_wait_us = 0
        self.waiting = [0] * len(QUEUE_CLASSES)  # for a place now, by class; the runtime sets it
        self._providers = _Labels(MAX_PROVIDERS)
        self._routes = _Labels(MAX_ROUTES)
        self._codes = _Labels(MAX_CODES)
        self._log_dropped = 0
        self._log_dropped_seen = 0
        self.inflight = 0  # the pipeline adds and subtracts
        self.config_version = 0
        self.ready = False

    def request_done(
        self,
        endpoint: str,
        provider: str,
        model_route: str,
        status: int,
        latency_us: int,
        ttft_us: int,
        input_tokens: int,
        output_tokens: int,
        cost_pico: int,
    ) -> None:
        """Count one finished request. `provider` and `model_route` are configured names, "" when none was reached;
        `ttft_us` is 0 when nothing was delivered; `cost_pico` is in 10^-12 USD."""
        cell = self._cells.get((endpoint, provider, model_route, status // 100))
        if cell is None:
            cell = self._new_cell((endpoint, provider, model_route, status // 100))
        cell[_COUNT] += 1
        cell[_LATENCY_SUM] += latency_us
        cell[_LATENCY_AT + bisect_left(_DURATION_US, latency_us)] += 1
        if ttft_us:
            cell[_TTFB_SUM] += ttft_us
            cell[_TTFB_AT + bisect_left(_TTFB_US, ttft_us)] += 1
        if input_tokens or output_tokens:
            cell[_INPUT] += input_tokens
            cell[_OUTPUT] += output_tokens
            cell[_COST] += cost_pico

    def refused(self, code: str) -> None:
        """Count one request the gateway refused, by its error code."""
        counts = self._refusals
        if code in counts:
            counts[code] += 1
        else:
            self._count(counts, self._codes.bound(code))

    def cached(self, result: str) -> None:
        """Count one request that the answer cache was asked for: "hit", "similar", "miss" or "bypass"."""
        self._count(self._cached, result)

    def prompt_changed(self, change: str) -> None:
        """Count one prompt that was "compacted" or "compressed" for a provider."""
        self._count(self._shaped, change)

    def attempt(self, provider: str, outcome: str) -> None:
        """Count one upstream call; `outcome` is one of our own words: "ok", "connect", "timeout", "429", "5xx", …"""
        counts, key = self._attempts, (provider, outcome)
        if key in counts:
            counts[key] += 1
        else:
            self._count(counts, (self._providers.bound(provider), outcome))

    def queued(self, outcome: str, waited_us: int) -> None:
        """Count a request that had to wait for a place; `outcome` is one of `gateway.queueing.stats.OUTCOMES`."""
        self._count(self._queued, outcome)
        if outcome == "admitted":
            self._queue_wait[bisect_left(_QUEUE_US, waited_us)] += 1
            self._queue_wait_us += waited_us

    def log_dropped(self, total: int) -> None:
        """Tell how many access log lines were dropped since the start."""
        self._log_dropped += max(0, total - self._log_dropped_seen)
        self._log_dropped_seen = max(total, self._log_dropped_seen)

    def flush(self) -> None:
        """Add what is new to the shared values. Call once a second; costs about 2 µs per figure that changed.

        On a full disk nothing is written; what was counted is kept and added once there is room again.
        """
        if not has_room():
            return
        shared = worker_families()
        for cells in (self._cells, self._spill):
            for key, cell in cells.items():
                if cell[_COUNT]:
                    self._flush_cell(shared, key, cell)
                    cell[:] = [0] * _CELL_SIZE
        self._spill.clear()
        if len(self._cells) >= MAX_CELLS:
            self._cells.clear()  # names changed often; those in use come back by themselves
        for code, number in self._refusals.items():
            shared.refusals.labels(code).inc(number)
        for (provider, outcome), number in self._attempts.items():
            shared.attempts.labels(provider, outcome).inc(number)
        for result, number in self._cached.items():
            shared.cache.labels(result).inc(number)
        for change, number in self._shaped.items():
            shared.context.labels(change).inc(number)
        self._shaped = {}
        self._refusals, self._attempts, self._cached = {}, {}, {}
        self._flush_queue(shared)
        if self._log_dropped:
            shared.log_dropped.inc(self._log_dropped)
            self._log_dropped = 0
        shared.inflight.set(self.inflight)
        shared.config_version.set(self.config_version)
        shared.ready.set(int(self.ready))

    def _flush_queue(self, shared: WorkerFamilies) -> None:
        for outcome, number in self._queued.items():
            shared.queue.labels(outcome).inc(number)
        if any(self._queue_wait):
            _add(shared.queue_wait, self._queue_wait, self._queue_wait_us)
        self._queued, self._queue_wait, self._queue_wait_us = {}, [0] * len(self._queue_wait), 0
        for name, number in zip(QUEUE_CLASSES, self.waiting, strict=True):
            shared.waiting.labels(name).set(number)

    def _new_cell(self, key: Key) -> list[int]:
        cells = self._cells if len(self._cells) < MAX_CELLS else self._spill
        if cells is self._spill:
            key = (key[0], OTHER, OTHER, key[3])
        return cells.setdefault(key, [0] * _CELL_SIZE)

    @staticmethod
    def _count(counts: dict[Any, int], key: object) -> None:
        counts[key] = counts.get(key, 0) + 1

    def _flush_cell(self, shared: WorkerFamilies, key: Key, cell: list[int]) -> None:
        endpoint, name, route, status_class = key
        provider = self._providers.bound(name)
        shared.requests.labels(endpoint, provider, self._routes.bound(route), f"{status_class}xx").inc(cell[_COUNT])
        _add(shared.duration.labels(endpoint, provider), cell[_LATENCY_AT:_TTFB_AT], cell[_LATENCY_SUM])
        if any(cell[_TTFB_AT:]):
            _add(shared.ttfb.labels(endpoint, provider), cell[_TTFB_AT:], cell[_TTFB_SUM])
        if cell[_INPUT]:
            shared.tokens.labels("input", provider).inc(cell[_INPUT])
        if cell[_OUTPUT]:
            shared.tokens.labels("output", provider).inc(cell[_OUTPUT])
        if cell[_COST]:
            shared.cost.labels(provider).inc(cell[_COST] / 1e12)


def _add(histogram: Any, counts: list[int], sum_us: int) -> None:
    """Add many observations at once. The library only offers one at a time, so its bucket values are used directly."""
    for bucket, number in zip(histogram._buckets, counts, strict=True):
        if number:
            bucket.inc(number)
    histogram._sum.inc(sum_us / 1e6)


_ledger_seen: dict[str, float] = {}
_ledger_lock = threading.Lock()


def ledger_figures(stats: Mapping[str, Any]) -> None:
    """Take over the figures of control's ledger writer (`Writer.stats()`); its counters may begin again at 0."""
    if not has_room():
        return
    shared = control_families()
    totals = {
        "settled": (shared.settled, stats.get("rows", 0)),
        "failures": (shared.failures, stats.get("errors", 0) + stats.get("outages", 0)),
        "overrun": (shared.overrun, stats.get("overrun_tokens", 0)),
    }
    with _ledger_lock:
        for name, (counter, total) in totals.items():
            before = _ledger_seen.get(name, 0)
            counter.inc(total - before if total >= before else total)
            _ledger_seen[name] = total
    shared.settle_lag.set(stats.get("lag_max_s", 0.0))


def set_provider_up(provider: str, up: bool) -> None:
    """Control tells what a probe found."""
    if not has_room():
        return
    control_families().provider_up.labels(provider).set(int(up))


def exposition() -> tuple[bytes, str]:
    """The text for a scraper and its content type: all processes merged, or this one alone when none are shared."""
    import prometheus_client
    from prometheus_client import multiprocess

    registry = prometheus_client.REGISTRY
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory:
        _forget_the_dead(Path(directory))
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_LATEST


def _forget_the_dead(directory: Path) -> None:
    # A killed worker cannot take its gauges back; counting its requests as still running would never end.
    for path in directory.glob("gauge_live*.db"):
        found = _LIVE_GAUGE.match(path.name)
        if found and not _alive(int(found[1])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
