"""Real servers for tests: llama.cpp, the fault upstream as a process, and the gateway's own processes.

    with Gateway(directory, providers=[llama.provider()]) as gateway:
        httpx.get(gateway.base_url + "/v1/models", headers=gateway.auth)

Everything started here ends with its `stop`, with the test session, or with the session's sudden death.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests import children, environment, tiny_gguf

PROJECT_DIR = Path(__file__).resolve().parent.parent
_READY_S = 120
_STOP_S = 60


@dataclass(frozen=True)
class ProviderEntry:
    """One `[[providers]]` table of the configuration file a gateway is started with."""

    base_url: str
    kind: str = "openai"
    models: Sequence[str] = ("*",)
    api_key: str = ""
    priority: int = 10

    def toml(self) -> str:
        """The table as TOML; JSON strings are valid TOML strings."""
        entries = {"type": self.kind, "base_url": self.base_url, "models": list(self.models), "priority": self.priority}
        if self.api_key:
            entries["api_key"] = self.api_key
        return "[[providers]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in entries.items())


class LlamaServer:
    """A real llama.cpp server with a tiny generated model: chat, streams, completions and embeddings.

    `model` is passed on to `tests.tiny_gguf.write`; `context` is that of each of the `slots`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        alias: str = "tiny",
        key: str = "",
        context: int = 8192,
        slots: int = 4,
        **model: Any,
    ) -> None:
        self.alias, self.key = alias, key
        self.port = 0
        self._directory = directory
        self._model = model
        self._size = ["--context", str(context), "--slots", str(slots)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where it answers, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    def provider(self, **changes: Any) -> ProviderEntry:
        """The configuration entry that routes the model to this server."""
        entry = {"kind": "llamacpp", "models": [self.alias], "api_key": self.key, **changes}
        return ProviderEntry(self.base_url, **entry)

    def start(self) -> LlamaServer:
        """Start it and wait until the model is loaded."""
        self._directory.mkdir(parents=True, exist_ok=True)
        model = self._directory / "tiny.gguf"
        if not model.exists():
            tiny_gguf.write(model, **self._model)
        self.port = children.free_port()
        log = self._directory / "llama.log"
        key = ["--key", self.key] if self.key else []
        self._process = children.spawn(
            [
                *(sys.executable, "-m", "tests.llama_process", model, str(self.port), "--alias", self.alias),
                *(*key, *self._size),
            ],
            log=log,
            env=environment.clean_environment(),
            cwd=PROJECT_DIR,
        )
        children.wait_for(
            lambda: answers(f"{self.base_url}/health", process=self._process), "llama.cpp to be healthy", log=log
        )
        return self

    def stop(self) -> None:
        """End it; it has nothing to drain."""
        if self._process is not None:
            children.stop(self._process, how=signal.SIGKILL)
            self._process = None


class UpstreamProcess:
    """The fault upstream of `tests.upstream` in a process of its own, so that it can be killed mid-answer."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.truth_file = directory / "truth.jsonl"
        self.port = children.free_port()
        self._log = directory / "upstream.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where it answers, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> UpstreamProcess:
        """Start it, on the same port each time, and wait until it answers."""
        self._process = children.spawn(
            [sys.executable, "-m", "tests.upstream", str(self.port), "--truth", self.truth_file],
            log=self._log,
            env=environment.clean_environment(),
            cwd=PROJECT_DIR,
        )
        children.wait_for(
            lambda: answers(f"{self.base_url}/health", process=self._process), "the upstream to answer", log=self._log
        )
        return self

    def truth(self) -> list[dict[str, Any]]:
        """What it wrote down: one entry per request it read, complete answer or not."""
        if not self.truth_file.exists():
            return []
        return [json.loads(line) for line in self.truth_file.read_text().splitlines()]

    def kill(self) -> None:
        """SIGKILL: every connection is cut."""
        if self._process is not None:
            children.stop(self._process, how=signal.SIGKILL)
            self._process = None

    stop = kill


@dataclass
class Gateway:
    """The gateway as users run it: `manage.py init`, then `manage.py serve`, with its own data directory and port.

    `database_url` empty = SQLite; `extra_toml` goes behind the providers in the configuration file. `key` is the
    first run's: every model, the default pool, and the operator's calls.
    """

    directory: Path
    providers: Sequence[ProviderEntry] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    database_url: str = ""
    extra_toml: str = ""
    port: int = field(default_factory=children.free_port)
    key: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """HOOSH_DATA_DIR of this gateway."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """Standard output and error of all its processes."""
        return self.directory / "serve.log"

    @property
    def base_url(self) -> str:
        """Where it answers, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def auth(self) -> dict[str, str]:
        """The header that carries `key`."""
        return {"authorization": f"Bearer {self.key}"}

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        if self._process is None:
            raise children.ChildError("The gateway is not running.")
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """What its processes see: the settings given and nothing of the developer's shell."""
        values = {
            **environment.clean_environment(),
            "HOOSH_DATA_DIR": str(self.data_dir),
            "HOOSH_WORKERS": str(self.workers),
            "HOOSH_DRAIN_S": "10",
            "PORT": str(self.port),
        }
        if self.providers:
            values["HOOSH_CONFIG"] = str(self.directory / "hoosh.toml")
        if self.database_url:
            values["DATABASE_URL"] = self.database_url
        return {**values, **self.env}

    def manage(self, *arguments: str, timeout_s: float = 180) -> str:
        """Run one management command against this gateway's data and return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT_DIR,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise children.ChildError(f"manage.py {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def create_key(self, name: str, *options: str) -> str:
        """A new API key's text; `options` as for `manage.py create_key`."""
        return str(json.loads(self.manage("create_key", name, "--json", *options))["key"])

    def start(self) -> Gateway:
        """Initialise on the first call, serve, and wait until it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.providers:
            text = "\n".join([*(entry.toml() for entry in self.providers), self.extra_toml])
            (self.directory / "hoosh.toml").write_text(text, encoding="utf-8")
        if not self.key:
            self.manage("init")
            told = (self.data_dir / "first-run.txt").read_text(encoding="utf-8")
            self.key = next(word for word in told.split() if word.startswith("hk-"))
        self.start_process()
        self.wait_ready()
        return self

    def start_process(self) -> None:
        """`manage.py serve`, without waiting for anything."""
        self._process = children.spawn(
            [sys.executable, "manage.py", "serve"], log=self.log, env=self.environment(), cwd=PROJECT_DIR
        )

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Wait until /readyz and control answer."""
        for path in ("/readyz", "/admin/login/"):
            children.wait_for(
                lambda url=self.base_url + path: answers(url, process=self._process),
                f"{path} of the gateway to answer 200",
                timeout_s=timeout_s,
                log=self.log,
            )

    def role_pids(self, role: str) -> list[int]:
        """Process ids of "worker" or "control", in the order of their start."""
        return [pid for pid in descendants(self.pid) if role_of(pid) == role]

    def kill_worker(self, index: int = 0) -> int:
        """SIGKILL one worker; returns the process id it had."""
        return self._kill("worker", index)

    def kill_control(self) -> int:
        """SIGKILL control; returns the process id it had."""
        return self._kill("control", 0)

    def kill(self, pid: int) -> None:
        """SIGKILL one of its processes; one that has ended by itself is an error."""
        os.kill(pid, signal.SIGKILL)

    def _kill(self, role: str, index: int) -> int:
        pid = self.role_pids(role)[index]
        self.kill(pid)
        return pid

    def wait_restarted(self, role: str, old_pid: int, timeout_s: float = _READY_S) -> int:
        """Wait for the successor of a killed process; returns its process id."""
        (pid, *_) = children.wait_for(
            lambda: [pid for pid in self.role_pids(role) if pid != old_pid],
            f"a new {role} process",
            timeout_s=timeout_s,
            log=self.log,
        )
        self.wait_ready()
        return pid

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Rows of the ledger database, read past the product's own code."""
        if self.database_url:
            with psycopg.connect(self.database_url, row_factory=psycopg.rows.dict_row) as connection:
                return connection.execute(query.encode()).fetchall()
        path = self.data_dir / "ledger.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def usage(self) -> dict[str, dict[str, Any]]:
        """Usage rows settled so far by request id (hexadecimal), the last attempt of each."""
        return {row["rid"]: row for row in self.rows("SELECT * FROM budgets_usage ORDER BY attempt")}

    def wait_settled(self, rid: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait for one request's usage row and return it."""
        return children.wait_for(lambda: self.usage().get(rid), f"the usage row of {rid}", timeout_s=timeout_s)

    def stop(self) -> None:
        """SIGTERM, wait for the drain, and leave no process behind."""
        if self._process is not None:
            family = [self.pid, *descendants(self.pid)]
            children.stop(self._process, timeout_s=_STOP_S)
            self._process = None
            end_all(family)

    def __enter__(self) -> Gateway:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stop()
        if error is not None and hasattr(error, "add_note"):
            error.add_note(children.tail(self.log))


def request_id(headers: Mapping[str, str]) -> str:
    """Our id of a request from its reply's headers, in the form of the usage rows: 32 hexadecimal digits."""
    return headers["x-hoosh-request"].rpartition("-")[2].lower()


def answers(url: str, *, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Whether a GET is answered with 200. Raises when the process that should answer has ended."""
    if process is not None and process.poll() is not None:
        raise children.ChildError(f"The process ended with status {process.returncode} before it answered {url}.")
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def descendants(pid: int) -> list[int]:
    """All processes below one, oldest first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for child in _children_of(waiting.pop(0)):
            found.append(child)
            waiting.append(child)
    return sorted(found)


def role_of(pid: int) -> str:
    """ "worker" or "control" for the gateway's processes below the supervisor, by their command line; else empty."""
    command_line = _command_line(pid)
    return next((role for role in ("worker", "control") if f"hoosh_site.{role}" in command_line), "")


def end_all(pids: Sequence[int], *, timeout_s: float = 5) -> None:
    """SIGKILL those of the processes that are still ours, and wait until they are gone."""
    end = time.monotonic() + timeout_s
    for pid in pids:
        while _is_ours(pid) and time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _is_ours(pid: int) -> bool:
    return "manage.py" in _command_line(pid) or role_of(pid) != ""


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _children_of(pid: int) -> Iterator[int]:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except OSError:
        return
