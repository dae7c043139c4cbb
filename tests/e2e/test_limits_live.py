"""An operator changes a budget while the real processes serve: the next requests go by it within a second."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.servers import PROJECT_DIR, Gateway

pytestmark = pytest.mark.processes

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
SPENT, SERVED = (429, "insufficient_quota"), (200, "")
# One process for all changes: starting one takes longer than what is measured here.
_OPERATOR = """
import sys
from decimal import Decimal
from budgets import access
from budgets.models import Pool
for line in sys.stdin:
    pool = Pool.objects.get(name="default")
    exec(line)
    access.save_pool(pool, actor="test")
    print("saved", flush=True)
"""


@contextlib.contextmanager
def operator(gateway: Gateway) -> Iterator[Callable[[str], None]]:
    """Carries out a statement on `pool`, the default pool, in a process of its own, and saves it."""
    with subprocess.Popen(
        [sys.executable, "manage.py", "shell", "-c", _OPERATOR],
        cwd=PROJECT_DIR,
        env=gateway.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        told, says = process.stdin, process.stdout
        assert told is not None
        assert says is not None

        def change(statement: str) -> None:
            print(statement, file=told, flush=True)
            for said in says:
                if said.strip() == "saved":
                    return
            raise AssertionError("the operator's process has ended")

        yield change
        told.close()


def outcome(gateway: Gateway) -> tuple[int, str]:
    """Status and error code of one request."""
    answer = httpx.post(f"{gateway.base_url}/v1/chat/completions", json=BODY, headers=gateway.auth, timeout=20)
    return answer.status_code, "" if answer.is_success else str(answer.json()["error"]["code"])


def within_a_second(gateway: Gateway, wanted: tuple[int, str]) -> None:
    ends_at = time.monotonic() + 1.0
    while (found := outcome(gateway)) != wanted:
        assert time.monotonic() < ends_at, found


def test_changes_of_a_pool_act_within_a_second(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway(env={"HOOSH_ACCESS_LOG": "off"})
    assert outcome(gateway) == SERVED
    with operator(gateway) as change:
        for statement, wanted in (
            ("pool.capacity_tokens = 0", SPENT),
            ("pool.mode = 'observe'", SERVED),
            ("pool.mode = 'hard'", SPENT),
            ("pool.capacity_tokens, pool.capacity_usd = None, Decimal(1)", SERVED),
            ("pool.enabled = False", (403, "pool_disabled")),
            ("pool.enabled, pool.window = True, 'hour'", SERVED),
        ):
            change(statement)
            within_a_second(gateway, wanted)
    gateway.kill_control()
    assert outcome(gateway) == SERVED  # on what is leased
