"""The page that says where a request would go, without a gateway behind it; with one: tests/e2e/test_admin_live.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway import plane
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database

ANSWER = {
    "model": "gpt-4",
    "config": 7,
    "strategy": "least_cost",
    "policy": "cheap",
    "candidates": [
        {
            "route": "one",
            "provider": "up <b>",
            "model": "gpt-4-up",
            "reason": "priority 10",
            "score": "at most 0.01 USD",
            "hold": {"input_tokens": 12, "output_tokens": 34, "usd": "0.0093"},
        }
    ],
    "rejected": [{"route": "two", "reason": "does not take images"}],
    "refusal": None,
}


class Plane:
    """A control plane that remembers what it was asked."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer, self.asked = answer, list[dict[str, Any]]()

    def explain(self, body: bytes) -> bytes:
        self.asked.append(json.loads(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@contextmanager
def running(answer: bytes | Exception) -> Iterator[Plane]:
    plane.current = Plane(answer)
    try:
        yield plane.current
    finally:
        plane.current = None


class ExplainPageTest(AdminTestCase):
    def ask(self, **fields: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        return self.page("explain", query=f"?{query}")

    def test_the_answer_is_shown_with_candidates_scores_and_reasons(self) -> None:
        with running(json.dumps(ANSWER).encode()) as control:
            html = self.ask(model="gpt-4", path="/v1/messages", tags="eu", body='{"max_tokens": 5}')
        assert control.asked == [{"max_tokens": 5, "model": "gpt-4", "path": "/v1/messages", "tags": "eu"}]
        for words in ("gpt-4-up", "at most 0.01 USD", "policy cheap", "does not take images", "12 + 34 tokens"):
            assert words in html
        assert "up &lt;b&gt;" in html

    def test_a_refusal_is_shown_as_one(self) -> None:
        refusal = {"status": 404, "code": "model_not_found", "message": "Not served."}
        with running(json.dumps({**ANSWER, "candidates": [], "refusal": refusal}).encode()):
            html = self.ask(model="x", path="/v1/chat/completions")
        assert "404 model_not_found" in html
        assert "Not served." in html

    def test_what_cannot_be_asked_is_said(self) -> None:
        assert "runs no gateway" in self.ask(model="x", path="/v1/chat/completions")
        with running(RuntimeError("no worker is connected")):
            assert "no worker is connected" in self.ask(model="x", path="/v1/chat/completions")
        with running(b'{"error": "the body is odd"}'):
            assert "the body is odd" in self.ask(model="x", path="/v1/chat/completions")
        with running(b"{}") as control:
            assert "not JSON" in self.ask(model="x", path="/v1/chat/completions", body="{")
            assert "JSON object" in self.ask(model="x", path="/v1/chat/completions", body="[1]")
            assert "required" in self.ask(model="", path="/v1/chat/completions")
            assert "valid choice" in self.ask(model="x", path="/v1/nothing")
        assert control.asked == []

    def test_the_list_of_routes_leads_there_and_only_who_sees_routes_may_ask(self) -> None:
        assert self.url("explain") in self.page("providers_route_changelist")
        self.client.force_login(self.bob)
        assert self.client.get(self.url("explain")).status_code == 403
        self.allow(self.bob, "view_route")
        assert self.client.get(self.url("explain")).status_code == 200
        self.client.logout()
        assert self.client.get(self.url("explain")).status_code == 302
