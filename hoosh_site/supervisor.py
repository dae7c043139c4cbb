"""The parent of all processes of one host: opens the sockets, starts control and workers, restarts what dies.

Each worker slot has a listening socket of its own (SO_REUSEPORT), opened once and kept: a slot's next worker takes over
the queue of the last one, and the kernel spreads connections evenly. Signals: SIGHUP makes control look for changes,
SIGUSR2 rolls the workers (start the new one, wait until it is ready, then drain the old one), SIGTERM and SIGINT drain
the workers first and stop control last, because control reads the journals to their ends. A child that sends no
heartbeat is killed and replaced.

The process imports neither Django nor anything else that is large; `manage.py serve` checks the settings and then turns
into it (`python -m hoosh_site.supervisor`). All waiting is done in one place, `Supervisor._wait`, with the handled
signals blocked, so nothing runs concurrently here.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.metrics import prepare_environment  # loads nothing large
from hoosh_site import child

CONTROL, WORKER = "control", "worker"
BACKLOG = 2048
SIGNALS = frozenset(
    {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT, signal.SIGUSR1}
)


class ServeError(Exception):
    """The gateway cannot be started; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Bounds of the supervisor's patience, in seconds."""

    drain_s: float = 30.0  # what a worker may use by itself
    kill_s: float = 5.0  # beyond that before it is killed
    control_stop_s: float = 50.0  # control reads the journals to their ends
    start_s: float = 60.0  # from start to ready
    worker_silence_s: float = 15.0
    control_silence_s: float = 60.0
    quick_death_s: float = 5.0  # a life shorter than this counts towards the back-off
    quick_deaths: int = 5  # so many in a row are restarted without a pause
    longest_pause_s: float = 30.0


@dataclass(slots=True)
class Child:
    """One running process."""

    role: str
    index: int
    process: subprocess.Popen[bytes]
    pipe: int
    started: float
    heard: float
    ready: bool = False
    retiring: bool = False  # told to stop: its death is not a failure
    kill_at: float | None = None

    @property
    def slot(self) -> tuple[str, int]:
        """What the process is: a role and, for workers, a number."""
        return self.role, self.index


@dataclass(slots=True)
class Slot:
    """What is known of one place in the process table, whoever fills it."""

    deaths: int = 0  # quick ones in a row
    start_at: float | None = 0.0  # when to start a process; None: one is running
    rolling: bool = False  # a new worker beside the old one is starting


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `command(role, index, socket_fd, ready_fd)` gives a child's command line."""

    host: str
    port: int
    workers: int
    run_dir: Path
    command: Callable[[str, int, int | None, int], Sequence[str]]
    timing: Timing = field(default_factory=Timing)


