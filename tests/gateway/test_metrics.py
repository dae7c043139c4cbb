"""Figures of several processes, merged; cheap to count; bounded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.metrics import MAX_CELLS, MAX_PROVIDERS, Metrics, prepare_environment

# The library decides at import whether values are shared, so everything about sharing runs in processes of its own.
WORKER = """
import os, sys
from pathlib import Path
from gateway import metrics
metrics.prepare_environment(Path(sys.argv[1]))
m = metrics.Metrics()
m.config_version, m.ready, m.inflight = 3, True, 5
{body}
m.flush()
if {die}:
    os.kill(os.getpid(), 9)
"""
SCRAPE = """
import sys
from pathlib import Path
from gateway import metrics
metrics.prepare_environment(Path(sys.argv[1]))
sys.stdout.buffer.write(metrics.exposition()[0])
"""
ONE_REQUEST = 'm.request_done("chat", "openai", "gpt", 200, 40_000, 9_000, 10, 5, 2_500_000_000_000)'


def run(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


def worker(directory: Path, body: str = ONE_REQUEST, *, die: bool = False) -> None:
    run(WORKER.format(body=body, die=die), directory)


def value(text: str, name: str, **labels: str) -> float:
    for row in text.splitlines():
        if row.startswith("#"):
            continue
        found = re.match(r"([a-z_]+)(?:\{(.*)\})? (\S+)\Z", row)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
            return float(found[3])
    raise AssertionError(f"{name}{labels} is not in\n{text}")


def test_the_figures_of_all_workers_are_added_up(tmp_path):
    worker(tmp_path)
    worker(tmp_path, 'm.refused("budget_exceeded"); m.attempt("openai", "connect");' + ONE_REQUEST)
    text = run(SCRAPE, tmp_path)
    call = {"endpoint": "chat", "provider": "openai"}
    assert value(text, "hoosh_requests_total", **call, route="gpt", status_class="2xx") == 2
    assert value(text, "hoosh_request_duration_seconds_count", **call) == 2
    assert abs(value(text, "hoosh_request_duration_seconds_sum", **call) - 0.08) < 1e-9
    assert value(text, "hoosh_request_duration_seconds_bucket", **call, le="0.05") == 2
    assert value(text, "hoosh_request_duration_seconds_bucket", **call, le="0.025") == 0
    assert value(text, "hoosh_request_duration_seconds_bucket", **call, le="+Inf") == 2
    assert value(text, "hoosh_time_to_first_byte_seconds_bucket", **call, le="0.01") == 2
    assert value(text, "hoosh_tokens_total", kind="input", provider="openai") == 20
    assert value(text, "hoosh_tokens_total", kind="output", provider="openai") == 10
    assert value(text, "hoosh_cost_usd_total", provider="openai") == 5.0
    assert value(text, "hoosh_refusals_total", code="budget_exceeded") == 1
    assert value(text, "hoosh_upstream_attempts_total", provider="openai", outcome="connect") == 1


def test_totals_do_not_fall_when_a_worker_is_killed_but_its_open_requests_are_forgotten(tmp_path):
    worker(tmp_path, die=True)
    worker(tmp_path)
    text = run(SCRAPE, tmp_path)
    labels = {"endpoint": "chat", "provider": "openai", "route": "gpt", "status_class": "2xx"}
    assert value(text, "hoosh_requests_total", **labels) == 2
    assert "hoosh_inflight 5" not in text
    assert not list(tmp_path.glob("gauge_live*"))


def test_gauges_of_running_workers_are_merged(tmp_path):
    one = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(body="", die=False) + "print('up', flush=True); input()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert one.stdout.readline() == b"up\n"
        text = run(SCRAPE, tmp_path)
        assert value(text, "hoosh_inflight") == 5
        assert value(text, "hoosh_config_version") == 3
        assert value(text, "hoosh_workers_ready") == 1
    finally:
        one.communicate(b"\n", timeout=60)


def test_control_neither_counts_as_a_worker_nor_lets_a_total_fall_when_its_writer_begins_again(tmp_path):
    run(
        """
