"""The gateway's processes together: real control with Django's admin, real workers, killed and rolled under load."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.site.test_supervisor import free_port, until

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"


def environment(directory: Path, **extra: str) -> dict[str, str]:
    """What the processes of a test see: nothing of the test run's own settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOOSH_", "DATABASE_URL", "PORT"))
    }
    return {**kept, "DJANGO_SETTINGS_MODULE": "hoosh_site.settings", "HOOSH_DATA_DIR": str(directory), **extra}


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """A data directory as `manage.py init` leaves it."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "manage.py", "init"],
            cwd=ROOT,
            env=environment(Path(directory)),
            check=True,
            capture_output=True,
        )
        yield Path(directory)


class Gateway:
    """A running gateway and a plain client of it."""

    def __init__(self, directory: Path, command: Callable[[int], list[str]], **extra: str) -> None:
        self.directory, self.port = directory, free_port()
        self.log = directory / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(self.port),
                cwd=ROOT,
                env=environment(directory, PORT=str(self.port), **extra),
                stderr=log,
                stdout=log,
            )

    def get(
        self, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def chat(self) -> dict[str, Any]:
        status, _, body = self.get(CHAT)
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    def works(self, path: str) -> bool:
        try:
            return self.get(path)[0] < 400
        except OSError:
            return False

    def pid_of(self, what: str) -> int:
        """The last process the log names as ready."""
        return int(re.findall(rf"{what} \(process (\d+)\) ready", self.log.read_text())[-1])

    def password(self) -> str:
        found = re.search(r"password: (\S+)", (self.directory / "first-run.txt").read_text())
        assert found is not None
        return found[1]


@contextlib.contextmanager
def gateway(initialised: Path, command: Callable[..., list[str]], **extra: str) -> Iterator[Gateway]:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(initialised, directory, dirs_exist_ok=True)
        running = Gateway(Path(directory), lambda port: command(port, Path(directory)), **extra)
        try:
            yield running
        finally:
            running.process.terminate()
            try:
                running.process.wait(20)
            except subprocess.TimeoutExpired:
                running.process.kill()


@contextlib.contextmanager
def stub(initialised: Path, workers: int = 1, drain_s: float = 5.0, **extra: str) -> Iterator[Gateway]:
    """Real supervisor, real control, real workers around the stub runtime."""

    def command(port: int, directory: Path) -> list[str]:
        run_dir = str(directory / "run")
        return [
            sys.executable,
            "-m",
            "tests.site.stub_worker",
            "supervisor",
            str(port),
            str(workers),
            run_dir,
            str(drain_s),
        ]

    with gateway(initialised, command, **extra) as running:
        until(lambda: running.works("/admin/login/") and running.log.read_text().count(" ready ") > workers, 20)
        yield running


@pytest.fixture(scope="module")
def shared(initialised: Path) -> Iterator[Gateway]:
    """One gateway for the tests that only ask it things."""
    with stub(initialised) as running:
        yield running


def test_a_killed_control_costs_pages_only_and_only_for_a_moment(initialised: Path) -> None:
    with stub(initialised) as running:
        worker = running.chat()["pid"]
        os.kill(running.pid_of("control"), signal.SIGKILL)
        seen: list[int] = []
        ends_at = time.monotonic() + 15
        while time.monotonic() < ends_at and not (seen and seen[-1] == 200 and 503 in seen):
            status, headers, body = running.get("/admin/login/", Accept="text/html")
            seen.append(status)
            if status == 503:
                assert headers["retry-after"] == "1"
                assert b"restarting" in body
            assert running.chat()["pid"] == worker
            time.sleep(0.02)
        assert set(seen) == {503, 200}
        until(lambda: running.chat()["line"] == "up")


def test_a_killed_worker_is_replaced_and_told_everything_again(initialised: Path) -> None:
    with stub(initialised) as running:
        first = running.chat()
        assert first["config_version"] == 1
        assert first["keys"]
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: running.works(CHAT) and running.chat()["pid"] != first["pid"], 10)
        again = running.chat()
        assert (again["config_version"], again["keys"]) == (first["config_version"], first["keys"])


class Load:
    """Clients that keep their connections and never pause; every reply but a good one is a failure."""

    def __init__(self, port: int) -> None:
        self.port, self.good, self.failed = port, 0, []
        self.pids: set[int] = set()
        self.running = True

    async def client(self) -> None:
        reader = writer = None
        while self.running:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                assert reader is not None
                writer.write(b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
            except (OSError, asyncio.IncompleteReadError) as exc:
                self.failed.append(repr(exc))
                writer = None
                continue
            self.good += 1
            self.pids.add(body["pid"])
            if b"connection: close" in head.lower():
                writer.close()
                writer = None

    async def through(self, action: Callable[[], None], done: Callable[[], bool], limit_s: float) -> None:
        clients = [asyncio.create_task(self.client()) for _ in range(20)]  # by chance all could meet one worker
        await asyncio.sleep(0.3)
        action()
        ends_at = time.monotonic() + limit_s
        while not done() and time.monotonic() < ends_at:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.5)  # past the lame-duck time of the last old worker
        self.running = False
        await asyncio.gather(*clients)


def test_a_roll_under_load_loses_nothing(initialised: Path) -> None:
    with stub(initialised, workers=2) as running:
        load = Load(running.port)

        def rolled() -> bool:
            return "hoosh: rolled" in running.log.read_text()

        asyncio.run(load.through(lambda: running.process.send_signal(signal.SIGUSR2), rolled, 20))
        assert rolled()
        assert load.failed == []
        assert load.good > 500
        assert len(load.pids) == 4
        assert "Exception" not in running.log.read_text()


async def _stream(port: int, events: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/chat/completions?events=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % events)
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            got += data
            if got.endswith(b"0\r\n\r\n"):
                break
    writer.close()
    return got


async def _streams_through_stop(running: Gateway, events: int) -> tuple[list[bytes], bool]:
    streams = [asyncio.create_task(_stream(running.port, events)) for _ in range(20)]
    await asyncio.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.7)
    refused = False
    try:
        await asyncio.open_connection("127.0.0.1", running.port)
    except OSError:
        refused = True
    return await asyncio.gather(*streams), refused


def test_a_stop_lets_open_streams_finish_and_refuses_new_connections(initialised: Path) -> None:
    with stub(initialised, drain_s=10) as running:
        answers, refused = asyncio.run(_streams_through_stop(running, 30))
        assert refused
        assert all(b"data: [DONE]" in answer and answer.endswith(b"0\r\n\r\n") for answer in answers)
        assert running.process.wait(10) == 0
        assert "ended unexpectedly" not in running.log.read_text()


def test_streams_longer_than_the_drain_end_in_words_not_by_a_cut(initialised: Path) -> None:
    with stub(initialised, drain_s=3) as running:
        answers, _ = asyncio.run(_streams_through_stop(running, 600))
        assert all(b'{"error":"drained"}' in answer and answer.endswith(b"0\r\n\r\n") for answer in answers)
        assert running.process.wait(10) == 0


def test_an_idle_connection_is_told_to_close_by_its_next_reply(initialised: Path) -> None:
    with stub(initialised) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)
        connection.request("GET", CHAT)
        connection.getresponse().read()
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.request("GET", CHAT)
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.getheader("connection") == "close"
        connection.close()
        assert running.process.wait(10) == 0


def test_a_reload_signal_reads_a_changed_configuration_file_and_workers_hear_of_it(initialised: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "hoosh.toml"
        file.write_text("[server]\nhealth_check_interval_secs = 60\n")
        with stub(initialised, HOOSH_CONFIG=str(file)) as running:
            until(lambda: running.chat()["config_version"] == 2)  # imported at the start
            control = running.pid_of("control")
            file.write_text("[server]\nhealth_check_interval_secs = 90\n")
            time.sleep(0.6)
            assert running.chat()["config_version"] == 2  # the file is not watched
            running.process.send_signal(signal.SIGHUP)
            until(lambda: running.chat()["config_version"] == 3)
            file.write_text("this is not TOML")
            running.process.send_signal(signal.SIGHUP)
            until(lambda: "config_import_failed" in running.log.read_text())
            assert running.works("/admin/login/")
            assert (running.pid_of("control"), running.chat()["config_version"]) == (control, 3)


# --- the admin through the forwarder ----------------------------------------------------------------------------------


def _sign_in(running: Gateway, origin: str | None, **extra: str) -> tuple[int, dict[str, str]]:
    status, headers, page = running.get("/admin/login/", **extra)
    assert status == 200
    token = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    cookie = headers["set-cookie"].partition(";")[0]
    form = {
        "username": "admin",
        "password": running.password(),
        "csrfmiddlewaretoken": token[1].decode(),
        "next": "/admin/",
    }
    sent = {"Content_Type": "application/x-www-form-urlencoded", "Cookie": cookie, **extra}
    if origin is not None:
        sent["Origin"] = origin
    status, headers, _ = running.get("/admin/login/", "POST", urlencode(form), **sent)
    return status, headers


def test_signing_in_works_from_the_same_origin_only(shared: Gateway) -> None:
    assert _sign_in(shared, f"http://127.0.0.1:{shared.port}")[0] == 302
    assert _sign_in(shared, None)[0] == 302
    assert _sign_in(shared, "http://evil.example")[0] == 403
    assert shared.get("/admin/login/", Host="evil.example")[0] == 400
    status, headers = _sign_in(shared, f"http://localhost:{shared.port}", Host=f"localhost:{shared.port}")
    assert status == 302
    session = headers["set-cookie"].partition(";")[0]
    status, _, page = shared.get("/admin/", Cookie=session, Host=f"localhost:{shared.port}")
    assert status == 200
    assert b"admin" in page


def test_signing_in_behind_a_trusted_tls_front_needs_its_headers(initialised: Path) -> None:
    settings = {
        "HOOSH_TRUSTED_PROXIES": "127.0.0.1",
        "HOOSH_PUBLIC_URL": "https://gate.example",
        "HOOSH_ALLOWED_HOSTS": "gate.example",
    }
    front = {"Host": "gate.example", "X_Forwarded_Proto": "https", "X_Forwarded_For": "9.9.9.9"}
    with stub(initialised, **settings) as running:
        assert _sign_in(running, "https://gate.example", **front)[0] == 302
        assert _sign_in(running, None, Referer="https://gate.example/admin/login/", **front)[0] == 302
        assert _sign_in(running, None, **front)[0] == 403
        assert _sign_in(running, "https://evil.example", **front)[0] == 403


def test_static_files_head_and_conditions_survive_the_forwarding(shared: Gateway) -> None:
    path = "/static/admin/css/base.css"
    status, headers, body = shared.get(path)
    assert status == 200
    assert int(headers["content-length"]) == len(body) > 5000
    status, head_headers, nothing = shared.get(path, "HEAD")
    assert (status, nothing) == (200, b"")
    assert head_headers["content-length"] == headers["content-length"]
    status, _, nothing = shared.get(path, If_Modified_Since=headers["last-modified"])
    assert (status, nothing) == (304, b"")
    status, _, part = shared.get(path, Range="bytes=0-9")
    assert (status, part) == (206, body[:10])


def test_a_large_upload_reaches_the_admin_and_a_too_large_one_is_told_so(shared: Gateway) -> None:
    _, headers, page = shared.get("/admin/login/")
    token = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    fields = {"username": b"admin", "password": shared.password().encode(), "csrfmiddlewaretoken": token[1]}
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), v) for n, v in fields.items()
    ]
    upload = (
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + b"y" * 20_000_000 + b"\r\n--x--\r\n"
    )
    sent = {
        "Content_Type": "multipart/form-data; boundary=x",
        "Cookie": headers["set-cookie"].partition(";")[0],
        "Origin": f"http://127.0.0.1:{shared.port}",
    }
    assert shared.get("/admin/login/", "POST", b"".join(parts) + upload, **sent)[0] == 302
    assert shared.get("/admin/login/", "POST", b"y" * (53 << 20), **sent)[0] == 413


# --- the commands -----------------------------------------------------------------------------------------------------


def _manage(*arguments: str) -> Callable[[int, Path], list[str]]:
    return lambda port, directory: [
        sys.executable,
        "manage.py",
        *arguments,
        *(str(port) for _ in [0] if "serve" not in arguments),
    ]


def _ask_demo(running: Gateway) -> tuple[int, bytes]:
    key = re.search(r"hk-\S+", (running.directory / "first-run.txt").read_text())
    assert key is not None
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]})
    headers = {"Authorization": f"Bearer {key[0]}", "Content_Type": "application/json"}
    status, _, answer = running.get(CHAT, "POST", body, **headers)
    return status, answer


def test_serve_runs_everything_on_one_port_and_refuses_a_second_one(initialised: Path) -> None:
    with gateway(initialised, _manage("serve", "--workers", "2"), HOOSH_DRAIN_S="3") as running:
        until(lambda: running.works("/readyz") and running.works("/admin/login/"), 20)
        status, answer = _ask_demo(running)
        assert status == 200, answer
        assert "2 worker(s)" in running.log.read_text()
        for extra, words in ((str(free_port()), "already runs"), (str(running.port), "already runs")):
            second = subprocess.run(
                [sys.executable, "manage.py", "serve", "--port", extra],
                cwd=ROOT,
                env=environment(running.directory),
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            assert second.returncode == 1
            assert words in second.stderr


def test_serve_refuses_what_is_not_safe_and_says_what_to_do(initialised: Path) -> None:
    for directory, extra, words in (
        (Path("/nonexistent-hoosh"), [], "manage.py init"),
        (initialised, ["--bind", "0.0.0.0"], "HOOSH_ALLOWED_HOSTS"),
    ):
        refused = subprocess.run(
            [sys.executable, "manage.py", "serve", "--port", str(free_port()), *extra],
            cwd=ROOT,
            env=environment(directory),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert refused.returncode == 1
        assert words in refused.stderr


def test_runserver_is_the_whole_gateway_in_one_process(initialised: Path) -> None:
    with gateway(initialised, _manage("runserver", "--noreload")) as running:
        until(lambda: running.works("/admin/login/"), 20)
        until(lambda: running.works("/readyz"), 10)
        status, answer = _ask_demo(running)
        assert status == 200, answer
