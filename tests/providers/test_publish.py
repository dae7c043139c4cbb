"""From rows to a published document."""

from __future__ import annotations

import itertools
import threading
import zlib

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from audit.models import OutboxEntry
from providers import config, feed, publish, sequences, services
from providers.models import ConfigVersion, Credential, GatewaySettings, ModelCard, Provider, ProviderProbe, Route
from providers.vault import VaultError

pytestmark = pytest.mark.database

LOCAL = "http://127.0.0.1:8000"


def provider(name: str = "local", base_url: str = LOCAL, **fields: object) -> Provider:
    return services.save_provider(Provider(name=name, kind="vllm", base_url=base_url, **fields), actor="alice")


def route(to: Provider, name: str = "all", pattern: str = "*", **fields: object) -> Route:
    return services.save_route(Route(name=name, pattern=pattern, provider=to, **fields), actor="alice")


def document() -> config.ConfigDocument:
    found = publish.latest()
    assert found is not None
    return config.unpack(found[1])


class PublishTests(TestCase):
    databases = "__all__"

    def test_rows_become_a_document_without_secrets(self) -> None:
        made = provider()
        services.set_credential(made, "main", "sk-very-secret-1234", actor="alice")
        route(made, tags="b, a", output_cap=100, total_timeout_s=9.5)
        version = publish.publish("alice", "first")
        shown = document()
        self.assertEqual(shown.providers[0].base_url, LOCAL)
        self.assertEqual(shown.providers[0].address_class, "loopback")
        self.assertEqual([c.name for c in shown.providers[0].credentials], ["main"])
        self.assertEqual(shown.routes[0].tags, ("b", "a"))
        self.assertEqual((shown.routes[0].output_cap, shown.routes[0].total_timeout_s), (100, 9.5))
        self.assertEqual(version.digest, config.digest(shown))
        self.assertNotIn(b"secret", config.encode(shown))

    def test_an_empty_configuration_may_be_published(self) -> None:
        self.assertIsNone(publish.latest())
        publish.publish("init")
        self.assertEqual(document(), config.ConfigDocument())

    def test_nothing_changed_makes_no_version(self) -> None:
        first = publish.publish("alice")
        self.assertEqual(publish.publish("bob").number, first.number)
        self.assertEqual(ConfigVersion.objects.count(), 1)
        route(provider())
        self.assertGreater(publish.publish("bob").number, first.number)

    def test_latest_follows_every_version(self) -> None:
        publish.publish("alice")
        before = publish.latest()
        self.assertEqual(publish.latest(), before)
        with self.assertNumQueries(1):
            publish.latest()
        provider()
        publish.publish("alice")
        self.assertNotEqual(publish.latest(), before)

    def test_publishing_is_recorded(self) -> None:
        publish.publish("alice", "why")
        entry = OutboxEntry.objects.get(action="config.published")
        self.assertEqual((entry.actor, entry.data["note"]), ("alice", "why"))

    def test_rows_that_cannot_run_keep_the_version_before(self) -> None:
        route(provider())
        good = publish.publish("alice")
        Provider.objects.update(kind="gone")
        Route.objects.update(pattern="")
        with self.assertRaises(publish.PublishError) as caught:
            publish.publish("alice")
        self.assertIn("Provider “local”, kind: “gone” is not a kind", str(caught.exception))
        self.assertIn("Route “all”, pattern:", str(caught.exception))
        self.assertEqual(publish.latest()[0], good.number)
        with self.assertRaises(publish.PublishError):
            publish.draft_digest()

    def test_every_kind_of_damage_is_named(self) -> None:
        route(provider())
        bad = {"max_attempts": 0, "strategy": "magic", "unknown_price": "free"}
        GatewaySettings.objects.update_or_create(pk=1, defaults=bad)
        Route.objects.update(on_disconnect="x", disconnect_cap=0, gap_timeout_s=-1, upstream_model="a*", name="ü")
        Provider.objects.update(ca_pem="garbage", address_class="unix")
        with self.assertRaises(publish.PublishError) as caught:
            publish.publish("alice")
        fields = {problem.field for problem in caught.exception.problems}
        self.assertEqual(
            fields,
            {
                "max_attempts",
                "strategy",
                "unknown price",
                "on disconnect",
                "tokens read on",
                "gap_timeout_s",
                "upstream model",
                "name",
                "private CA",
                "address class",
            },
        )

    def test_a_base_url_not_in_stored_form_is_not_published(self) -> None:
        provider()
        for wrong in ("http://127.0.0.1:8000/v1", "http://u:p@127.0.0.1", "demo://local"):
            Provider.objects.update(base_url=wrong)
            with self.assertRaises(publish.PublishError):
                publish.publish("alice")

    def test_many_saves_in_one_transaction_publish_once(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            made = provider()
            with transaction.atomic():
                route(made, "one")
            route(made, "two")
        version = ConfigVersion.objects.get()
        self.assertEqual((version.author, version.note), ("alice", "provider.created local and more"))
        self.assertEqual(len(document().routes), 2)
        with self.captureOnCommitCallbacks(execute=True):
            route(made, "three")
        self.assertEqual(ConfigVersion.objects.count(), 2)
        self.assertEqual(ConfigVersion.objects.first().note, "route.created three")

    def test_a_batch_compiles_once(self) -> None:
        made = provider()
        with self.captureOnCommitCallbacks() as callbacks:
            for number in range(5):
                route(made, f"r{number}")
        callbacks[0]()
        with self.assertNumQueries(0):
            for callback in callbacks[1:]:
                callback()

    def test_a_failed_publication_after_commit_is_recorded_and_raises_nothing(self) -> None:
        provider()
        Provider.objects.update(kind="gone")
        with self.captureOnCommitCallbacks(execute=True):
            publish.publish_on_commit("alice")
        entry = OutboxEntry.objects.get(action="config.publish_failed")
        self.assertEqual(entry.level, "error")
        self.assertIn("gone", entry.data["problems"][0])
        self.assertEqual(ConfigVersion.objects.count(), 0)


class PublishOnCommitTests(TransactionTestCase):
    databases = "__all__"

    def test_a_rolled_back_savepoint_takes_only_its_own_publication_along(self) -> None:
        with transaction.atomic():
            try:
                with transaction.atomic():
                    provider("lost")
                    raise RuntimeError
            except RuntimeError:
                pass
            provider("kept", "http://127.0.0.1:8001")
        self.assertEqual([p.name for p in document().providers], ["kept"])

    def test_a_rolled_back_transaction_publishes_nothing(self) -> None:
        with self.assertRaises(RuntimeError), transaction.atomic():
            provider()
            raise RuntimeError
        self.assertIsNone(publish.latest())

    def test_a_row_changed_while_compiling_is_part_of_what_is_published(self) -> None:
        made = provider()
        numbers: list[int] = []

        def publish_again() -> None:
            try:
                numbers.append(publish.publish("thread").number)
            finally:
                connection.close()

        threads = [threading.Thread(target=publish_again) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(5):
            route(made, f"r{number}")
        for thread in threads:
            thread.join()
        self.assertEqual(len(numbers), 4)
        self.assertEqual(len(document().routes), 5)
        digests = list(ConfigVersion.objects.order_by("number").values_list("digest", flat=True))
        self.assertTrue(all(one != two for one, two in itertools.pairwise(digests)))


class ServiceTests(TestCase):
    databases = "__all__"

    def test_a_pasted_v1_is_removed_and_a_blank_url_is_the_kinds_own(self) -> None:
        self.assertEqual(provider("a", LOCAL + "/v1/").base_url, LOCAL)
        self.assertEqual(provider("b", "").base_url, "http://127.0.0.1:8000")

    def test_a_bad_url_is_refused_with_its_field(self) -> None:
        for wrong in (
            "ftp://x",
            "http://169.254.169.254/latest",
            "https://u:p@h.example",
            "http://no-such-host.invalid",
        ):
            with self.assertRaises(ValidationError) as caught:
                provider("a", wrong)
            self.assertIn("base_url", caught.exception.message_dict)
        with self.assertRaises(ValidationError) as caught:
            services.save_provider(Provider(name="c", kind="custom"), actor="a")
        self.assertIn("base_url", caught.exception.message_dict)

    def test_a_well_known_address_can_be_saved_without_a_resolver(self) -> None:
        made = services.save_provider(Provider(name="openai", kind="openai"), actor="a")
        self.assertEqual((made.base_url, made.address_class), ("https://api.openai.com", "public"))

    def test_the_demo_kind_and_its_address_belong_together(self) -> None:
        made = services.save_provider(Provider(name="demo", kind="demo"), actor="a")
        self.assertEqual(made.base_url, "demo://local")
        with self.assertRaises(ValidationError):
            provider("x", "demo://local")
        with self.assertRaises(ValidationError):
            services.save_provider(Provider(name="y", kind="demo", base_url=LOCAL), actor="a")

    def test_names_are_unique(self) -> None:
        provider()
        with self.assertRaises(ValidationError) as caught:
            provider()
        self.assertIn("name", caught.exception.message_dict)

    def test_a_secret_can_be_read_back_by_the_gateway_only(self) -> None:
        made = provider()
        credential = services.set_credential(made, "main", "sk-abcdefgh1234", actor="alice")
        self.assertEqual((credential.last4, credential.revision), ("1234", 1))
        self.assertEqual(services.read_secret(credential), "sk-abcdefgh1234")
        self.assertNotIn("sk-abcdefgh1234", credential.ciphertext)
        self.assertEqual(feed.secrets(), {credential.pk: credential.ciphertext})
        for entry in OutboxEntry.objects.all():
            self.assertNotIn("sk-abc", str(entry.data))
            self.assertNotIn(credential.ciphertext, str(entry.data))

    def test_typing_a_secret_again_is_a_new_revision_and_a_new_version(self) -> None:
        made = provider()
        services.set_credential(made, "main", "first-secret-1", actor="alice")
        before = publish.publish("alice")
        again = services.set_credential(made, "main", "second-secret-2", actor="alice")
        self.assertEqual((again.revision, Credential.objects.count()), (2, 1))
        self.assertGreater(publish.publish("alice").number, before.number)

    def test_a_changed_base_url_makes_the_credential_unusable_until_typed_again(self) -> None:
        made = provider()
        credential = services.set_credential(made, "main", "sk-abcdefgh1234", actor="alice")
        made.base_url = "http://127.0.0.1:9999"
        services.save_provider(made, actor="mallory")
        credential = Credential.objects.get(pk=credential.pk)
        self.assertFalse(credential.is_usable)
        with self.assertRaises(VaultError):
            services.read_secret(credential)
        publish.publish("mallory")
        self.assertEqual(document().providers[0].credentials, ())
        services.set_credential(made, "main", "sk-abcdefgh1234", actor="alice")
        publish.publish("alice")
        self.assertEqual(len(document().providers[0].credentials), 1)

    def test_a_secret_that_could_break_a_header_is_refused(self) -> None:
        made = provider()
        for wrong in ("", "a b", "a\r\nX-Evil: 1", "schlüssel", "x" * 5000):
            with self.assertRaises(ValidationError) as caught:
                services.set_credential(made, "main", wrong, actor="a")
            self.assertIn("secret", caught.exception.message_dict)

    def test_of_a_short_secret_nothing_is_shown(self) -> None:
        self.assertEqual(services.set_credential(provider(), "main", "short", actor="a").last4, "")

    def test_a_disabled_credential_is_no_longer_fed(self) -> None:
        credential = services.set_credential(provider(), "main", "sk-abcdefgh1234", actor="alice")
        before = feed.sequences_now()
        credential.enabled = False
        services.save_credential(credential, actor="alice")
        self.assertEqual(feed.secrets(), {})
        after = feed.sequences_now()
        self.assertGreater(after["secrets"], before["secrets"])
        self.assertGreater(after["config"], before["config"])

    def test_saving_without_a_change_records_and_publishes_nothing(self) -> None:
        made = provider()
        entries, counters = OutboxEntry.objects.count(), feed.sequences_now()
        services.save_provider(Provider.objects.get(pk=made.pk), actor="alice")
        self.assertEqual((OutboxEntry.objects.count(), feed.sequences_now()), (entries, counters))

    def test_a_change_is_recorded_with_old_and_new_values(self) -> None:
        made = route(provider())
        made.priority = 3
        services.save_route(made, actor="bob")
        entry = OutboxEntry.objects.get(action="route.changed")
        self.assertEqual((entry.actor, entry.data["fields"]), ("bob", {"priority": ["10", "3"]}))

    def test_values_outside_their_range_are_refused_by_field(self) -> None:
        made = provider()
        for fields in ({"gap_timeout_s": float("nan")}, {"total_timeout_s": 0}, {"output_cap": 0}, {"tags": "No Good"}):
            with self.assertRaises(ValidationError) as caught:
                route(made, **fields)
            self.assertEqual(list(caught.exception.message_dict), list(fields))

    def test_the_total_time_covers_the_first_byte(self) -> None:
        row = services.gateway_settings()
        row.total_timeout_s = 10
        with self.assertRaises(ValidationError) as caught:
            services.save_settings(row, actor="a")
        self.assertIn("total_timeout_s", caught.exception.message_dict)
        made = provider()
        for part in ("first_byte_timeout_s", "connect_timeout_s"):
            with self.assertRaises(ValidationError) as caught:
                route(made, **{part: 11, "total_timeout_s": 10})
            self.assertEqual(list(caught.exception.message_dict), ["total_timeout_s"])
        route(made, first_byte_timeout_s=10, total_timeout_s=10)
        route(made, name="shorter than the default of a part", total_timeout_s=1)

    def test_deleting_a_provider_takes_routes_and_credentials_along_and_is_recorded(self) -> None:
        made = provider()
        route(made)
        services.set_credential(made, "main", "sk-abcdefgh1234", actor="alice")
        services.delete_provider(made, actor="bob")
        self.assertEqual((Route.objects.count(), Credential.objects.count()), (0, 0))
        self.assertTrue(OutboxEntry.objects.filter(action="provider.deleted", actor="bob", target="local").exists())

    def test_cards_have_their_own_counter(self) -> None:
        before = sequences.current(sequences.CONFIG)
        services.save_card(ModelCard(pattern="llama*", max_output_tokens=10, capabilities="chat"), actor="a")
        number, cards = feed.cards()
        self.assertEqual((number, cards[0].pattern, cards[0].capabilities), (1, "llama*", ("chat",)))
        self.assertEqual(sequences.current(sequences.CONFIG), before)
        services.delete_card(ModelCard.objects.get(), actor="a")
        self.assertEqual(feed.cards(), (2, []))

    def test_writers_meet_at_the_counter_before_they_touch_a_row(self) -> None:
        made = provider()
        services.set_credential(made, "main", "sk-abcdefgh1234", actor="a")
        card = services.save_card(ModelCard(pattern="x*"), actor="a")
        made.note = card.note = "changed"
        for write in (
            lambda: services.save_provider(made, actor="a"),
            lambda: services.save_card(card, actor="a"),
            lambda: route(made),
            lambda: services.delete_credential(Credential.objects.get(), actor="a"),
            lambda: services.delete_provider(made, actor="a"),
        ):
            with CaptureQueriesContext(connection) as queries:
                write()
            changes = [each["sql"] for each in queries if each["sql"].startswith(("UPDATE", "INSERT", "DELETE"))]
            self.assertGreater(len(changes), 1)
            self.assertRegex(changes[0], "^UPDATE .providers_sequence.")

    def test_discovered_models_are_those_of_enabled_providers(self) -> None:
        one, two = provider("one"), provider("two", "http://127.0.0.1:8001", enabled=False)
        for each in (one, two):
            ProviderProbe.objects.create(provider=each, ok=True, models=["m1", "m2"])
        self.assertEqual(feed.discovered(), {one.pk: ["m1", "m2"]})


class OlderDocumentsTests(TestCase):
    def test_a_document_from_before_prices_were_asked_for_still_runs(self) -> None:
        text = b'{"settings":{},"routes":[{"id":1,"name":"r","pattern":"*","provider_id":1,"on_disconnect":"drain"}]}'
        document = config.unpack(zlib.compress(text))
        self.assertEqual(document.settings.unknown_price, "refuse")
        self.assertEqual((document.routes[0].on_disconnect, document.routes[0].disconnect_cap), ("drain", 1024))
