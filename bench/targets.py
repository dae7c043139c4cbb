"""What is measured: the gateway, nginx in its place, and the mock alone; and starting all of them.

The measured process (gateway worker, nginx proxy) has the first core for itself. Everything else (load, mocks, control,
supervisor) shares the second, so figures are those of one saturated core.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from bench import processes
from tests import children
from tests.servers import PROJECT_DIR, Gateway, ProviderEntry, answers

ADMIN_USER, ADMIN_PASSWORD = "bench", "bench-only-7f3a"
UNARY_MODEL = "bench-unary"
_ROWS = """
from budgets.models import Agent, Team
team = Team.objects.create(name="bench rows")
Agent.objects.bulk_create(Agent(team=team, name=f"agent {number:04d}") for number in range(@ROWS@))
"""
_NGINX_DIR = Path(__file__).parent / "nginx"


@dataclass
class Target:
    """One thing under load. `pids` are the processes whose CPU is counted; `others` are reported beside them."""

    name: str
    unary_port: int
    stream_port: int
    pids: list[int] = field(default_factory=list)
    others: dict[str, list[int]] = field(default_factory=dict)
    key: str = "none"


class Setup:
    """All processes of one benchmark run, in one directory. `with Setup(directory) as setup: ...`"""

    port_names: tuple[str, ...] = ("MOCK", "SSE", "PROXY", "PROXY_SSE")

    def __init__(self, directory: Path, *, database_url: str = "") -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.ports = {name: children.free_port() for name in self.port_names}
        self._cores = processes.cores()
        self.pinned = len(self._cores) >= 2
        self.cold_start_s: list[float] = []
        self.gateway = Gateway(
            directory / "gateway",
            providers=self.providers(),
            extra_toml='[[budgets]]\nname = "default"\ncapacity = 1000000000000000\n',
            database_url=database_url,
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.pinned:
            os.sched_setaffinity(0, {self._cores[1]})
        with contextlib.ExitStack() as stack:
            self.start_mocks(stack)
            stack.callback(self.gateway.stop)
            self.gateway.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def providers(self) -> list[ProviderEntry]:
        """What the gateway's configuration names: the mocks."""
        return [
            ProviderEntry(self.url("SSE"), models=["bench-sse-*"]),
            ProviderEntry(self.url("MOCK"), models=["bench-*"], priority=20),
        ]

    def targets(self) -> list[Target]:
        """The mock alone, nginx, and the gateway, the measured processes pinned."""
        if self.pinned:
            processes.pin(self._proxy.pid, self._cores[0])
        return [
            Target("direct", self.ports["MOCK"], self.ports["SSE"]),
            Target("nginx", self.ports["PROXY"], self.ports["PROXY_SSE"], [self._proxy.pid]),
            self.gateway_target(),
        ]

    def gateway_target(self) -> Target:
        """The gateway, its processes pinned."""
        gateway = self.gateway
        workers = gateway.role_pids("worker")
        others = {"control": gateway.role_pids("control"), "supervisor": [gateway.pid]}
        if self.pinned:
            for pid in workers:
                processes.pin(pid, self._cores[0])
            for pid in [pid for pids in others.values() for pid in pids]:
                processes.pin(pid, self._cores[1])
        return Target("hoosh", gateway.port, gateway.port, workers, others, gateway.key)

    def memory_mb(self) -> dict[str, float]:
        """PSS of the gateway's processes by role, and their sum."""
        roles = {
            "supervisor": [self.gateway.pid],
            "control": self.gateway.role_pids("control"),
            "workers": self.gateway.role_pids("worker"),
        }
        sizes = {role: round(sum(map(processes.pss_mb, pids)), 1) for role, pids in roles.items()}
        return {**sizes, "total": round(sum(sizes.values()), 1)}

    def measure_cold_starts(self, count: int) -> None:
        """Restart the gateway so many times; from exec to the first correct inference answer, in seconds."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)  # a start may use all cores, as it does in production
        for _ in range(count):
            self.gateway.stop()
            start = time.monotonic()
            self.gateway.start_process()
            while not self._infers():
                if time.monotonic() - start > 30:
                    raise children.ChildError(
                        f"No inference answer 30 s after the start.{children.tail(self.gateway.log)}"
                    )
                time.sleep(0.01)
            self.cold_start_s.append(round(time.monotonic() - start, 3))
            self.gateway.wait_ready()
        os.sched_setaffinity(0, before)

    def make_admin_rows(self, rows: int) -> None:
        """An operator to sign in with, and rows for the page that is reloaded."""
        self.gateway.env = {**self.gateway.env, "DJANGO_SUPERUSER_PASSWORD": ADMIN_PASSWORD}
        self.gateway.manage("createsuperuser", "--noinput", "--username", ADMIN_USER, "--email", "bench@example.org")
        self.gateway.manage("shell", "-c", _ROWS.replace("@ROWS@", str(rows)))

    def _infers(self) -> bool:
        body = {"model": UNARY_MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
        try:
            reply = httpx.post(
                f"{self.gateway.base_url}/v1/chat/completions",
                json=body,
                headers=self.gateway.auth,
                timeout=5,
                trust_env=False,
            )
        except httpx.HTTPError:
            return False
        return reply.status_code == 200 and "usage" in reply.json()

    def url(self, port: str) -> str:
        """Where a port of ours is reached."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def start_mocks(self, stack: contextlib.ExitStack) -> None:
        """Start what the gateway calls and what it is compared with; `stack` ends them."""
        self.spawn(stack, [sys.executable, "-m", "bench.mock", str(self.ports["SSE"])], "sse")
        self.spawn(stack, ["nginx", "-c", self.config("mock")], "mock")
        self._proxy = self.spawn(stack, ["nginx", "-c", self.config("proxy")], "proxy")
        for port in ("SSE", "MOCK", "PROXY"):
            self.wait_for(port)

    def wait_for(self, port: str) -> None:
        """Wait until a mock answers."""
        children.wait_for(functools.partial(answers, f"{self.url(port)}/v1/models"), f"the {port} to answer")

    def spawn(self, stack: contextlib.ExitStack, command: list[str | Path], name: str) -> subprocess.Popen[bytes]:
        """Start a process that `stack` ends."""
        process = children.spawn(
            command, log=self.directory / f"{name}.log", env={**os.environ, "PATH": _path()}, cwd=PROJECT_DIR
        )
        stack.callback(children.stop, process)
        return process

    def config(self, name: str) -> Path:
        """An nginx configuration with this setup's ports."""
        text = (_NGINX_DIR / f"{name}.conf").read_text(encoding="utf-8").replace("@DIR@", str(self.directory))
        for port, number in self.ports.items():
            text = text.replace(f"@{port}_PORT@", str(number))
        path = self.directory / f"{name}.conf"
        path.write_text(text, encoding="utf-8")
        return path


def _path() -> str:
    # nginx is in a directory that only root's PATH names on some systems.
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