import sys
from pathlib import Path
from gateway import metrics
metrics.prepare_environment(Path(sys.argv[1]))
metrics.set_provider_up("openai", False)
metrics.ledger_figures({"rows": 5, "errors": 1, "outages": 1, "overrun_tokens": 7, "lag_max_s": 0.5})
metrics.ledger_figures({"rows": 9, "errors": 1, "outages": 1, "overrun_tokens": 7, "lag_max_s": 0.25})
metrics.ledger_figures({"rows": 2, "errors": 0, "outages": 0, "overrun_tokens": 0, "lag_max_s": 0.125})
""",
        tmp_path,
    )
    text = run(SCRAPE, tmp_path)
    assert "hoosh_config_version" not in text
    assert value(text, "hoosh_settled_rows_total") == 11
    assert value(text, "hoosh_settle_failures_total") == 2
    assert value(text, "hoosh_overrun_tokens_total") == 7
    assert value(text, "hoosh_settle_lag_seconds") == 0.125
    assert value(text, "hoosh_provider_up", provider="openai") == 0


def test_the_supervisor_empties_the_directory_of_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    worker(tmp_path)
    assert list(tmp_path.glob("*.db"))
    prepare_environment(tmp_path, empty=True)
    assert not list(tmp_path.glob("*.db"))
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)


def test_nothing_is_counted_twice_by_a_second_flush(tmp_path):
    worker(tmp_path, ONE_REQUEST + "; m.log_dropped(4); m.flush(); m.log_dropped(4); m.flush()")
    text = run(SCRAPE, tmp_path)
    labels = {"endpoint": "chat", "provider": "openai", "route": "gpt", "status_class": "2xx"}
    assert value(text, "hoosh_requests_total", **labels) == 1
    assert value(text, "hoosh_access_log_dropped_total") == 4


def test_past_the_limit_names_become_other(tmp_path):
    body = "[m.request_done('chat', f'p{n}', f'r{n}', 200, 1, 0, 0, 0, 0) for n in range(400)]"
    worker(tmp_path, body)
    text = run(SCRAPE, tmp_path)
    providers = set(re.findall(r'hoosh_requests_total\{.*provider="([^"]*)"', text))
    assert "other" in providers
    assert len(providers) == MAX_PROVIDERS + 1
    total = sum(float(found) for found in re.findall(r"hoosh_requests_total\{.*\} (\S+)", text))
    assert total == 400


def test_memory_stays_bounded_between_two_flushes_and_no_request_is_lost():
    metrics = Metrics()
    for number in range(MAX_CELLS + 500):
        metrics.request_done("chat", "p", f"route-{number}", 200, 1, 0, 0, 0, 0)
    cells = [*metrics._cells.values(), *metrics._spill.values()]
    assert len(cells) <= MAX_CELLS + 1
    assert sum(cell[0] for cell in cells) == MAX_CELLS + 500


def test_every_refusal_code_past_the_limit_is_counted_together():
    metrics = Metrics()
    for number in range(200):
        metrics.refused(f"code-{number}")
    assert metrics._refusals["other"] == 200 - 64


def test_counting_a_request_costs_about_a_microsecond():
    metrics = Metrics()
    best = min(_microseconds_per_request(metrics) for _ in range(5))
    assert best < 5  # generous: the machine may be busy; about 0.8 on a quiet one


def _microseconds_per_request(metrics: Metrics) -> float:
    begin = time.process_time()
    for _ in range(5000):
        metrics.request_done("chat", "openai", "gpt", 200, 40_000, 9_000, 10, 5, 2_500_000)
    return (time.process_time() - begin) / 5000 * 1e6


def test_nothing_is_written_while_the_disk_is_full_and_nothing_is_lost(tmp_path: Path) -> None:
    """In a child, because the library decides at its import where values live; on a tiny file system of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a small file system needs root")
    script = f"""
import os, subprocess, sys
from pathlib import Path
small = Path({str(tmp_path)!r}) / "small"
small.mkdir()
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)]).returncode:
    sys.exit(77)
from gateway import metrics
metrics.prepare_environment(small / "metrics")
assert metrics.has_room()
counted = metrics.Metrics()
with open(small / "fill", "wb") as fill:
    try:
        while True:
            fill.write(bytes(65536))
            fill.flush()
    except OSError:
        pass
assert not metrics.has_room()
for n in range(2000):
    counted.request_done("chat", f"p{{n % 60}}", f"r{{n % 200}}", 200, 1000, 0, 1, 1, 0)
counted.flush()
os.unlink(small / "fill")
assert metrics.has_room()
counted.flush()
text = metrics.exposition()[0].decode()
total = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("hoosh_requests_total{{"))
print("total", total)
"""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    if (done.returncode in (1, 77) and "unshare" in done.stderr) or done.returncode == 77:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert "total 2000.0" in done.stdout


def test_waiting_for_a_place_is_counted_by_what_came_of_it_and_by_how_long(tmp_path: Path) -> None:
    waits = "".join(f'm.queued("admitted", {us})\n' for us in (800, 40_000, 70_000_000))
    worker(tmp_path, waits + 'm.queued("timed_out", 10_000_000)\nm.waiting = [1, 0, 3]')
    text = run(SCRAPE, tmp_path)
    assert value(text, "hoosh_queue_total", outcome="admitted") == 3
    assert value(text, "hoosh_queue_total", outcome="timed_out") == 1
    assert value(text, "hoosh_queue_wait_seconds_count") == 3
    assert value(text, "hoosh_queue_wait_seconds_bucket", le="0.001") == 1
    assert value(text, "hoosh_queue_wait_seconds_bucket", le="60.0") == 2
    assert value(text, "hoosh_queue_wait_seconds_sum") == pytest.approx(70.0408)
