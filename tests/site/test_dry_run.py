"""What a configuration would have done with recorded requests."""

from __future__ import annotations

import time
from decimal import Decimal

import msgspec
import pytest
from django.test import TestCase
from django.utils import timezone

from budgets import access
from budgets.models import Price, UsageRollup
from hoosh_site.dry_run import dry_run
from providers.config import ConfigDocument, PolicyDoc, ProviderDoc, RouteDoc
from tests.budgets.ledger_rows import add_usage

pytestmark = pytest.mark.database

LOCAL = ProviderDoc(id=1, name="here", kind="vllm", base_url="http://127.0.0.1:1", address_class="loopback")
CLOUD = ProviderDoc(id=2, name="cloud", kind="openai", base_url="https://api.example", address_class="public")
DEAR = ProviderDoc(id=3, name="dear", kind="openai", base_url="https://dear.example", address_class="public")


def document(*routes: RouteDoc, policies: tuple[PolicyDoc, ...] = ()) -> ConfigDocument:
    return ConfigDocument(providers=(LOCAL, CLOUD, DEAR), routes=routes, policies=policies)


def route(number: int, provider: ProviderDoc, pattern: str = "*", **fields: object) -> RouteDoc:
    return RouteDoc(id=number, name=f"to-{provider.name}", pattern=pattern, provider_id=provider.id, **fields)


def policy(strategy: str) -> tuple[PolicyDoc, ...]:
    return (PolicyDoc(id=1, name="p", pattern="*", strategy=strategy),)