def default_command(role: str, index: int, socket_fd: int | None, ready_fd: int) -> list[str]:
    """The gateway's own processes."""
    common = ["--ready-fd", str(ready_fd), "--parent-pid", str(os.getpid())]
    if role == CONTROL:
        return [sys.executable, "-m", "hoosh_site.control", *common]
    return [sys.executable, "-m", "hoosh_site.worker", "--index", str(index), "--socket-fd", str(socket_fd), *common]


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one address; port 0 takes a free one. Raises `ServeError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except OSError as exc:
        raise ServeError(f"The address {host} cannot be used: {exc}. Set HOOSH_BIND or --bind.") from exc
    listeners: list[socket.socket] = []
    try:
        # With SO_REUSEPORT the kernel would let a second gateway of the same user share the port unnoticed.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname() if port == 0 else address
        for _ in range(count):
            listener = socket.socket(family)
            listeners.append(listener)
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT, socket.SO_KEEPALIVE):
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
    except OSError as exc:
        for listener in listeners:
            listener.close()
        raise ServeError(_bind_problem(host, port, exc)) from exc
    return listeners


def _bind_problem(host: str, port: int, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program. Stop it, or choose another with PORT or --port."
    if exc.errno == errno.EACCES:
        return f"Port {port} on {host} needs more rights. Choose a port above 1023 with PORT or --port."
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"The address {host} does not belong to this machine. Set HOOSH_BIND or --bind."
    return f"Listening on {host} port {port} failed: {exc}."


def take_pid_file(run_dir: Path) -> int:
    """Lock `supervisor.pid` for this process and write the id into it; the descriptor keeps the lock.

    Raises `ServeError` when another supervisor runs on the same data directory, or when somebody else could put
    files or sockets of their own where this gateway's are looked for.
    """
    with contextlib.suppress(FileExistsError):  # what is there instead is told below
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_run_dir(run_dir)
    path = run_dir / "supervisor.pid"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        problem = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
        raise ServeError(f"{path} cannot be opened: {problem}. Remove it and start again.") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        owner = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise ServeError(
            f"A gateway (process {owner or 'unknown'}) already runs on this data directory. "
            f"Stop it, or give this one its own with HOOSH_DATA_DIR."
        ) from exc
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return fd


def _check_run_dir(run_dir: Path) -> None:
    """Refuse a directory that others own or may write to. It may be a link, if nobody else could have made it."""
    advice = "Remove it, or choose another data directory with HOOSH_DATA_DIR."
    try:
        link, target = run_dir.lstat(), run_dir.stat()
    except OSError as exc:
        raise ServeError(f"The run directory {run_dir} cannot be used: {exc.strerror}. {advice}") from exc
    if not stat.S_ISDIR(target.st_mode):
        raise ServeError(f"{run_dir} is not a directory. {advice}")
    if not {link.st_uid, target.st_uid} <= {os.geteuid(), 0}:
        raise ServeError(f"The run directory {run_dir} belongs to another user. {advice}")
    if target.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServeError(f"Others may write to the run directory {run_dir}. Correct it with: chmod 700 {run_dir}")


class Supervisor:
    """Runs a `Plan` until it is told to stop."""

    def __init__(self, plan: Plan, *, log: Callable[[str], None] | None = None) -> None:
        self._plan, self._timing = plan, plan.timing
        self._log = log or (lambda text: print(f"hoosh: {text}", file=sys.stderr, flush=True))
        self._children: dict[int, Child] = {}
        self._slots: dict[tuple[str, int], Slot] = {}
        self._to_roll: list[int] = []
        self._listeners: list[socket.socket] = []
        self._stopping = False
        self._turned = time.monotonic()  # when the last turn of the loop began

    def run(self) -> int:
        """Start everything and supervise it; the exit status. Raises `ServeError` before anything is started."""
        pid_fd = take_pid_file(self._plan.run_dir)
        self._listeners = open_listeners(self._plan.host, self._plan.port, self._plan.workers)
        prepare_environment(self._plan.run_dir / "metrics", empty=True)  # the children inherit it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored SIGCHLD would not be delivered to sigtimedwait
        self._slots = {(CONTROL, 0): Slot(), **{(WORKER, n): Slot() for n in range(self._plan.workers)}}
        host, port = self._listeners[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._log(f"listening on http://{shown}:{port} with {self._plan.workers} worker(s), process {os.getpid()}")
        try:
            while not self._finished():
                self._start_due()
                self._wait()
        finally:
            for running in list(self._children.values()):  # only after an error in here
                running.process.kill()
                running.process.wait()
        self._log("stopped")
        os.ftruncate(pid_fd, 0)
        os.close(pid_fd)
        return 0

    # One turn

    def _wait(self) -> None:
        # Short while somebody waits for a byte on a pipe, which no signal announces.
        busy = self._to_roll or self._stopping or any(not running.ready for running in self._children.values())
        patience_s = 0.05 if busy else 0.5
        info = signal.sigtimedwait(SIGNALS, patience_s)
        now = time.monotonic()
        if now - self._turned > 3:
            # This process itself was stopped (a suspended machine, a paused container): nobody is to blame.
            for running in self._children.values():
                running.heard = now
        self._turned = now
        if info is not None:
            self._signalled(info.si_signo)
        self._reap()
        for running in list(self._children.values()):
            self._listen_to(running)
        self._advance_roll()
        self._kill_overdue()

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if not self._stopping:
                self._log("stopping: workers finish what runs, then control")
                self._begin_stop()
            elif number == signal.SIGINT:
                self._log("second interrupt: killing the workers")
                for running in self._of(WORKER):
                    running.kill_at = time.monotonic()
        elif number == signal.SIGHUP:
            for running in self._of(CONTROL):
                running.process.send_signal(signal.SIGHUP)
        elif number == signal.SIGUSR2 and not self._stopping:
            self._log("rolling the workers")
            self._to_roll = [index for role, index in self._slots if role == WORKER]

    def _finished(self) -> bool:
        if not self._stopping or self._of(WORKER):
            return False
        running = self._of(CONTROL)
        for control in running:
            if not control.retiring:
                self._retire(control, self._timing.control_stop_s)
        return not running

    # Starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for (role, index), slot in self._slots.items():
            if not self._stopping and slot.start_at is not None and slot.start_at <= now:
                slot.start_at = None if self._start(role, index) else now + 1.0

    def _start(self, role: str, index: int) -> bool:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        listener = self._listeners[index] if role == WORKER else None
        socket_fd = listener.fileno() if listener is not None else None
        passed = [write_end] if socket_fd is None else [write_end, socket_fd]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                list(self._plan.command(role, index, socket_fd, write_end)),
                env={**os.environ, "HOOSH_ROLE": role},
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                process_group=0,  # Ctrl-C in a terminal reaches the supervisor alone, which knows the order
            )
        except OSError as exc:  # no process or no memory to be had, or the program is being replaced
            os.close(read_end)
            self._log(f"{role} {index} could not be started: {exc}")
            return False
        finally:
            os.close(write_end)
        now = time.monotonic()
        running = Child(role, index, process, read_end, started=now, heard=now)
        self._children[process.pid] = running
        return True

    # What children say

    def _listen_to(self, running: Child) -> None:
        try:
            data = os.read(running.pipe, 4096)
        except BlockingIOError:
            return
        if data:
            running.heard = time.monotonic()
            if not running.ready and child.READY in data:
                running.ready = True
                self._log(f"{_name(running)} ready after {running.heard - running.started:.2f} s")

    def _reap(self) -> None:
        for pid, running in list(self._children.items()):
            if running.process.poll() is None:
                continue
            self._listen_to(running)
            os.close(running.pipe)
            del self._children[pid]
            self._ended(running)

    def _ended(self, running: Child) -> None:
        slot = self._slots[running.slot]
        lived_s = time.monotonic() - running.started
        if running.retiring:
            return
        self._log(f"{_name(running)} ended unexpectedly ({_cause(running.process.returncode)}) after {lived_s:.1f} s")
        beside = [other for other in self._children.values() if other.slot == running.slot and not other.retiring]
        if slot.rolling and beside and not running.ready:
            self._log(f"{_name(running)}: the new worker did not start; the old one stays and the roll is given up")
            slot.rolling = False
            self._to_roll.clear()
        if beside or self._stopping:
            return
        slot.deaths = slot.deaths + 1 if lived_s < self._timing.quick_death_s else 0
        excess = slot.deaths - self._timing.quick_deaths
        pause_s = min(self._timing.longest_pause_s, 0.1 * 2.0 ** min(excess, 20)) if excess > 0 else 0.0
        if pause_s:
            self._log(f"{_name(running)} died {slot.deaths} times in a row; next start in {pause_s:.1f} s")
        slot.start_at = time.monotonic() + pause_s

    # Rolling, stopping, killing

    def _advance_roll(self) -> None:
        if not self._to_roll or self._stopping:
            return
        index = self._to_roll[0]
        slot = self._slots[WORKER, index]
        fillers = [running for running in self._of(WORKER) if running.index == index and not running.retiring]
        if not slot.rolling:
            if fillers:  # an empty slot is about to get a new process anyway
                slot.rolling = self._start(WORKER, index)
                if not slot.rolling:
                    self._to_roll.clear()
            elif slot.start_at is None:
                self._to_roll.pop(0)
            return
        if not fillers:  # old and new have both died; the slot starts again by itself
            slot.rolling = False
            return
        newest = max(fillers, key=lambda running: running.started)
        if newest.ready:
            for old in fillers:
                if old is not newest:
                    self._retire(old, self._timing.drain_s + self._timing.kill_s)
            slot.rolling = False
            self._to_roll.pop(0)
            if not self._to_roll:
                self._log("rolled")

    def _begin_stop(self) -> None:
        self._stopping = True
        self._to_roll.clear()
        for listener in self._listeners:
            listener.close()
        for running in self._of(WORKER):
            self._retire(running, self._timing.drain_s + self._timing.kill_s)

    def _retire(self, running: Child, patience_s: float) -> None:
        if not running.retiring:
            running.retiring = True
            running.kill_at = time.monotonic() + patience_s
            running.process.send_signal(signal.SIGTERM)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for running in self._children.values():
            silence_s = now - running.heard
            if running.kill_at is not None:
                reason = "did not end in time" if now >= running.kill_at else ""
            elif not running.ready:
                reason = "did not get ready in time" if now - running.started > self._timing.start_s else ""
            else:
                bound_s = self._timing.control_silence_s if running.role == CONTROL else self._timing.worker_silence_s
                reason = f"has been silent for {silence_s:.0f} s" if silence_s > bound_s else ""
            if reason:
                self._log(f"{_name(running)} {reason}: killed")
                running.kill_at = now + 3600
                running.process.kill()

    def _of(self, role: str) -> list[Child]:
        return [running for running in self._children.values() if running.role == role]


def _name(running: Child) -> str:
    number = f" {running.index}" if running.role == WORKER else ""
    return f"{running.role}{number} (process {running.process.pid})"


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def main() -> None:
    """What `manage.py serve` turns into."""
    parser = argparse.ArgumentParser(prog="hoosh-supervisor")
    parser.add_argument("--bind", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--drain-s", type=float, required=True)
    options = parser.parse_args()
    plan = Plan(
        host=options.bind,
        port=options.port,
        workers=options.workers,
        run_dir=options.run_dir,
        command=default_command,
        timing=Timing(drain_s=options.drain_s),
    )
    try:
        sys.exit(Supervisor(plan).run())
    except ServeError as exc:
        print(f"hoosh: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
