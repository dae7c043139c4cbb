"""Privacy policies over the gateway's own processes: from hoosh's file and the rows to workers, books and events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests import children
from tests.gateway.test_screening import stored
from tests.servers import Gateway, ProviderEntry, UpstreamProcess, request_id

pytestmark = [pytest.mark.processes, pytest.mark.database]

StartGateway = Callable[..., Gateway]
MAIL, CARD, PROJECT = "alice.liddell@example.com", "4111 1111 1111 1111", "Operation Bluebird"
DLP = '[dlp]\nenabled = true\n[[dlp_pattern]]\nname = "operation"\npattern = "operation bluebird"\n'
_REDACT = """
from budgets import access
from budgets.models import Team
from providers import services
from providers.models import PrivacyPolicy
policy = PrivacyPolicy(name="redact", internal="redact", confidential="redact", restricted="redact")
services.save_privacy_policy(policy, actor="test")
for team in Team.objects.all():
    team.privacy_policy = policy
    access.save_team(team, actor="test")
"""


def test_policies_reach_workers_and_nothing_that_was_found_is_kept(
    start_gateway: StartGateway, upstream_process: UpstreamProcess
) -> None:
    gateway = start_gateway(providers=[ProviderEntry(upstream_process.base_url)], extra_toml=DLP)
    with httpx.Client(base_url=gateway.base_url, headers=gateway.auth, timeout=30, trust_env=False) as http:

        def ask(said: str, **headers: str) -> httpx.Response:
            body: dict[str, Any] = {"model": "ok", "messages": [{"role": "user", "content": said}], "max_tokens": 3}
            return http.post("/v1/chat/completions", json=body, headers={"x-hoosh-explain": "1", **headers})

        refused = ask(f"my card is {CARD}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "privacy_refused")
        assert http.get(f"/v1/requests/{request_id(refused.headers)}").status_code == 404
        local = ask(f"what about {PROJECT}?")
        assert local.status_code == 200
        gateway.wait_settled(request_id(local.headers))
        told = http.get(f"/v1/requests/{local.headers['x-hoosh-request']}").json()["decision"]["privacy"]
        assert told == {"action": "local", "level": "confidential", "found": ["operation"]}

        gateway.manage("shell", "-c", _REDACT)
        wanted = {"action": "redact", "level": "restricted", "found": ["credit_card", "email", "operation"]}

        def redacted() -> httpx.Response | None:
            reply = ask(f"{MAIL}, {CARD}, {PROJECT}", **{"idempotency-key": f"once {len(seen)}"})
            seen.append(reply.text)
            return reply if reply.status_code == 200 else None

        seen: list[str] = []
        reply = children.wait_for(redacted, "the team's policy")
        assert json.loads(reply.headers["x-hoosh-decision"])["privacy"] == wanted
        gateway.wait_settled(request_id(reply.headers))
        assert http.get(f"/v1/requests/{reply.headers['x-hoosh-request']}").json()["decision"]["privacy"] == wanted

        def events() -> list[dict[str, Any]]:
            recent = http.get("/v1/events/recent?topic=requests/refused").json()["events"]
            return [event for event in recent if event["data"].get("kind") == "privacy"]

        (event, *_) = children.wait_for(events, "the event")
        assert event["data"]["code"] == "privacy_refused"
        text = str(http.get("/v1/events/recent?limit=1000").json()) + str(reply.headers) + http.get("/metrics").text
    assert 'hoosh_refusals_total{code="privacy_refused"}' in text
    assert not any(secret in text for secret in (MAIL, CARD, PROJECT))
    assert any(path.suffix == ".j" for path in gateway.data_dir.rglob("*"))
    check_files(gateway)
    gateway.stop()
    check_files(gateway)


def check_files(gateway: Gateway) -> None:
    """No file of a gateway holds what was found, its databases and log included."""
    for path in (*gateway.data_dir.rglob("*"), gateway.log):
        data = stored(path) if path.is_file() else b""
        for secret in (MAIL, CARD, PROJECT):
            assert secret.encode() not in data, path
    assert stored(gateway.log)
