"""Going back to a version, and what the way there looks like in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from django.test import TransactionTestCase

from audit.models import OutboxEntry
from budgets import access
from budgets.models import Team
from providers import config, differences, publish, revert, services
from providers.models import (
    ConfigVersion,
    Credential,
    DataPattern,
    PrivacyPolicy,
    Provider,
    Route,
    RoutingPolicy,
)

pytestmark = pytest.mark.database

LOCAL = "http://127.0.0.1:8000"
OTHER = "http://127.0.0.1:8001"


def document(number: int) -> config.ConfigDocument:
    return config.unpack(bytes(ConfigVersion.objects.get(number=number).document))


class RevertTests(TransactionTestCase):
    databases = "__all__"

    def setUp(self) -> None:
        self.provider = services.save_provider(Provider(name="local", kind="vllm", base_url=LOCAL), actor="ann")
        self.secret = services.set_credential(self.provider, "main", "sk-one-1234567890", actor="ann")
        self.route = services.save_route(
            Route(name="all", pattern="*", provider=self.provider, tags="a,b", output_cap=100), actor="ann"
        )
        self.rule = services.save_policy(RoutingPolicy(name="r", pattern="x*", fallbacks="m1,m2"), actor="ann")
        self.privacy = services.save_privacy_policy(PrivacyPolicy(name="strict"), actor="ann")
        settings = services.gateway_settings()
        settings.privacy_policy, settings.max_attempts = self.privacy, 5
        services.save_settings(settings, actor="ann")
        self.first = publish.publish("ann", "first")

    def test_everything_changed_comes_back_and_is_published_as_a_new_version(self) -> None:
        self.route.priority, self.route.tags, self.route.output_cap = 99, "c", None
        services.save_route(self.route, actor="bob")
        services.save_route(Route(name="more", pattern="gpt-*", provider=self.provider), actor="bob")
        services.delete_policy(self.rule, actor="bob")
        settings = services.gateway_settings()
        settings.privacy_policy, settings.max_attempts = None, 1
        services.save_settings(settings, actor="bob")
        services.delete_privacy_policy(self.privacy, actor="bob")
        services.save_data_pattern(DataPattern(name="badge", source="B-[0-9]{4}"), actor="bob")
        latest = publish.publish("bob")
        made = revert.revert(self.first.number, actor="ann", note="it broke")
        self.assertEqual(made.warnings, [])
        self.assertGreater(made.version.number, latest.number)
        self.assertEqual(document(made.version.number), document(self.first.number))
        self.assertEqual(made.version.digest, self.first.digest)
        self.assertEqual(made.version.note, f"back to version {self.first.number}: it broke")
        entry = OutboxEntry.objects.get(action="config.reverted")
        self.assertEqual((entry.actor, entry.target), ("ann", f"Version {self.first.number}"))

    def test_a_deleted_provider_comes_back_without_its_secret_and_says_so(self) -> None:
        number = self.provider.pk
        services.delete_provider(self.provider, actor="bob")
        publish.publish("bob")
        made = revert.revert(self.first.number, actor="ann")
        self.assertEqual([w for w in made.warnings if "store its secret again" in w], made.warnings)
        self.assertEqual(len(made.warnings), 1)
        shown = document(made.version.number)
        self.assertEqual((shown.providers[0].id, shown.providers[0].base_url), (number, LOCAL))
        self.assertEqual(shown.providers[0].credentials, ())
        self.assertEqual(shown.routes, document(self.first.number).routes)

    def test_a_rotated_secret_stays_and_a_later_one_is_switched_off(self) -> None:
        services.set_credential(self.provider, "main", "sk-two-1234567890", actor="bob")
        services.set_credential(self.provider, "spare", "sk-three-123456789", actor="bob")
        publish.publish("bob")
        made = revert.revert(self.first.number, actor="ann")
        self.assertEqual(len(made.warnings), 1)
        self.assertIn("spare", made.warnings[0])
        rows = {row.name: row for row in Credential.objects.all()}
        self.assertEqual((rows["main"].enabled, rows["main"].revision), (True, 2))
        self.assertFalse(rows["spare"].enabled)
        self.assertEqual(services.read_secret(rows["main"]), "sk-two-1234567890")

    def test_a_secret_of_another_address_is_not_sent_to_the_old_one(self) -> None:
        self.provider.base_url = OTHER
        services.save_provider(self.provider, actor="bob")
        services.set_credential(self.provider, "main", "sk-other-address-1", actor="bob")
        publish.publish("bob")
        made = revert.revert(self.first.number, actor="ann")
        self.assertEqual(len(made.warnings), 1)
        self.assertIn("another address", made.warnings[0])
        self.assertEqual(document(made.version.number).providers[0].base_url, LOCAL)
        self.assertEqual(document(made.version.number).providers[0].credentials, ())

    def test_rows_that_changed_their_names_among_each_other_get_them_back(self) -> None:
        other = services.save_route(Route(name="b", pattern="b", provider=self.provider), actor="ann")
        then = publish.publish("ann")
        for row, name in ((self.route, "tmp"), (other, "all"), (self.route, "b")):
            row.name = name
            services.save_route(row, actor="bob")
        publish.publish("bob")
        made = revert.revert(then.number, actor="ann")
        self.assertEqual(made.version.digest, then.digest)
        self.assertEqual(set(Route.objects.values_list("pk", "name")), {(self.route.pk, "all"), (other.pk, "b")})

    def test_patterns_that_changed_places_get_their_names_back(self) -> None:
        one = services.save_data_pattern(DataPattern(name="one", source="1+"), actor="ann")
        then = publish.publish("ann")
        services.delete_data_pattern(one, actor="bob")
        services.save_data_pattern(DataPattern(name="one", source="2+"), actor="bob")
        publish.publish("bob")
        self.assertEqual(revert.revert(then.number, actor="ann").version.digest, then.digest)

    def test_what_stays_or_goes_is_told_by_the_name_operators_know(self) -> None:
        settings = services.gateway_settings()
        settings.privacy_policy = None
        services.save_settings(settings, actor="bob")
        services.delete_privacy_policy(self.privacy, actor="bob")
        again = services.save_privacy_policy(PrivacyPolicy(name="strict"), actor="bob")
        access.save_team(Team(name="red", privacy_policy=again), actor="bob")
        services.delete_provider(self.provider, actor="bob")
        services.save_provider(Provider(name="local", kind="vllm", base_url=OTHER), actor="bob")
        publish.publish("bob")
        told = " ".join(revert.revert(self.first.number, actor="ann").warnings)
        self.assertIn("The provider “local” is deleted", told)
        self.assertIn(f"The privacy policy “strict-{again.pk}” stays", told)
        self.assertEqual(set(PrivacyPolicy.objects.values_list("name", flat=True)), {"strict", f"strict-{again.pk}"})

    def test_what_is_in_force_already_makes_no_version(self) -> None:
        made = revert.revert(self.first.number, actor="ann")
        self.assertEqual(made.version.number, self.first.number)

    def test_an_unknown_version_is_refused(self) -> None:
        with self.assertRaisesMessage(revert.RevertError, "There is no version 999999."):
            revert.revert(999_999, actor="ann")

    def test_a_version_that_cannot_run_any_more_changes_nothing(self) -> None:
        broken = document(self.first.number)
        providers = tuple(
            config.ProviderDoc(id=p.id, name=p.name, kind="gone", base_url=LOCAL, address_class="loopback")
            for p in broken.providers
        )
        odd = msgspec.structs.replace(broken, providers=providers)
        version = ConfigVersion.objects.create(digest="x", document=config.pack(odd), author="ann")
        before = publish.draft_digest()
        with self.assertRaises(revert.RevertError):
            revert.revert(version.number, actor="ann")
        self.assertEqual(publish.draft_digest(), before)
        self.assertFalse(OutboxEntry.objects.filter(action="config.reverted").exists())

    def test_changes_are_told_row_by_row(self) -> None:
        self.route.priority, self.route.name = 99, "everything"
        services.save_route(self.route, actor="bob")
        services.delete_policy(self.rule, actor="bob")
        services.save_route(Route(name="more", pattern="gpt-*", provider=self.provider, weight=3), actor="bob")
        later = publish.publish("bob")
        told = differences.described(document(self.first.number), document(later.number))
        self.assertEqual(
            [(c.section, c.name, c.what, c.fields) for c in told],
            [
                ("Route", "everything", "changed", (("name", "all", "everything"), ("priority", "10", "99"))),
                ("Route", "more", "added", (("pattern", "", "gpt-*"), ("provider", "", "local"), ("weight", "", "3"))),
                ("Routing policy", "r", "removed", ()),
            ],
        )

    def test_a_renamed_pattern_that_a_policy_switches_off_gets_its_name_back(self) -> None:
        pattern = services.save_data_pattern(DataPattern(name="badge", source="B-[0-9]{4}"), actor="ann")
        then = publish.publish("ann")
        pattern.name = "pass"
        services.save_data_pattern(pattern, actor="bob")
        self.privacy.disabled = "pass"
        services.save_privacy_policy(self.privacy, actor="bob")
        publish.publish("bob")
        made = revert.revert(then.number, actor="ann")
        self.assertEqual(made.version.digest, then.digest)

    def test_a_row_made_anew_belongs_to_the_import_it_belonged_to(self) -> None:
        kinds: tuple[Any, ...] = (Provider, Route, RoutingPolicy, PrivacyPolicy)
        for kind in kinds:
            kind.objects.update(managed_by="import")
        assert publish.publish("ann").number == self.first.number, "nothing that runs has changed"
        services.save_settings(services.gateway_settings(), actor="bob")
        settings = services.gateway_settings()
        settings.privacy_policy = None
        services.save_settings(settings, actor="bob")
        services.save_route(Route(name="own", pattern="own", provider=self.provider), actor="bob")
        second = publish.publish("bob")
        services.delete_policy(self.rule, actor="bob")
        services.delete_privacy_policy(self.privacy, actor="bob")
        services.delete_provider(self.provider, actor="bob")
        publish.publish("bob")
        revert.revert(second.number, actor="ann")
        owners = {(kind.__name__, row.name): row.managed_by for kind in kinds for row in kind.objects.all()}
        assert owners == {
            ("Provider", "local"): "import",
            ("Route", "all"): "import",
            ("Route", "own"): "",
            ("RoutingPolicy", "r"): "import",
            ("PrivacyPolicy", "strict"): "import",
        }

    def test_a_row_that_is_still_there_keeps_the_owner_it_has_now(self) -> None:
        Route.objects.update(managed_by="import")
        publish.publish("ann")
        Route.objects.update(managed_by="", priority=7)
        publish.publish("bob")
        revert.revert(self.first.number, actor="ann")
        assert Route.objects.get().managed_by == ""
