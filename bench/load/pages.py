"""An operator who reloads one admin page without pause. `python -m bench.load.pages BASE_URL PATH`.

Environment: ADMIN_USER, ADMIN_PASSWORD. Runs until SIGTERM, then prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time

import httpx


class SignInError(RuntimeError):
    """The admin did not let the benchmark's operator in."""


def sign_in(client: httpx.Client) -> None:
    """Sign in through the login page, as a browser does."""
    client.get("/admin/login/").raise_for_status()
    token = next(value for name, value in client.cookies.items() if "csrf" in name)
    reply = client.post(
        "/admin/login/?next=/admin/",
        data={
            "username": os.environ["ADMIN_USER"],
            "password": os.environ["ADMIN_PASSWORD"],
            "csrfmiddlewaretoken": token,
        },
        headers={"Referer": f"{client.base_url}admin/login/"},
    )
    if reply.status_code != 302:
        raise SignInError(f"signing in was answered with {reply.status_code}")


def main() -> None:
    """Reload until told to stop."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    times_ms: list[float] = []
    size = errors = 0
    with httpx.Client(base_url=sys.argv[1], timeout=60, trust_env=False) as client:
        sign_in(client)
        print("READY", flush=True)
        while not stopping:
            start = time.perf_counter()
            reply = client.get(sys.argv[2])
            times_ms.append((time.perf_counter() - start) * 1000)
            size = len(reply.content)
            errors += reply.status_code != 200
    median = round(statistics.median(times_ms), 1) if times_ms else 0
    print(json.dumps({"pages": len(times_ms), "p50_ms": median, "page_bytes": size, "errors": errors}))


if __name__ == "__main__":
    main()
