"""What a process costs: CPU time, memory, and on which core it runs. Read from /proc, so Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far by all threads of the processes; finer than utime + stime, which count in ticks."""
    total_ns = 0
    for pid in pids:
        for thread in threads(pid):
            try:
                total_ns += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
            except OSError:
                continue  # the thread has ended
    return total_ns / 1e9


def pss_mb(pid: int) -> float:
    """Memory of one process in MB, pages shared with others counted in proportion. 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return round(kilobytes / 1024, 1)


def threads(pid: int) -> list[int]:
    """Thread ids of a process; empty once it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process, and those they start later, on one core."""
    for thread in threads(pid):
        try:
            os.sched_setaffinity(thread, {core})
        except ProcessLookupError:
            continue


def cores() -> list[int]:
    """The cores this process may use, lowest first."""
    return sorted(os.sched_getaffinity(0))