class DryRunTests(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        for provider, usd in (("cloud", "2"), ("dear", "8")):
            access.add_price(
                Price(
                    provider=provider,
                    pattern="*",
                    valid_from=timezone.now(),
                    input_usd_per_mtok=Decimal(usd),
                    output_usd_per_mtok=Decimal(usd),
                ),
                actor="test",
            )
        counts = {"input_tokens": 600_000, "output_tokens": 400_000, "cached_tokens": 0, "cache_write_tokens": 0}
        add_usage(3, model="m", reasoning_tokens=0, **counts)
        add_usage(1, model="other", endpoint="embeddings", reasoning_tokens=0, **counts)

    def test_nothing_differs_where_nothing_changed(self) -> None:
        same = document(route(1, CLOUD))
        found = dry_run(same, same)
        self.assertEqual((found.requests, found.moved, found.moves), (4, 0, []))
        self.assertAlmostEqual(found.before.usd, 8.0)
        self.assertAlmostEqual(found.usd_more, 0.0)

    def test_a_dearer_route_in_front_moves_requests_and_costs_the_difference(self) -> None:
        before, after = document(route(1, CLOUD)), document(route(1, CLOUD), route(2, DEAR, "m", priority=1))
        found = dry_run(before, after)
        self.assertEqual(
            [(m.model, m.before, m.after, m.requests) for m in found.moves], [("m", "to-cloud", "to-dear", 3)]
        )
        self.assertAlmostEqual(found.moves[0].usd, 3 * 6.0)
        self.assertAlmostEqual(found.usd_more, 18.0)
        self.assertEqual(found.moved, 3)

    def test_shares_of_weighted_routes_count_in_part(self) -> None:
        before = document(route(1, CLOUD))
        after = document(route(1, CLOUD, weight=1), route(2, DEAR, weight=3), policies=policy("weighted"))
        found = dry_run(before, after)
        self.assertAlmostEqual(found.moved, 3.0)  # three quarters of four requests
        self.assertAlmostEqual(found.after.usd, 4 * (0.25 * 2 + 0.75 * 8))

    def test_what_no_route_serves_any_more_is_told_by_model(self) -> None:
        found = dry_run(document(route(1, CLOUD)), document(route(1, CLOUD, "m")))
        self.assertEqual((found.newly_refused, found.newly_answered), ({"other": 1}, {}))
        self.assertEqual((found.before.refused, found.after.refused), (0, 1))
        self.assertEqual(
            dry_run(document(route(1, CLOUD, "m")), document(route(1, CLOUD))).newly_answered, {"other": 1}
        )
        self.assertEqual([(m.before, m.after) for m in found.moves], [("to-cloud", "")])

    def test_an_endpoint_the_provider_does_not_have_is_no_candidate(self) -> None:
        anthropic = msgspec.structs.replace(CLOUD, kind="anthropic")
        after = ConfigDocument(providers=(anthropic,), routes=(route(1, anthropic),))
        self.assertEqual(dry_run(document(route(1, CLOUD)), after).newly_refused, {"other": 1})

    def test_local_providers_cost_nothing_and_unknown_prices_are_counted(self) -> None:
        found = dry_run(document(route(1, CLOUD)), document(route(1, LOCAL)))
        self.assertEqual((found.after.usd, found.after.unpriced), (0.0, 0))
        unknown = msgspec.structs.replace(CLOUD, name="unpriced")
        after = ConfigDocument(providers=(unknown,), routes=(route(1, unknown),))
        self.assertEqual(dry_run(document(route(1, CLOUD)), after).after.unpriced, 4)

    def test_times_are_the_routes_means_of_the_last_day(self) -> None:
        names = {
            "team_id": 1,
            "agent_id": 1,
            "key_id": 1,
            "pool_id": 1,
            "endpoint": "chat",
            "model": "m",
        }
        cloud, dear = {"route_id": 1, "provider_id": CLOUD.id}, {"route_id": 2, "provider_id": DEAR.id}
        now = int(time.time())
        UsageRollup.objects.create(start=now - 3_600, attempts=4, latency_us=4 * 200_000, **cloud, **names)
        UsageRollup.objects.create(start=now - 7_200, attempts=1, latency_us=50_000, **dear, **names)
        UsageRollup.objects.create(start=now - 3 * 86_400, attempts=9, latency_us=9 * 9_000_000, **cloud, **names)
        both = (route(1, CLOUD), route(2, DEAR))
        found = dry_run(document(*both), document(*both, policies=policy("lowest_latency")))
        self.assertEqual((found.before.mean_ms, found.after.mean_ms), (200.0, 50.0))
        self.assertEqual(found.moved, 3)  # nobody asked for the fourth one's model, so the order decides
        again = dry_run(document(route(1, CLOUD)), document(RouteDoc(id=1, name="a", pattern="*", provider_id=DEAR.id)))
        self.assertEqual(again.after.mean_ms, 50.0)  # by another route, to the same model of the same provider

    def test_a_route_that_asks_another_provider_or_model_moves_its_requests(self) -> None:
        before = document(route(1, CLOUD))
        found = dry_run(before, document(msgspec.structs.replace(route(1, DEAR), name="to-cloud")))
        self.assertEqual(found.moved, 4)
        self.assertEqual(
            [(m.model, m.before, m.after, m.before_at, m.after_at, m.requests) for m in found.moves],
            [
                ("m", "to-cloud", "to-cloud", "cloud / m", "dear / m", 3),
                ("other", "to-cloud", "to-cloud", "cloud / other", "dear / other", 1),
            ],
        )
        self.assertEqual(found.moves[0].usd, 3 * 6.0)
        self.assertEqual(dry_run(before, document(route(1, CLOUD, upstream_model="x"))).moved, 4)

    def test_each_request_counts_once_whatever_its_attempts(self) -> None:
        row = add_usage(1, model="m")[0]
        row.pk, row.attempt = None, 1
        row.save(force_insert=True)
        self.assertEqual(dry_run(document(route(1, CLOUD)), document(route(1, CLOUD))).requests, 5)

    def test_no_more_than_asked_for(self) -> None:
        same = document(route(1, CLOUD))
        self.assertEqual(dry_run(same, same, requests=2).requests, 2)
