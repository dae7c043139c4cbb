"""The measurements. Each takes its targets in turn within a run, so that a noisy minute hits all of them alike."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import processes, targets
from bench.targets import Target
from tests.servers import PROJECT_DIR

Sample = dict[str, float]
_LUA = Path(__file__).parent / "load" / "post.lua"


class LoadError(RuntimeError):
    """A load generator printed no result."""


def unary(chosen: Sequence[Target], *, connections: int, runs: int, seconds: float) -> dict[str, Sample]:
    """Closed-loop single answers: rate, latency, and CPU microseconds per request by process."""
    return in_turn(chosen, runs, lambda target: _chat(target, targets.UNARY_MODEL, connections, seconds, events=0))


def streams(chosen: Sequence[Target], *, connections: int, gap_ms: int, runs: int, seconds: float) -> dict[str, Sample]:
    """Closed-loop streams of 30 events: CPU microseconds per event."""
    model = f"bench-sse-30x{gap_ms}"
    return in_turn(chosen, runs, lambda target: _chat(target, model, connections, seconds, events=30))


def held(chosen: Sequence[Target], *, count: int, events: int = 40, gap_ms: int = 250) -> dict[str, Sample]:
    """Many slow streams at once: how many were complete, and CPU microseconds per event."""
    results = {}
    for target in chosen:
        before = _cpu(target)
        sample = _python_load(
            target, f"bench-sse-{events}x{gap_ms}", "bench.load.streams", str(target.stream_port), str(count)
        )
        results[target.name] = {**sample, **_cpu_per(target, before, sample["events"])}
    return results


def open_loop(chosen: Sequence[Target], *, rate: int, runs: int, seconds: float) -> dict[str, Sample]:
    """Latency at a fixed rate, timed from when each request was due."""
    return in_turn(chosen, runs, lambda target: at_rate(target, rate, seconds))


def page_load(gateway: Target, base_url: str, *, page: str, rate: int, pairs: int, seconds: float) -> dict[str, Sample]:
    """Latency at a fixed rate without and with an admin page that is reloaded without pause, in alternating pairs."""
    quiet, loaded, pages = [], [], []
    for _ in range(pairs):
        quiet.append(at_rate(gateway, rate, seconds))
        with reloading(base_url, page) as printed:
            loaded.append(at_rate(gateway, rate, seconds))
        pages.append(_parse(printed[0]))
    return {"quiet": _medians(quiet), "loaded": _medians(loaded), "page": _medians(pages)}


@contextmanager
def reloading(base_url: str, page: str) -> Iterator[list[str]]:
    """An operator who reloads an admin page without pause; afterwards the list holds what was printed."""
    printed: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load.pages", base_url, page],
        cwd=PROJECT_DIR,
        env={**os.environ, "ADMIN_USER": targets.ADMIN_USER, "ADMIN_PASSWORD": targets.ADMIN_PASSWORD},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "READY":
            raise LoadError("the admin page could not be reloaded: signing in failed")
        yield printed
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        printed.append(output)


def in_turn(chosen: Sequence[Target], runs: int, measure: Callable[[Target], Sample]) -> dict[str, Sample]:
    """The medians of so many runs by the target's name."""
    samples: dict[str, list[Sample]] = {target.name: [] for target in chosen}
    for _ in range(runs):
        for target in chosen:
            samples[target.name].append(measure(target))
    return {name: _medians(several) for name, several in samples.items()}


def _medians(samples: list[Sample]) -> Sample:
    merged = {name: round(statistics.median(sample[name] for sample in samples), 2) for name in samples[0]}
    if "errors" in merged:
        merged["errors"] = sum(sample["errors"] for sample in samples)
    return merged


def _chat(target: Target, model: str, connections: int, seconds: float, *, events: int) -> Sample:
    environment = {"MODEL": model, "STREAM": "1" if events else "0"}
    port = target.stream_port if events else target.unary_port
    return closed_loop(target, port, environment, connections=connections, seconds=seconds, events=events)


def closed_loop(
    target: Target, port: int, environment: Mapping[str, str], *, connections: int, seconds: float, events: int = 0
) -> Sample:
    """wrk with `load/post.lua`, which `environment` tells what to send. CPU is per request, or per event of `events`
    in each answer."""
    environment = {**environment, "KEY": target.key}
    command = ["wrk", "-t1", f"-c{connections}", "--timeout", "10s", "--latency", "-s", str(_LUA)]
    url = f"http://127.0.0.1:{port}"
    _run([*command, "-d1s", url], environment)  # warm-up: connections, leases, caches
    before = _cpu(target)
    output = _run([*command, f"-d{max(1, round(seconds))}s", url], environment)
    line = next((line for line in output.splitlines() if line.startswith("JSON ")), "")
    if not line:
        raise LoadError(f"wrk printed no result:\n{output}")
    sample = json.loads(line.removeprefix("JSON "))
    per_second = sample["requests"] / sample["duration_us"] * 1e6
    result = {
        "per_second": round(per_second),
        "p50_us": sample["p50_us"],
        "p99_us": sample["p99_us"],
        "errors": sample["errors"],
    }
    return {**result, **_cpu_per(target, before, sample["requests"] * max(1, events))}


def at_rate(target: Target, rate: int, seconds: float) -> Sample:
    """Latency at a fixed rate, timed from when each request was due."""
    return _python_load(target, targets.UNARY_MODEL, "bench.load.rate", str(target.unary_port), str(rate), str(seconds))


def loop_stall(target: Target, seconds: float) -> Sample:
    """The longest time for which the target's processes kept a question waiting that is answered from memory."""
    pids = [str(pid) for pid in target.pids]
    return _python_load(target, "", "bench.load.stall", str(target.unary_port), str(seconds), *pids)


def _python_load(target: Target, model: str, module: str, *arguments: str) -> Sample:
    environment = {"KEY": target.key, "MODEL": model}
    return _parse(_run([sys.executable, "-m", module, *arguments], environment))


def _parse(output: str) -> Sample:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadError(f"the load generator printed no result:\n{output}")
    parsed: dict[str, Any] = json.loads(lines[-1])
    return parsed


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LoadError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _cpu(target: Target) -> dict[str, float]:
    measured = {"cpu_us": processes.cpu_s(target.pids)}
    return {**measured, **{f"{name}_us": processes.cpu_s(pids) for name, pids in target.others.items()}}


def _cpu_per(target: Target, before: dict[str, float], count: float) -> Sample:
    if not target.pids or not count:
        return {}
    return {name: round((now - before[name]) / count * 1e6, 2) for name, now in _cpu(target).items()}
