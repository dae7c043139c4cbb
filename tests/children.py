"""Child processes of a test session that never outlive it, not even when pytest itself is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Not a preexec_fn: forking with one in a process that has threads may deadlock, and warns from Python 3.12 on.
_SETPRIV = shutil.which("setpriv")
_DIE_WITH_PARENT = (_SETPRIV, "--pdeathsig", "TERM", "--") if _SETPRIV else ()


class ChildError(RuntimeError):
    """A process did not start or did not do what the test waits for; the message carries the end of its log."""


def spawn(
    command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process in its own process group, output to `log` (appended), ended when this process ends."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [*_DIE_WITH_PARENT, *(str(part) for part in command)],
            env=dict(env) if env is not None else None,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            **options,
        )


def stop(process: subprocess.Popen[bytes], *, timeout_s: float = 10, how: signal.Signals = signal.SIGTERM) -> int:
    """End a process and whatever is left of its group; returns its exit status. Safe to call twice."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            process.wait(10)
    _kill_group(process.pid)
    return process.returncode


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def wait_for(
    condition: Callable[[], Any], what: str, *, timeout_s: float = 60, step_s: float = 0.05, log: Path | None = None
) -> Any:
    """Call `condition` until what it returns is true, and return that; ChildError naming `what` if it never is."""
    end = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise ChildError(f"Waited {timeout_s} s for {what}.{tail(log)}")
        time.sleep(step_s)


def tail(log: Path | None, size: int = 4000) -> str:
    """The end of a log, ready to be put behind an error message."""
    if log is None or not log.exists():
        return ""
    return f"\n--- end of {log.name} ---\n{log.read_text(errors='replace')[-size:]}"


def free_port() -> int:
    """A loopback TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
