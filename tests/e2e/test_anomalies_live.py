"""A loop in a real gateway: seen by the worker, raised by control, held back by the worker, and let go by a word."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests import children
from tests.servers import Gateway, ProviderEntry
from tests.upstream import FaultUpstream

pytestmark = pytest.mark.processes

_HOLD_BACK = """
from budgets import access
from budgets.models import Agent
for agent in Agent.objects.all():
    agent.loop_limit, agent.anomaly_action, agent.throttle_rpm = 5, "throttle", 2
    access.save_agent(agent, actor="test")
"""
_FOUND = """
from budgets.models import Anomaly
print([(row.kind, row.observed > 5, row.throttled, row.state) for row in Anomaly.objects.all()])
"""
_ACKNOWLEDGE = """
from budgets import anomaly_watch
from budgets.models import Anomaly
for row in Anomaly.objects.all():
    anomaly_watch.acknowledge(row, actor="test")
"""


def ask(gateway: Gateway, text: str) -> int:
    body = {"model": "ok", "messages": [{"role": "user", "content": text}]}
    url = f"{gateway.base_url}/v1/chat/completions"
    return httpx.post(url, headers=gateway.auth, json=body, timeout=20, trust_env=False).status_code


def test_an_agent_in_a_loop_is_held_back_until_somebody_has_seen_it(tmp_path: Path) -> None:
    with FaultUpstream() as up, Gateway(tmp_path / "g", providers=[ProviderEntry(up.url, models=["ok"])]) as gateway:
        gateway.manage("shell", "-c", _HOLD_BACK)
        time.sleep(1.5)  # the feed
        if time.time() % 60 > 50:
            time.sleep(61 - time.time() % 60)  # not over the end of a minute
        assert [ask(gateway, f"different {number}") for number in range(8)] == [200] * 8
        assert [ask(gateway, "the same") for _ in range(7)] == [200] * 7

        def is_held_back() -> bool:
            return ask(gateway, "the same") == 429

        children.wait_for(is_held_back, "the agent to be held back", timeout_s=60, log=gateway.log)
        assert gateway.manage("shell", "-v", "0", "-c", _FOUND).strip() == "[('loop', True, True, 'open')]"
        gateway.manage("shell", "-c", _ACKNOWLEDGE)
        children.wait_for(
            lambda: [ask(gateway, f"again {n}") for n in range(4)] == [200] * 4,
            "the agent to go on",
            timeout_s=60,
            log=gateway.log,
        )
