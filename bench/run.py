"""The benchmark: `make bench`, or `python -m bench.run [--quick] [--gate]`. Method and reading: bench/README.md."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import audit, budgets, console, overload, policies, processes, report, scenarios, translation
from bench.targets import Setup
from tests.servers import PROJECT_DIR

RESULTS_DIR = Path(__file__).parent / "results"
RATE = 200
ADMIN_ROWS = 1000
PARTS = ("gateway", "budgets", "translation", "policies", "overload", "audit", "console")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The gateway beside nginx on the same work.")
    parser.add_argument("--runs", type=int, default=3, help="runs per figure, of which the median counts")
    parser.add_argument("--seconds", type=float, default=5, help="length of one run")
    parser.add_argument("--quick", action="store_true", help="about a minute: one short run each, fewer figures")
    parser.add_argument("--gate", action="store_true", help="fail when a ratio is over its bound")
    parser.add_argument("--page", default="/admin/budgets/agent/", help="the admin page that is reloaded")
    parser.add_argument("--only", choices=PARTS, default="", help="one part of the measurements")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.seconds = 1, 2
    return options


def measure(setup: Setup, options: argparse.Namespace) -> report.Figures:
    """Everything, in the order it is printed."""
    runs, seconds, quick = options.runs, options.seconds, options.quick
    setup.measure_cold_starts(1 if quick else 3)
    setup.make_admin_rows(ADMIN_ROWS)
    time.sleep(1)
    figures: report.Figures = {"memory_idle_mb": setup.memory_mb(), "cold_start_s": setup.cold_start_s}
    chosen = setup.targets()
    proxies, gateway = chosen[1:], chosen[-1]

    figures["unary"] = {
        str(connections): scenarios.unary(chosen, connections=connections, runs=runs, seconds=seconds)
        for connections in ([32, 256] if quick else [32, 256, 512])
    }
    figures["streams"] = {
        str(connections): scenarios.streams(
            proxies, connections=connections, gap_ms=gap_ms, runs=runs, seconds=max(seconds, 50 * gap_ms / 1000)
        )
        for connections, gap_ms in ([(64, 5)] if quick else [(64, 5), (500, 50)])
    }
    figures["held"] = scenarios.held(proxies, count=300 if quick else 2000, events=20 if quick else 40)
    figures["memory_loaded_mb"] = setup.memory_mb()
    figures["open_loop"] = scenarios.open_loop(chosen, rate=RATE, runs=runs, seconds=seconds)
    figures["pages"] = scenarios.page_load(
        gateway, setup.gateway.base_url, page=options.page, rate=RATE, pairs=max(1, runs), seconds=seconds
    )
    return figures


def commit() -> str:
    """The commit that is checked out, marked when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8"],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Run, print, write the results; 1 when `--gate` is given and a bound is broken."""
    options = parse_arguments()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    if len(processes.cores()) < 2:
        print("Only one core: load and gateway share it, the figures say little.", file=sys.stderr)
    figures: report.Figures = {}
    with tempfile.TemporaryDirectory(prefix="hb-") as directory:
        if options.only in ("", "gateway"):
            with Setup(Path(directory) / "gateway") as setup:
                figures = measure(setup, options)
        if options.only in ("", "budgets"):
            figures["budgets"] = budgets.measure(
                Path(directory), runs=options.runs, seconds=options.seconds, page=options.page
            )
        if options.only in ("", "translation"):
            figures["translation"] = translation.measure(Path(directory), runs=options.runs, seconds=options.seconds)
        if options.only in ("", "policies"):
            figures["policies"] = policies.measure(Path(directory), runs=options.runs, seconds=options.seconds)
        if options.only in ("", "overload"):
            figures["overload"] = overload.measure(Path(directory), runs=options.runs, seconds=options.seconds)
        if options.only in ("", "audit"):
            figures["audit"] = audit.measure(Path(directory), entries=100_000 if options.quick else audit.ENTRIES)
        if options.only in ("", "console"):
            figures["console"] = console.measure(
                Path(directory), runs=options.runs, rows=console.ROWS // 10 if options.quick else console.ROWS
            )
    now = datetime.datetime.now(datetime.UTC)
    figures |= {"date": f"{now:%Y-%m-%d}", "commit": commit(), "python": platform.python_version()}
    figures["options"] = vars(options)
    RESULTS_DIR.mkdir(exist_ok=True)
    path = RESULTS_DIR / f"{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(report.table(figures))
    rows = "\n".join(report.history_rows(figures))
    print(f"\n{path.relative_to(PROJECT_DIR)}, and lines for bench/HISTORY.md:\n{rows}")
    return 1 if options.gate and not all(gate.passed for gate in report.gates(figures)) else 0


if __name__ == "__main__":
    sys.exit(main())
