"""The supervisor with real processes that do nothing else, and its start-up refusals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hoosh_site.supervisor import ServeError, open_listeners, take_pid_file

pytestmark = pytest.mark.processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], limit_s: float = 8.0) -> None:
    ends_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.02)


class Site:
    """A running small supervisor, its port and its run directory."""

    def __init__(self, directory: str, workers: int) -> None:
        self.run_dir = Path(directory)
        self.workers = workers
        self.port = free_port()
        self.log = self.run_dir / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.site.small_supervisor", str(self.port), str(workers), directory],
                stderr=log,
            )

    def events(self, what: str, who: str = "") -> list[int]:
        """Process ids of the events named `what`, in order."""
        try:
            lines = (self.run_dir / "events").read_text().splitlines()
        except OSError:
            return []
        return [int(pid) for name, pid, event in map(str.split, lines) if event == what and name.startswith(who)]

    def behave(self, who: str, how: str) -> None:
        (self.run_dir / who).write_text(how)

    def ask(self) -> int:
        """The process id of a worker that answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=3) as connection:
            return int(connection.recv(32))

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def site(workers: int = 1, **behaviour: str) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as directory:
        for who, how in behaviour.items():
            (Path(directory) / who).write_text(how)
        running = Site(directory, workers)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()
            alive = set(running.events("start"))
            until(lambda: not any(is_alive(pid) for pid in alive), 5)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ready(running: Site, count: int = 2) -> None:
    until(lambda: running.log.read_text().count(" ready after ") >= count)


def test_every_slot_serves_and_a_stop_ends_workers_before_control() -> None:
    with site(workers=2) as running:
        ready(running, 3)
        until(lambda: {running.ask() for _ in range(20)} == set(running.events("start", "worker")))
        running.send(signal.SIGTERM)
        assert running.process.wait(5) == 0
        order = [line.split()[0] for line in (running.run_dir / "events").read_text().splitlines() if "stop" in line]
        assert sorted(order[:2]) == ["worker0", "worker1"]
        assert order[2] == "control0"
        with pytest.raises(ConnectionRefusedError):
            running.ask()


@pytest.mark.parametrize("role", ["worker", "control"])
def test_what_is_killed_is_started_again_and_its_socket_never_closes(role: str) -> None:
    with site() as running:
        ready(running)
        (first,) = running.events("start", role)
        os.kill(first, signal.SIGKILL)
        asked = running.ask()  # a dead worker's queue waits for its successor
        until(lambda: len(running.events("start", role)) == 2)
        assert asked in running.events("start", "worker")
        assert running.said("SIGKILL")


def test_a_roll_starts_the_new_worker_before_it_stops_the_old_one() -> None:
    with site(workers=2) as running:
        ready(running, 3)
        old = running.events("start", "worker")
        running.send(signal.SIGUSR2)
        ends_at = time.monotonic() + 5
        while not running.said("rolled") and time.monotonic() < ends_at:
            running.ask()  # never refused
        assert running.said("rolled")
        until(lambda: sorted(running.events("stop", "worker")) == sorted(old))
        assert len(running.events("start", "worker")) == 4
        assert len(running.events("start", "control")) == 1
        assert running.ask() not in old


def test_a_roll_is_given_up_when_the_new_worker_does_not_start() -> None:
    with site() as running:
        ready(running)
        (old,) = running.events("start", "worker")
        running.behave("worker0", "dies")
        running.send(signal.SIGUSR2)
        until(lambda: running.said("roll is given up"))
        assert running.ask() == old
        running.behave("worker0", "")
        running.send(signal.SIGUSR2)
        until(lambda: running.said("rolled"))
        until(lambda: running.ask() != old)


def test_a_program_that_cannot_be_started_for_a_while_does_not_end_the_supervisor() -> None:
    with site() as running:
        ready(running)
        (first,) = running.events("start", "worker")
        running.behave("gone", "")
        os.kill(first, signal.SIGKILL)
        until(lambda: running.said("worker 0 could not be started"))
        time.sleep(1.2)
        assert running.process.poll() is None
        assert len(running.events("start", "control")) == 1
        (running.run_dir / "gone").unlink()
        until(lambda: len(running.events("start", "worker")) == 2)
        assert running.ask() != first


def test_a_roll_whose_new_worker_cannot_be_started_keeps_the_old_one() -> None:
    with site() as running:
        ready(running)
        (old,) = running.events("start", "worker")
        running.behave("gone", "")
        running.send(signal.SIGUSR2)
        until(lambda: running.said("worker 0 could not be started"))
        assert running.ask() == old
        (running.run_dir / "gone").unlink()
        running.send(signal.SIGUSR2)
        until(lambda: running.said("rolled"))
        until(lambda: running.ask() != old)


