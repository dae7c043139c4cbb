"""The live page of requests: its questions, its stream, and who may watch."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from django.test import TransactionTestCase
from django.utils import timezone

from budgets import access, keys, usage_search
from budgets.models import Pool, Usage
from hoosh_site import usage_tail
from hoosh_site.usage_tail import TailHub
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


def make(number: int = 1, **values: Any) -> Usage:
    fields = {"key_id": 999, "agent_id": 999, "team_id": 999, "pool_id": 1, "endpoint": "chat", "model": "m"}
    return Usage.objects.create(**{"rid": f"{number:032x}", "at": timezone.now(), "status": 200, **fields, **values})


def compiled(text: str) -> usage_search.Search:
    return usage_search.compiled(usage_search.words_of(text), providers=dict, routes=dict)


class TailPageTest(AdminTestCase):
    def rows(self, query: str) -> dict[str, Any]:
        response = self.client.get(self.url("tail_rows") + query)
        assert response.status_code == 200
        return response.json()

    def test_the_page_names_the_words_and_says_what_is_wrong(self):
        html = self.page("tail", query="?q=agent:nobody")
        assert "There is no agent" in html
        assert 'data-stream="/admin/tail/stream/?q=agent%3Anobody"' in html
        assert "<noscript>" in html
        assert 'data-last="0"' in html
        assert f'data-last="{make(1).pk}"' in self.page("tail")
        assert self.url("tail") in self.page("index")
        assert self.url("tail") in self.page("budgets_usage_changelist")

    def test_what_is_new_and_matches_is_told_with_its_names(self):
        agent = access.agent_named("web", "crawler", actor="test")
        key, _ = keys.create_key(agent, access.save_pool(Pool(name="p"), actor="test"), "laptop", actor="test")
        first = make(1)
        begin = self.rows("?q=")
        assert begin == {"rows": [], "skipped": 0, "last": first.pk}
        make(2)
        mine = make(3, key_id=key.pk, agent_id=agent.pk, status=502, error="upstream_error", latency_us=1_234_000)
        told = self.rows(f"?q=status:5xx&after={first.pk}")
        assert told["last"] == mine.pk
        (row,) = told["rows"]
        assert (row["key"], row["agent"], row["status"], row["ms"]) == ("laptop", "web / crawler", 502, "1,234")
        assert row["url"] == self.url("budgets_usage_change", mine.pk)
        assert len(self.rows(f"?after={first.pk}")["rows"]) == 2
        assert self.rows(f"?after={mine.pk}") == {"rows": [], "skipped": 0, "last": mine.pk}

    def test_too_many_rows_are_passed_over_and_counted(self):
        rows = [make(number) for number in range(usage_tail.ROWS_MAX + 20)]
        told = self.rows(f"?after={rows[0].pk}")
        assert (len(told["rows"]), told["skipped"]) == (usage_tail.ROWS_MAX, 19)
        assert told["rows"][-1]["id"] == rows[-1].pk

    def test_a_server_without_streams_says_so_and_keeps_no_place(self):
        assert self.client.get(self.url("tail_stream")).status_code == 204
        assert usage_tail.hub.watchers == 0

    def test_only_who_may_see_usage_may_watch(self):
        self.allow(self.bob, "view_apikey")
        for name in ("tail", "tail_rows", "tail_stream"):
            assert self.client.get(self.url(name)).status_code == 403
        self.client.logout()
        assert self.client.get(self.url("tail_stream")).status_code == 302


class TailStreamTest(TransactionTestCase):
    databases = "__all__"

    async def piece(self, tail: usage_tail.Tail) -> bytes:
        async with asyncio.timeout(5):
            return await anext(tail)

    async def rows(self, tail: usage_tail.Tail) -> list[int]:
        piece = await self.piece(tail)
        assert piece.startswith(b"data: "), piece
        return [row["id"] for row in json.loads(piece[6:])["rows"]]

    async def test_each_watcher_gets_what_matches_and_one_reader_serves_all(self):
        old = await asyncio.to_thread(make, 1)
        hub = TailHub(look_s=0.02)
        every, failed = hub.open(compiled(""), {}, lambda: True), hub.open(compiled("status:5xx"), {}, lambda: True)
        assert every is not None
        assert failed is not None
        for tail in (every, failed):
            assert (await self.piece(tail)).startswith(b"retry:")
        await asyncio.sleep(0.2)
        good, bad = await asyncio.to_thread(make, 2), await asyncio.to_thread(make, 3, status=503)
        seen = await self.rows(every)
        while bad.pk not in seen:
            seen += await self.rows(every)
        assert seen == [good.pk, bad.pk]
        assert old.pk not in seen
        assert await self.rows(failed) == [bad.pk]
        await every.aclose()
        await failed.aclose()
        await asyncio.sleep(0.1)
        assert (hub.watchers, hub._reader) == (0, None), "nobody watches, nobody reads"

    async def test_streams_end_when_they_are_told_to_and_no_other_begins(self):
        hub = TailHub(look_s=0.02)
        tail = hub.open(compiled(""), {}, lambda: True)
        assert tail is not None
        await self.piece(tail)
        hub.end_all(for_good=True)
        assert b"end" in await self.piece(tail)
        with pytest.raises(StopAsyncIteration):
            await self.piece(tail)
        await tail.aclose()
        assert hub.open(compiled(""), {}, lambda: True) is None

    async def test_a_watcher_who_lost_the_right_is_let_go(self):
        hub = TailHub(look_s=0.02, ping_s=0.05)
        tail = hub.open(compiled(""), {}, lambda: False)
        assert tail is not None
        await self.piece(tail)
        assert await self.piece(tail) == b": still here\n\n"
        with pytest.raises(StopAsyncIteration):
            await self.piece(tail)
        await tail.aclose()

    async def test_only_so_many_watch_at_once(self):
        hub = TailHub(most=1)
        tail = hub.open(compiled(""), {}, lambda: True)
        assert tail is not None
        assert hub.open(compiled(""), {}, lambda: True) is None
        await tail.aclose()
        assert hub.open(compiled(""), {}, lambda: True) is not None

    async def test_a_watcher_that_reads_slowly_keeps_only_the_newest(self):
        hub = TailHub()
        tail = hub.open(compiled(""), {}, lambda: True)
        assert tail is not None
        rows = [
            Usage(pk=number, at=timezone.now(), key_id=0, agent_id=0, status=200, cost_usd=Decimal(0))
            for number in range(1, 301)
        ]
        tail.take(rows[:150], 0)
        tail.take(rows[150:], 7)
        await self.piece(tail)
        piece = json.loads((await self.piece(tail))[6:])
        assert (len(piece["rows"]), piece["skipped"], piece["rows"][-1]["id"]) == (200, 107, 300)
        await tail.aclose()
