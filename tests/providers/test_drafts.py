"""Drafts: who may publish them, when they are published by themselves, and what does not wait."""

from __future__ import annotations

import datetime as dt

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.test import TransactionTestCase
from django.utils import timezone

from audit.models import OutboxEntry
from providers import config, drafts, publish, revert, services
from providers.models import ConfigVersion, DraftChange, Provider, Route, ScheduledPublication

pytestmark = pytest.mark.database


def soon() -> dt.datetime:
    return timezone.now() + dt.timedelta(hours=1)


class Case(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.provider = services.save_provider(
            Provider(name="local", kind="vllm", base_url="http://127.0.0.1:8000"), actor="root"
        )
        self.route = services.save_route(Route(name="all", pattern="*", provider=self.provider), actor="root")
        settings = services.gateway_settings()
        settings.review = True
        services.save_settings(settings, actor="root")
        self.first = ConfigVersion.objects.first()
        assert self.first is not None

    def change(self, priority: int = 99, actor: str = "ann") -> None:
        row = Route.objects.get(pk=self.route.pk)
        row.priority = priority
        services.save_route(row, actor=actor)

    def latest(self) -> int:
        found = publish.latest()
        assert found is not None
        return found[0]


class ReviewTests(Case):
    def test_a_change_waits_until_somebody_else_publishes_it(self) -> None:
        self.change()
        self.assertEqual(self.latest(), self.first.number)
        self.assertEqual(drafts.authors(), ["ann"])
        with self.assertRaisesMessage(drafts.DraftError, "somebody else"):
            drafts.approve("ann")
        version = drafts.approve("bob", note="looks right", seen=publish.draft_digest())
        self.assertEqual(self.latest(), version.number)
        self.assertEqual((version.author, version.note), ("bob", "looks right (changes by ann)"))
        self.assertEqual(drafts.in_force().routes[0].priority, 99)
        self.assertFalse(DraftChange.objects.exists())

    def test_two_authors_need_a_third(self) -> None:
        self.change(actor="ann")
        self.change(98, actor="bob")
        for author in ("ann", "bob"):
            with self.assertRaises(drafts.DraftError):
                drafts.approve(author)
        self.assertGreater(drafts.approve("eve").number, self.first.number)

    def test_what_changed_behind_the_reviewers_back_is_not_published(self) -> None:
        self.change()
        seen = publish.draft_digest()
        self.change(98)
        with self.assertRaisesMessage(drafts.DraftError, "changed since"):
            drafts.approve("bob", seen=seen)
        self.assertEqual(self.latest(), self.first.number)

    def test_to_put_an_end_to_reviews_is_reviewed(self) -> None:
        row = services.gateway_settings()
        row.review = False
        services.save_settings(row, actor="ann")
        self.change()
        self.assertEqual(self.latest(), self.first.number)
        drafts.approve("bob")
        self.assertFalse(publish.is_reviewed())
        self.change(5)
        self.assertEqual(drafts.in_force().routes[0].priority, 5)

    def test_a_discarded_draft_is_gone_and_recorded(self) -> None:
        self.change()
        services.save_route(Route(name="more", pattern="m", provider=self.provider), actor="ann")
        self.assertEqual(drafts.discard("bob"), [])
        self.assertEqual(publish.draft_digest(), self.first.digest)
        self.assertEqual(self.latest(), self.first.number)
        self.assertFalse(DraftChange.objects.exists())
        entry = OutboxEntry.objects.get(action="config.draft_discarded")
        self.assertEqual(len(entry.data["dropped"]), 2)

    def test_a_provider_is_switched_off_at_once_and_the_draft_waits_on(self) -> None:
        self.change()
        name, version = drafts.disable_now(self.provider.pk, "ann")
        self.assertEqual(name, "local")
        shown = drafts.in_force()
        self.assertEqual((self.latest(), shown.providers[0].enabled), (version.number, False))
        self.assertEqual(shown.routes[0].priority, 10)
        self.assertEqual(drafts.authors(), ["ann"])
        self.assertFalse(Provider.objects.get().enabled)
        self.assertEqual(drafts.approve("bob").number, self.latest())
        self.assertEqual((drafts.in_force().providers[0].enabled, drafts.in_force().routes[0].priority), (False, 99))

    def test_a_provider_that_is_deleted_in_the_draft_is_switched_off_all_the_same(self) -> None:
        number = self.provider.pk
        services.delete_provider(self.provider, actor="ann")
        name, _ = drafts.disable_now(number, "bob")
        self.assertEqual((name, drafts.in_force().providers[0].enabled), ("local", False))
        with self.assertRaises(drafts.DraftError):
            drafts.disable_now(999_999, "bob")

    def test_the_way_back_to_a_version_is_reviewed_too(self) -> None:
        unreviewed = ConfigVersion.objects.order_by("number").first()
        assert unreviewed is not None
        made = revert.revert(unreviewed.number, actor="ann")
        self.assertTrue(made.waits)
        self.assertEqual((self.latest(), publish.is_reviewed()), (self.first.number, True))
        with self.assertRaises(drafts.DraftError):
            drafts.approve("ann")
        drafts.approve("bob")
        self.assertFalse(publish.is_reviewed())

    def test_without_reviews_nothing_waits(self) -> None:
        row = services.gateway_settings()
        row.review = False
        services.save_settings(row, actor="ann")
        drafts.approve("bob")
        self.change(7, actor="bob")
        self.assertEqual(drafts.in_force().routes[0].priority, 7)
        self.assertEqual(drafts.refusal("bob"), "")


class ByHandTests(Case):
    """Drafts without reviews: what is saved waits, and whoever looked at it publishes it."""

    def setUp(self) -> None:
        super().setUp()
        row = services.gateway_settings()
        row.review, row.drafts = False, True
        services.save_settings(row, actor="ann")
        self.first = drafts.approve("bob")

    def test_its_author_publishes_what_waits(self) -> None:
        self.change()
        self.assertEqual((self.latest(), drafts.authors()), (self.first.number, ["ann"]))
        self.assertEqual((publish.waits(), publish.is_reviewed(), drafts.refusal("ann")), (True, False, ""))
        version = drafts.approve("ann", note="quicker", seen=publish.draft_digest())
        self.assertEqual((self.latest(), version.note), (version.number, "quicker"))
        self.assertEqual(drafts.in_force().routes[0].priority, 99)

    def test_a_provider_is_switched_off_at_once_and_the_draft_waits_on(self) -> None:
        self.change()
        drafts.disable_now(self.provider.pk, "ann")
        shown = drafts.in_force()
        self.assertEqual((shown.providers[0].enabled, shown.routes[0].priority), (False, 10))
        self.assertEqual(drafts.authors(), ["ann"])

    def test_the_way_back_is_a_publication_and_waits_for_nobody(self) -> None:
        self.change()
        drafts.approve("ann")
        made = revert.revert(self.first.number, actor="ann")
        self.assertFalse(made.waits)
        self.assertEqual((drafts.in_force().routes[0].priority, publish.waits()), (10, True))

    def test_to_end_it_is_a_change_that_waits_too(self) -> None:
        row = services.gateway_settings()
        row.drafts = False
        services.save_settings(row, actor="ann")
        self.assertTrue(publish.waits())
        drafts.approve("ann")
        self.change(5)
        self.assertEqual(drafts.in_force().routes[0].priority, 5)


class ScheduleTests(Case):
    def due(self, row: ScheduledPublication) -> None:
        ScheduledPublication.objects.filter(pk=row.pk).update(at=timezone.now() - dt.timedelta(seconds=1))

    def test_it_is_published_when_its_time_has_come_and_not_before(self) -> None:
        self.change()
        row = drafts.schedule("bob", soon(), seen=publish.draft_digest(), note="tonight")
        self.assertEqual(drafts.publish_due(), 0)
        self.assertEqual(self.latest(), self.first.number)
        self.due(row)
        self.assertEqual(drafts.publish_due(), 1)
        row.refresh_from_db()
        self.assertEqual((row.state, row.result), ("done", f"Version {self.latest()}"))
        self.assertEqual(drafts.in_force().routes[0].priority, 99)
        self.assertEqual(drafts.publish_due(), 0)

    def test_a_draft_that_changed_since_is_not_published(self) -> None:
        self.change()
        row = drafts.schedule("bob", soon(), seen="")
        self.change(98)
        self.due(row)
        drafts.publish_due()
        row.refresh_from_db()
        self.assertEqual(row.state, "failed")
        self.assertIn("changed since", row.result)
        self.assertEqual(self.latest(), self.first.number)
        self.assertTrue(OutboxEntry.objects.filter(action="config.schedule_failed").exists())

    def test_authors_do_not_schedule_their_own_draft_and_the_past_is_refused(self) -> None:
        self.change()
        with self.assertRaises(drafts.DraftError):
            drafts.schedule("ann", soon(), seen="")
        with self.assertRaises(ValidationError):
            drafts.schedule("bob", timezone.now(), seen="")
        self.assertFalse(ScheduledPublication.objects.exists())

    def test_somebody_who_may_not_publish_any_more_has_decided_nothing(self) -> None:
        bob = get_user_model().objects.create_superuser("bob", "", "pw")
        self.change()
        first, second = (drafts.schedule("bob", soon(), seen="") for _ in range(2))
        bob.is_active = False
        bob.save()
        self.due(first)
        drafts.publish_due()
        first.refresh_from_db()
        self.assertEqual((first.state, self.latest()), ("failed", self.first.number))
        bob.is_active = True
        bob.save()
        self.due(second)
        drafts.publish_due()
        self.assertGreater(self.latest(), self.first.number)

    def test_what_would_have_published_a_discarded_draft_is_cancelled(self) -> None:
        self.change()
        row = drafts.schedule("bob", soon(), seen="")
        drafts.discard("ann")
        row.refresh_from_db()
        self.assertEqual((row.state, row.result), ("cancelled", "the draft was discarded by ann"))
        self.assertTrue(OutboxEntry.objects.filter(action="config.schedule_cancelled", actor="ann").exists())

    def test_it_can_be_cancelled_once(self) -> None:
        self.change()
        row = drafts.schedule("bob", soon(), seen="")
        self.assertTrue(drafts.cancel(row, "ann"))
        self.assertFalse(drafts.cancel(row, "ann"))
        self.due(row)
        self.assertEqual(drafts.publish_due(), 0)
        self.assertEqual(config.digest(drafts.in_force()), self.first.digest)
