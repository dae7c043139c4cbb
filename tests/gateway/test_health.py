"""The worker's answers about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from gateway import health


@dataclass
class Worker:
    ready: bool = True
    config_version: int = 7
    journal_writable: bool = True
    providers_configured: int = 2
    providers_down: int = 0


def body(answer: health.Answer) -> dict:
    return json.loads(answer.body)


def test_livez_is_ok_whatever_else_is_wrong():
    assert health.livez().status == 200


def test_readyz_is_200_with_a_configuration_and_a_writable_journal():
    answer = health.readyz(Worker())
    assert answer.status == 200
    assert body(answer)["config_version"] == 7


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (Worker(ready=False, config_version=0), "no configuration"),
        (Worker(ready=False), "draining"),
        (Worker(journal_writable=False), "journal"),
    ],
)
def test_readyz_is_503_and_says_why(worker, reason):
    answer = health.readyz(worker)
    assert answer.status == 503
    assert reason in " ".join(body(answer)["reasons"])


def test_readyz_does_not_depend_on_providers():
    assert health.readyz(Worker(providers_down=2)).status == 200


def test_root_names_the_gateway():
    told = body(health.root("1.2.3"))
    assert (told["name"], told["version"], told["status"]) == ("hoosh", "1.2.3", "ok")
    assert told["links"]["admin"] == "/admin/"


def test_head_tells_the_length_and_sends_no_body():
    whole, head = health.root("1.2.3"), health.root("1.2.3", head=True)
    assert head.body == b""
    assert dict(head.headers)[b"content-length"] == b"%d" % len(whole.body)


@pytest.mark.parametrize(
    ("worker", "status", "word"),
    [
        (Worker(), 200, "ok"),
        (Worker(providers_configured=0), 200, "ok"),
        (Worker(providers_down=1), 200, "degraded"),
        (Worker(providers_down=2), 503, "down"),
        (Worker(ready=False), 503, "unavailable"),
        (Worker(journal_writable=False), 503, "unavailable"),
    ],
)
def test_health_in_one_word(worker, status, word):
    answer = health.health(worker, "1.2.3")
    assert answer.status == status
    assert body(answer)["status"] == word
    assert body(answer)["providers_configured"] == worker.providers_configured