def test_a_new_worker_that_never_gets_ready_is_killed_and_the_old_one_stays() -> None:
    with site() as running:
        ready(running)
        (old,) = running.events("start", "worker")
        running.behave("worker0", "never-ready")
        running.send(signal.SIGUSR2)
        until(lambda: running.said("did not get ready in time"))
        until(lambda: running.said("roll is given up"))
        assert is_alive(old)
        assert running.events("stop", "worker") == []


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    with site() as running:
        ready(running)
        (first,) = running.events("start", "worker")
        os.kill(first, signal.SIGSTOP)
        until(lambda: running.said("has been silent"))
        until(lambda: len(running.events("start", "worker")) == 2)
        assert not is_alive(first)
        assert running.ask() != first


def test_a_pause_of_the_supervisor_itself_kills_nobody() -> None:
    with site() as running:
        ready(running)
        everybody = [running.process.pid, *running.events("start")]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3.5)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)
        assert not running.said("silent")
        assert all(is_alive(pid) for pid in everybody)


def test_a_reload_goes_to_control_alone() -> None:
    with site() as running:
        ready(running)
        running.send(signal.SIGHUP)
        until(lambda: running.events("hup") == running.events("start", "control"))


def test_only_many_quick_deaths_lead_to_a_pause() -> None:
    with site(worker0="dies") as running:
        until(lambda: running.said("times in a row"))
        time.sleep(1)
        starts = len(running.events("start", "worker"))
        assert 3 <= starts <= 8
        assert len(running.events("start", "control")) == 1
        running.behave("worker0", "")
        until(lambda: running.said("worker 0") and running.log.read_text().count(" ready after ") == 2)


def test_a_worker_that_will_not_stop_is_killed() -> None:
    with site(worker0="stubborn") as running:
        ready(running)
        begin = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.process.wait(5) == 0
        assert 0.8 < time.monotonic() - begin < 4
        assert running.said("did not end in time")
        assert running.events("stop", "control")


def test_children_do_not_outlive_a_supervisor_that_is_killed() -> None:
    with site(workers=2) as running:
        ready(running, 3)
        children = running.events("start")
        running.process.kill()
        until(lambda: not any(is_alive(pid) for pid in children), 5)


def test_ctrl_c_in_a_terminal_reaches_only_the_supervisor() -> None:
    with site() as running:
        ready(running)
        assert {os.getpgid(pid) for pid in running.events("start")}.isdisjoint({os.getpgid(running.process.pid)})


def test_a_second_supervisor_on_the_same_directory_is_refused_with_the_remedy() -> None:
    with site() as running:
        ready(running)
        command = [sys.executable, "-m", "tests.site.small_supervisor", str(free_port()), "1", str(running.run_dir)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"process {running.process.pid}" in second.stderr
        assert "HOOSH_DATA_DIR" in second.stderr
        assert running.ask() in running.events("start", "worker")


def test_a_port_in_use_is_refused_even_by_a_listener_that_would_share_it() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServeError, match=r"in use.*--port"):
            open_listeners("127.0.0.1", taken.getsockname()[1], 2)


@pytest.mark.parametrize(
    ("host", "words"), [("192.0.2.1", "does not belong to this machine"), ("no such host", "cannot be used")]
)
def test_an_address_that_is_not_ours_is_refused(host: str, words: str) -> None:
    with pytest.raises(ServeError, match=words):
        open_listeners(host, free_port(), 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_all_sockets_share_one_port(host: str) -> None:
    listeners = open_listeners(host, 0, 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert len(ports) == 1


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_run_directory_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(ServeError, match="chmod 700"):
        take_pid_file(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_run_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServeError, match="not a directory"):
        take_pid_file(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ServeError, match="cannot be used"):
        take_pid_file(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "theirs", 12345, 12345)
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    for name in ("theirs", "link"):
        with pytest.raises(ServeError, match="another user"):
            take_pid_file(tmp_path / name)


def test_a_pid_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("text")
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "supervisor.pid").symlink_to(target)
    with pytest.raises(ServeError, match="symbolic link"):
        take_pid_file(run)
    assert target.read_text() == "text"


def test_the_pid_file_is_free_again_after_its_process() -> None:
    with tempfile.TemporaryDirectory() as directory:
        first = take_pid_file(Path(directory))
        assert (Path(directory) / "supervisor.pid").read_text() == f"{os.getpid()}\n"
        with pytest.raises(ServeError):
            take_pid_file(Path(directory))
        os.close(first)
        os.close(take_pid_file(Path(directory)))
