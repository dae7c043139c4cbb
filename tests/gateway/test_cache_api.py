"""What operators see of kept answers and how they have them forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api import cache
from gateway.cache.stats import COUNTERS
from providers import services
from providers.models import Provider, Route
from tests.gateway.test_api import ApiCase, control

pytestmark = pytest.mark.database


class Workers:
    """Stands where the running control plane stands: workers that follow a purge, or not."""

    writer = None

    def __init__(self, *figures: dict[str, int], follow: bool = True) -> None:
        self.statuses: list[dict[str, Any]] = [{"cache": dict(each), "cache_purge": 0} for each in figures]
        self.follow = follow

    def workers(self) -> list[dict[str, Any]]:
        return [{"index": index, "owner": f"w{index}", "status": each} for index, each in enumerate(self.statuses)]

    def purge_caches(self, number: int) -> None:
        for status in self.statuses if self.follow else ():
            status["cache_purge"] = number


class StatsTest(ApiCase):
    path = "/v1/cache/stats"

    def test_the_caches_of_all_workers_are_one(self):
        one = dict.fromkeys(COUNTERS, 1) | {"hits": 3, "misses": 2, "max_bytes": 768 * 10, "saved_pico": 10**11}
        with control(Workers(one, one, {})):
            told = self.ask(self.path, self.operator_text).json()
        assert (told["entries"], told["hits"], told["misses"], told["hit_rate"]) == (2, 6, 4, 0.6)
        assert (told["saved_usd"], told["saved_tokens"], told["workers"]) == (0.2, 2, 3)
        assert (told["max_bytes"], told["max_entries"]) == (768 * 20, 20)
        assert (told["similar"], told["vectors"], told["embedding_failures"], told["warmed"]) == (2, 2, 2, 2)

    def test_a_key_without_the_operator_scope_sees_how_well_it_works_and_nothing_more(self):
        with control(Workers(dict.fromkeys(COUNTERS, 1))):
            told = self.ask(self.path, self.text).json()
        assert set(told) == {
            *("enabled", "entries", "max_entries", "hits", "misses", "evictions", "hit_rate", "ttl_secs")
        }

    def test_it_is_on_where_a_route_that_is_used_keeps_answers(self):
        provider = services.save_provider(Provider(name="demo", kind="demo"), actor="t")
        services.save_route(Route(name="a", pattern="a", provider=provider), actor="t")
        kept = services.save_route(Route(name="b", pattern="b", provider=provider, cache_s=90), actor="t")
        told = self.ask(self.path, self.text).json()
        assert (told["enabled"], told["ttl_secs"], told["hits"]) == (True, 90, 0)
        kept.enabled = False
        services.save_route(kept, actor="t")
        told = self.ask(self.path, self.text).json()
        assert (told["enabled"], told["ttl_secs"]) == (False, 0)

    def test_without_a_key_nothing_is_told(self):
        self.error(self.ask(self.path), 401)


class PurgeTest(ApiCase):
    path = "/v1/cache/purge"

    def test_it_is_done_when_every_worker_says_so(self):
        with control(Workers({}, {})):
            assert self.ask(self.path, self.operator_text, method="post").json() == {"purged": True, "workers": 2}

    def test_only_operators_may(self):
        with control(Workers({})) as workers:
            self.error(self.ask(self.path, self.text, method="post"), 403)
            assert workers.statuses[0]["cache_purge"] == 0

    def test_a_worker_that_does_not_follow_is_told(self):
        before, cache.WAIT_S = cache.WAIT_S, 0.1
        try:
            for workers in (Workers({}, follow=False), Workers()):
                with control(workers):
                    error = self.error(self.ask(self.path, self.operator_text, method="post"), 503)
                    assert error["code"] == "purge_incomplete"
        finally:
            cache.WAIT_S = before
        with control(None):
            error = self.error(self.ask(self.path, self.operator_text, method="post"), 503)
            assert error["code"] == "no_control_plane"
