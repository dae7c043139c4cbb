"""`manage.py serve`: check the settings, then run the gateway's processes on one port."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from hoosh_site.supervisor import CONTROL, WORKER, ServeError, open_listeners

# Command line option -> environment variable: the settings are the one place where both are read.
_OVERRIDES = {"bind": "HOOSH_BIND", "port": "PORT", "workers": "HOOSH_WORKERS", "config": "HOOSH_CONFIG"}


class Command(BaseCommand):
    """Turns into the supervisor, or with --role into one of its processes, so that no memory is spent on Django."""

    help = "Serve the gateway: one control process and the workers, on one port."
    requires_system_checks = []  # the checks that matter here are asked below, with their remedies

    def add_arguments(self, parser: CommandParser) -> None:
        """Options override environment variables of the same meaning."""
        parser.add_argument("--bind", help="Address to listen on (HOOSH_BIND).")
        parser.add_argument("--port", type=int, help="Port to listen on (PORT).")
        parser.add_argument("--workers", type=int, help="Number of worker processes (HOOSH_WORKERS).")
        parser.add_argument("--config", help="hoosh.toml to import when it changed (HOOSH_CONFIG).")
        parser.add_argument("--role", choices=(CONTROL, WORKER), help="Run only this process, without a supervisor.")
        parser.add_argument("--index", type=int, default=0, help="With --role worker: its number.")
        parser.add_argument("--socket-fd", type=int, help="With --role worker: an open listening socket.")
        parser.add_argument("--ready-fd", type=int, help="With --role: a pipe to write to once ready.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Never returns: the process becomes another program or exits with status 1."""
        self._apply_overrides(options)
        # A relative one is the caller's, not the checkout's.
        os.environ["HOOSH_DATA_DIR"] = str(settings.HOOSH_DATA_DIR)
        os.environ.pop("HOOSH_DATA_DIR_FILE", None)
        problems = _problems()
        if problems:
            for problem in problems:
                self.stderr.write(f"- {problem}")
            raise CommandError("The gateway was not started: see the lines above.")
        sys.stdout.flush()
        ready = [] if options["ready_fd"] is None else ["--ready-fd", str(options["ready_fd"])]
        if options["role"] == CONTROL:
            _become("hoosh_site.control", ready)
        if options["role"] == WORKER:
            _become("hoosh_site.worker", ["--index", str(options["index"]), *_socket(options["socket_fd"]), *ready])
        _become(
            "hoosh_site.supervisor",
            [
                *("--bind", settings.HOOSH_BIND, "--port", str(settings.HOOSH_PORT)),
                *("--workers", str(settings.HOOSH_WORKERS), "--run-dir", str(settings.HOOSH_RUN_DIR)),
                *("--drain-s", str(settings.HOOSH_DRAIN_S)),
            ],
        )

    def _apply_overrides(self, options: dict[str, Any]) -> None:
        """Put options into the environment and start over, so that every setting that depends on them agrees."""
        given = {name: str(options[option]) for option, name in _OVERRIDES.items() if options[option] is not None}
        files = [f"{name}_FILE" for name in given if f"{name}_FILE" in os.environ]  # would count before the option
        if not files and all(os.environ.get(name) == value for name, value in given.items()):
            return
        for name in files:
            del os.environ[name]
        os.environ.update(given)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - this very command


def _problems() -> list[str]:
    from hoosh_site.checks import unsafe_settings

    return unsafe_settings()


def _socket(fd: int | None) -> list[str]:
    if fd is None:
        try:
            (listener,) = open_listeners(settings.HOOSH_BIND, settings.HOOSH_PORT, 1)
        except ServeError as exc:
            raise CommandError(str(exc)) from exc
        fd = listener.detach()
    os.set_inheritable(fd, True)
    return ["--socket-fd", str(fd)]


def _become(module: str, arguments: list[str]) -> NoReturn:
    os.chdir(settings.BASE_DIR)  # where `-m` finds the package
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own module
