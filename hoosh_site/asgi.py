"""The ASGI application of the control process and, with HOOSH_ROLE=all, of the whole gateway in one process.

`application` is what Daphne serves: Django with the admin and the API views; live pages and web sockets are further
routes of the same routers. Under `manage.py runserver` (HOOSH_ROLE=all) the first request also starts the control plane
and one worker's runtime on the server's own loop, joined by the same link as in production.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import re_path

log = logging.getLogger("hoosh.asgi")

START_WAIT_S = 5.0  # how long the first request waits for the first configuration

django_application = get_asgi_application()
control_application = ProtocolTypeRouter(
    {"http": URLRouter([re_path(r"", django_application)])}  # type: ignore[arg-type]
)


class EverythingInOne:
    """Control plane and worker inside one web server process, for development. Starts with the first request."""

    def __init__(self, control: Any) -> None:
        self._control = control
        self._lock = asyncio.Lock()
        self._routes: Any = None
        self._kept: list[Any] = []
        self._pid_fd: int | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection; the first one starts everything."""
        if self._routes is None:
            async with self._lock:
                if self._routes is None:
                    self._routes = await self._start()
        await self._routes(scope, receive, send)

    async def _start(self) -> Any:
        from gateway.forward import ProxyTrust
        from hoosh_site.control import build_plane
        from hoosh_site.link import Register
        from hoosh_site.supervisor import take_pid_file
        from hoosh_site.worker import connect, default_runtime, options_from_settings

        # Two writers on one ledger would each believe to be alone.
        if self._pid_fd is None:
            self._pid_fd = take_pid_file(settings.HOOSH_RUN_DIR)
        plane = build_plane()
        await plane.start()
        options = options_from_settings(0)
        runtime = default_runtime(options, ProxyTrust(options.trusted_proxies))
        await runtime.start()
        link = connect(
            runtime, options.link_socket, Register(options.owner, options.index, os.getpid(), options.version)
        )
        link.start()
        self._kept = [plane, runtime, link]
        ends_at = time.monotonic() + START_WAIT_S
        while not runtime.ready and time.monotonic() < ends_at:  # noqa: ASYNC110 - once, at the start
            await asyncio.sleep(0.02)
        log.info("all_in_one_started", extra={"ready": runtime.ready})
        inference = re_path(runtime.inference_pattern, runtime.asgi(self._control))
        routes = URLRouter([inference, re_path(r"", self._control)])
        return ProtocolTypeRouter({"http": routes})


application: Any = EverythingInOne(control_application) if settings.HOOSH_ROLE == "all" else control_application
