"""Finding usage rows by words and boxes: the right rows, along an index, and pages that end early and say so."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from budgets import access, keys, rollups, usage_pages, usage_search
from budgets.models import Pool, Usage
from providers import services
from providers.models import Provider, Route
from tests.admin_case import AdminTestCase

pytestmark = pytest.mark.database


def names(**ids):
    return lambda: {number: name for name, number in ids.items()}


def compiled(text):
    words = usage_search.words_of(text)
    return usage_search.compiled(words, providers=names(openai=1), routes=names(fast=5, faster=6))


def test_words_are_pairs_with_quotes_where_a_value_has_blanks():
    found = usage_search.words_of('key:"my laptop" Model:gpt-* 0123abc min:500ms a:b:c')
    assert found == [("key", "my laptop"), ("model", "gpt-*"), ("", "0123abc"), ("min", "500ms"), ("a", "b:c")]
    assert usage_search.request_id(found) == "0123abc"


class UsageSearchTest(AdminTestCase):
    def setUp(self):
        super().setUp()
        self.pool = access.save_pool(Pool(name="main", capacity_tokens=10), actor="test")
        self.crawler = access.agent_named("web", "crawler", actor="test")
        self.other = access.agent_named("shop", "crawler", actor="test")
        self.key, self.text = keys.create_key(self.crawler, self.pool, "my laptop", actor="test")
        provider = services.save_provider(Provider(name="openai", kind="ollama"), actor="test")
        self.route = services.save_route(Route(name="fast", pattern="*", provider=provider), actor="test")
        self.number = 0
        self.now = timezone.now()

    def make(self, age_s=0.0, **values):
        self.number += 1
        fields = {
            "rid": f"{self.number:032x}",
            "at": self.now - dt.timedelta(seconds=age_s),
            "key_id": 9_000_001,
            "agent_id": 9_000_001,
            "team_id": 9_000_001,
            "pool_id": self.pool.pk,
            "endpoint": "chat",
            "model": "plain",
            "status": 200,
        }
        return Usage.objects.create(**fields | values)

    def sums(self):
        while rollups.roll_up(connections[settings.HOOSH_LEDGER_DB]).more:
            pass

    def found(self, query):
        html = self.page("budgets_usage_changelist", query=query)
        return [int(each) for each in re.findall(r"/budgets/usage/(\d+)/change/", html)], html

    def test_each_word_finds_its_rows(self):
        self.make()
        mine = self.make(
            1,
            key_id=self.key.pk,
            agent_id=self.crawler.pk,
            team_id=self.crawler.team_id,
            model="gpt-4o",
            route_id=self.route.pk,
            provider_id=self.route.provider_id,
            latency_us=700_000,
            status=502,
            error="upstream_error",
            client_request_id="trace-7",
        )
        for query in (
            "?q=key:%22my+laptop%22",
            f"?q=key:{self.key.prefix}",
            f"?q=key:{self.key.prefix[:6]}",
            "?q=key:my*",
            "?q=agent:web/crawler",
            "?q=agent:crawl*",
            "?q=agent:crawler",
            "?q=team:web",
            "?q=model:gpt-4o",
            "?q=model:gpt-*",
            "?q=route:fast",
            "?q=route:fa*",
            "?q=provider:openai",
            "?q=status:5xx",
            "?q=status:502",
            "?q=error:upstream_error",
            "?q=error:upstream*",
            "?q=min:500ms",
            "?q=min:0.6s",
            "?q=trace-7",
            f"?q={mine.rid}",
            "?q=model:gpt-4o+status:5xx+agent:web/crawler+min:500ms",
            "?key=my+laptop",
            "?agent=web/crawler",
            "?team=web&q=status:502",
            "?model=gpt-4o&route=fast&error=upstream_error&day=hour",
            f"?provider={self.route.provider_id}&result=server",
        ):
            for is_summed in (False, True):
                if is_summed:
                    self.sums()
                assert self.found(query)[0] == [mine.pk], (query, is_summed)
        for query in ("?q=model:gpt-4", "?q=status:ok+model:gpt-4o", "?q=min:800ms", "?q=agent:shop/crawler", "?q=zzz"):
            assert self.found(query)[0] == [], query

    def test_a_request_id_is_found_whatever_time_is_chosen(self):
        old = self.make(20 * 86_400)
        assert self.found("?day=hour")[0] == []
        assert self.found(f"?day=hour&q={old.rid}")[0] == [old.pk]

    def test_what_is_misspelt_or_unknown_is_said(self):
        self.make()
        for query, words in (
            ("?q=modle:x", "There is no “modle:”"),
            ("?q=status:bad", "a class such as 5xx"),
            ("?q=min:soon", "500ms"),
            ("?q=agent:nobody", "There is no agent “nobody”"),
            ("?q=key:hk-zzz", "There is no key"),
            ("?q=route:nowhere", "There is no route"),
            (f"?q=key:{self.text}", "never the whole key"),
            (f"?q={self.text}", "never the whole key"),
            (f"?q={self.text[:11]}", "Write key: before"),
        ):
            assert words in self.found(query)[1], query
        assert self.found("?q=agent:nobody")[0] == []

    def test_a_page_that_ends_early_says_how_far_it_looked_and_the_next_goes_on(self):
        wanted = {self.make(age_s=number * 10, model="wanted").pk for number in range(0, 90, 9)}
        for number in range(90):
            self.make(age_s=number * 10 + 1)
        rows = Usage.objects.order_by("-at", "-id")
        search = compiled("min:0ms model:wanted")
        span = (self.now - dt.timedelta(days=1), self.now + dt.timedelta(days=1))
        seen, behind, pages = [], None, 0
        while True:
            part = rows if behind is None else rows.filter(at__lte=behind[0]).exclude(at=behind[0], id__gte=behind[1])
            page = usage_pages.read(part, search, span, 4, look=7)
            seen += [row.pk for row in page.rows]
            pages += 1
            assert len(page.rows) <= 4
            behind = page.behind
            if behind is None:
                break
            assert pages < 60
        assert sorted(seen) == sorted(wanted)
        assert pages > 10

    def test_rows_of_one_moment_are_neither_lost_nor_doubled_where_a_page_ends_early(self):
        made = [self.make(model="wanted" if number % 3 else "plain").pk for number in range(30)]
        wanted = sorted(pk for number, pk in enumerate(made) if number % 3)
        seen, behind = [], None
        span = (self.now - dt.timedelta(hours=1), self.now + dt.timedelta(hours=1))
        for _ in range(40):
            rows = Usage.objects.all() if behind is None else Usage.objects.filter(at=behind[0], id__lt=behind[1])
            page = usage_pages.read(rows, compiled("model:wanted"), span, 50, look=7)
            seen += [row.pk for row in page.rows]
            behind = page.behind
            if behind is None:
                break
        assert sorted(seen) == wanted

    def test_hours_without_a_match_are_passed_over_by_the_sums(self):
        rare = self.make(5 * 86_400, model="rare")
        for number in reversed(range(300)):
            self.make(number * 600)
        self.sums()
        span = (self.now - dt.timedelta(days=31), self.now)
        page = usage_pages.read(Usage.objects.all(), compiled("model:rare"), span, 50, look=50)
        assert ([row.pk for row in page.rows], page.behind) == ([rare.pk], None)
        fresh = self.make(86_400, model="rare")  # in no sum yet, and older than what is
        self.make(0)
        page = usage_pages.read(Usage.objects.all(), compiled("model:rare"), span, 50, look=50)
        assert rare.pk in [row.pk for row in page.rows]
        self.sums()
        page = usage_pages.read(Usage.objects.all(), compiled("model:rare"), span, 50, look=50)
        assert [row.pk for row in page.rows] == [fresh.pk, rare.pk]

    def test_rare_things_are_found_by_an_index(self):
        connection = connections[settings.HOOSH_LEDGER_DB]
        if connection.vendor != "sqlite":
            self.skipTest("PostgreSQL chooses by its statistics, which a small table does not have")
        at = {"at__gte": self.now - dt.timedelta(days=1)}
        for text, index in (
            ("status:5xx", "usage_failed_at"),
            ("status:429", "usage_failed_at"),
            ("error:x", "usage_error_at"),
            ("some-id", "usage_client_id"),
        ):
            search = compiled(text)
            rows = Usage.objects.filter(*search.along, **({} if text == "some-id" else at)).order_by("-at", "-id")
            assert index in rows.explain(), (text, rows.explain())

    def test_the_boxes_keep_what_else_is_chosen(self):
        _, html = self.found("?day=week&result=ok&model=plain")
        assert 'name="model" value="plain"' in html
        assert '<input type="hidden" name="day" value="week">' in html
        assert 'href="?day=week&amp;result=ok"' in html
