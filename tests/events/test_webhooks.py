"""Webhooks over real sockets: signed, in order, repeated until they are taken, and given up in the end."""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import json
from collections.abc import Callable
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.core.exceptions import ValidationError
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from audit.models import OutboxEntry
from events import names
from events.emit import emit, emit_all, made
from events.models import Event, Webhook
from hoosh_site import webhooks
from hoosh_site.webhook_delivery import Deliverer
from tests.events.receiver import Received, Receiver, is_genuine

pytestmark = pytest.mark.database


def saved(url: str, **changes: Any) -> tuple[Webhook, str]:
    """A stored webhook to an address on this host, and its secret."""
    webhook = Webhook(name="hook", url=url, **changes)
    secret = webhooks.create(webhook, actor="ada", address_class=webhooks.observe(url, internal=True))
    return webhook, secret


class DeliveryTests(TransactionTestCase):
    databases = "__all__"

    def deliver(self, until: Callable[[], object], *, quiet_s: float = 0.0, **options: Any) -> None:
        """Deliver until something holds, and `quiet_s` longer."""
        deliverer = Deliverer(
            **{"first_pause_s": 0.05, "look_s": 0.05, "timeout_s": 2.0, "rand": lambda: 0.5} | options
        )

        async def live() -> None:
            task = asyncio.get_running_loop().create_task(deliverer.run())
            try:
                async with asyncio.timeout(15):
                    while not await database_sync_to_async(until)():
                        await asyncio.sleep(0.02)
                await asyncio.sleep(quiet_s)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(live())

    def row(self) -> Webhook:
        return Webhook.objects.get(name="hook")

    def test_events_come_signed_in_order_and_once(self):
        with Receiver() as receiver:
            _, secret = saved(receiver.url)
            emit(names.HEALTH, {"provider": "ü", "base_url": "http://x", "healthy": True})
            emit_all([made("a.b", {"n": n}) for n in range(150)])
            self.deliver(lambda: self.row().delivered == 151, quiet_s=0.2)
        numbers = list(Event.objects.order_by("id").values_list("id", flat=True))
        assert [call.id for call in receiver.calls] == [f"evt_{number}" for number in numbers]
        assert all(is_genuine(call, secret) for call in receiver.calls)
        first = receiver.calls[0]
        assert first.path == "/hook?for=tests"
        assert first.headers["content-type"] == "application/json"
        told = first.event
        assert (told["type"], told["timestamp"]) == (told["name"], told["at"]) == (names.HEALTH, told["at"])
        assert (told["event"], told["provider"], told["healthy"]) == ("health_changed", "ü", True)
        row = self.row()
        assert (row.cursor, row.failures, row.last_status, row.last_error) == (numbers[-1], 0, 204, "")

    def test_a_changed_body_or_another_secret_is_no_genuine_call(self):
        with Receiver() as receiver:
            _, secret = saved(receiver.url)
            emit("a.b", {"n": 1})
            self.deliver(lambda: receiver.taken)
        (call,) = receiver.calls
        assert is_genuine(call, secret)
        assert not is_genuine(Received(call.path, call.headers, call.body.replace(b"1", b"2")), secret)
        assert not is_genuine(call, "whsec_" + "A" * 44)
        older = {**call.headers, "webhook-timestamp": str(int(call.headers["webhook-timestamp"]) - 1)}
        assert not is_genuine(Received(call.path, older, call.body), secret)

    def test_the_signature_is_that_of_the_published_example(self):
        # From the specification's own test vectors.
        key = webhooks.base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        signed = webhooks.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_what_is_not_wanted_is_passed_over(self):
        with Receiver() as receiver:
            saved(receiver.url, topics="config/*, budget.threshold")
            for name in ("a.b", names.PUBLISHED, "a.c", names.THRESHOLD, "a.d"):
                emit(name, {})
            newest = Event.objects.order_by("-id").values_list("id", flat=True).first()
            self.deliver(lambda: self.row().cursor == newest)
        assert [call.event["name"] for call in receiver.calls] == [names.PUBLISHED, names.THRESHOLD]

    def test_a_webhook_is_told_only_what_happens_after_it_was_made(self):
        emit("a.before", {})
        with Receiver() as receiver:
            saved(receiver.url)
            emit("a.after", {})
            self.deliver(lambda: receiver.taken, quiet_s=0.2)
        assert [call.event["name"] for call in receiver.calls] == ["a.after"]

    def test_a_call_that_fails_is_repeated_with_the_same_id_before_anything_behind_it(self):
        answers = iter([500, 302, (503, {"retry-after": "0"}), 404])
        with Receiver(answer=lambda received: next(answers, 200)) as receiver:
            _, secret = saved(receiver.url)
            emit_all([made("a.b", {"n": n}) for n in range(3)])
            self.deliver(lambda: len(receiver.taken) == 3, quiet_s=0.2)
        assert [call.event["data"]["n"] for call in receiver.calls] == [0, 0, 0, 0, 0, 1, 2]
        assert len({call.id for call in receiver.calls[:5]}) == 1
        assert all(is_genuine(call, secret) for call in receiver.calls)
        assert (self.row().failures, self.row().failing_since) == (0, None)

    def test_a_receiver_that_is_away_or_silent_gets_everything_once_it_is_back(self):
        with Receiver() as receiver:
            saved(receiver.url)
        emit_all([made("a.b", {"n": n}) for n in range(3)])
        self.deliver(lambda: self.row().failures >= 2)
        assert self.row().last_status is None
        assert "No connection" in self.row().last_error
        silent: list[Any] = [None]
        with Receiver(port=receiver.port, answer=lambda received: silent.pop() if silent else 200) as again:
            self.deliver(lambda: len(again.taken) == 3, timeout_s=0.3)
        assert [call.event["data"]["n"] for call in again.calls] == [0, 0, 1, 2]
        assert [call.event["data"]["n"] for call in again.taken] == [0, 1, 2]

    def test_pauses_grow_to_an_hour_and_are_spread(self):
        least, middle, most = (Deliverer(rand=lambda share=share: share) for share in (0.0, 0.5, 1.0))
        assert [middle._pause_s(failures) for failures in (1, 2, 3, 4, 10, 11, 2000)] == [
            *(5, 10, 20, 40, 2560, 3600, 3600)
        ]
        assert least._pause_s(1) == pytest.approx(4)
        assert most._pause_s(1) == pytest.approx(6)

    def test_a_receiver_may_ask_for_a_longer_pause_by_a_date(self):
        then = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=600), usegmt=True)
        with Receiver(answer=lambda received: (503, {"retry-after": then})) as receiver:
            saved(receiver.url)
            emit("a.b", {})
            self.deliver(lambda: self.row().failures == 1, quiet_s=0.3)
        wait = self.row().next_try_at - timezone.now()
        assert dt.timedelta(seconds=580) < wait < dt.timedelta(seconds=601)

    def test_a_receiver_may_ask_for_a_longer_pause(self):
        with Receiver(answer=lambda received: (429, {"retry-after": "600"})) as receiver:
            saved(receiver.url)
            emit("a.b", {})
            self.deliver(lambda: self.row().failures == 1, quiet_s=0.3)
        assert len(receiver.calls) == 1
        wait = self.row().next_try_at - timezone.now()
        assert dt.timedelta(seconds=590) < wait < dt.timedelta(seconds=601)

    def test_after_a_day_of_failures_a_webhook_is_switched_off_which_others_are_told(self):
        with Receiver(answer=lambda received: 500) as bad, Receiver() as good:
            saved(bad.url)
            other = Webhook(name="other", url=good.url, topics=names.DISABLED)
            webhooks.create(other, actor="ada", address_class="loopback")
            emit("a.b", {})
            Webhook.objects.filter(name="hook").update(
                failing_since=timezone.now() - dt.timedelta(hours=25), failures=30
            )
            self.deliver(lambda: good.taken, quiet_s=0.3)
        assert len(bad.calls) == 1
        row = self.row()
        assert (row.enabled, row.failures, row.next_try_at, row.last_status) == (False, 31, None, 500)
        (call,) = good.calls
        assert (call.event["level"], call.event["data"]["webhook"]) == ("error", "hook")
        assert OutboxEntry.objects.get(action="webhook.disabled").target == "hook"
        with Receiver(port=bad.port) as mended:
            row.enabled = True
            webhooks.change(row, actor="ada", address_class="loopback")
            assert (self.row().failures, self.row().failing_since) == (0, None)
            self.deliver(lambda: len(mended.taken) == 2)
        assert [call.event["name"] for call in mended.calls] == ["a.b", names.DISABLED]

    def test_a_receiver_that_is_gone_for_good_is_not_asked_again(self):
        with Receiver(answer=lambda received: 410) as receiver:
            saved(receiver.url)
            emit("a.b", {})
            self.deliver(lambda: not self.row().enabled, quiet_s=0.2)
        assert len(receiver.calls) == 1

    def test_one_slow_receiver_keeps_no_other_waiting(self):
        with Receiver(answer=lambda received: None) as slow, Receiver() as quick:
            saved(slow.url)
            other = Webhook(name="other", url=quick.url)
            webhooks.create(other, actor="ada", address_class="loopback")
            emit_all([made("a.b", {"n": n}) for n in range(5)])
            self.deliver(lambda: len(quick.taken) == 5, timeout_s=10)
            assert len(slow.calls) == 1

    def test_an_address_that_moved_to_another_network_gets_nothing(self):
        with Receiver() as receiver:
            webhook, _ = saved(receiver.url)
            Webhook.objects.filter(pk=webhook.pk).update(address_class="public")
            emit("a.b", {})
            self.deliver(lambda: self.row().failures >= 1)
        assert receiver.calls == []
        assert "another class" in self.row().last_error

    def test_a_secret_that_does_not_open_is_told_and_a_new_one_mends_it(self):
        with Receiver() as receiver:
            webhook, _ = saved(receiver.url)
            Webhook.objects.filter(pk=webhook.pk).update(ciphertext="nonsense")
            emit("a.b", {})
            self.deliver(lambda: self.row().failures >= 1)
            assert self.row().last_error == webhooks.UNSEALED
            secret = webhooks.renew_secret(webhook, actor="ada")
            self.deliver(lambda: receiver.taken)
        assert is_genuine(receiver.calls[0], secret)

    def test_what_is_changed_during_a_call_holds_for_the_next_one(self):
        def change(received: Received) -> int:
            Webhook.objects.filter(name="hook").update(enabled=False, updated_at=timezone.now())
            return 204

        with Receiver(answer=change) as receiver:
            saved(receiver.url)
            emit_all([made("a.b", {"n": n}) for n in range(3)])
            self.deliver(lambda: receiver.taken, quiet_s=0.3)
            assert len(receiver.calls) == 1

    def test_a_test_event_is_sent_now_and_stands_nowhere_else(self):
        with Receiver() as receiver:
            webhook, secret = saved(receiver.url)
            assert webhooks.send_test(webhook).error == ""
        (call,) = receiver.calls
        assert is_genuine(call, secret)
        assert (call.event["type"], call.event["data"]) == (names.TEST, {"webhook": "hook"})
        assert call.id.startswith("test_")
        assert not Event.objects.exists()
        assert webhooks.send_test(webhook).error.startswith("No connection")
        assert (self.row().last_status, self.row().failures) == (None, 0)


class SavingTests(TestCase):
    databases = "__all__"

    def refused(self, url: str, *, internal: bool = True) -> str:
        with pytest.raises(ValidationError) as told:
            webhooks.observe(url, internal=internal)
        return " ".join(told.value.message_dict["url"])

    def test_only_addresses_that_may_be_called_are_saved(self):
        assert webhooks.observe("http://127.0.0.1:9/x", internal=True) == "loopback"
        assert webhooks.observe("https://93.184.215.14/x?a=b", internal=False) == "public"
        assert webhooks.observe("http://10.1.2.3", internal=True) == "private"
        assert "internal" in self.refused("http://127.0.0.1:9/x", internal=False)
        assert "internal" in self.refused("https://10.1.2.3/", internal=False)
        assert "https" in self.refused("http://93.184.215.14/x")
        assert "never" in self.refused("http://169.254.169.254/latest/meta-data", internal=True)
        for url in (
            *("", "ftp://a.example/", "https://user:pw@a.example/", "https://a.example/#x", "unix:///run/x.sock"),
            *(
                "https://a.example/a b",
                "https://a.example/ü",
                "https://[::1",
                "https://a.example/\r\nx: y",
                "//a.example",
            ),
        ):
            assert self.refused(url), url

    def test_what_is_recorded_holds_neither_the_secret_nor_what_the_url_says_behind_its_host(self):
        url = "https://93.184.215.14/services/hunter2?token=hunter2"
        webhook = Webhook(name="hook", url=url)
        secret = webhooks.create(webhook, actor="ada", address_class="public")
        webhook.url = url + "3"
        webhooks.change(webhook, actor="ada", address_class="public")
        webhooks.change(webhook, actor="ada", address_class="public")  # nothing is nothing to record
        webhooks.renew_secret(webhook, actor="ada")
        webhooks.delete(webhook, actor="ada")
        entries = list(OutboxEntry.objects.order_by("id"))
        assert [entry.action for entry in entries] == [
            f"webhook.{what}" for what in ("created", "changed", "secret_renewed", "deleted")
        ]
        text = json.dumps([entry.data for entry in entries])
        assert '"https://93.184.215.14"' in text
        assert "hunter2" not in text
        assert secret not in text
        assert webhook.ciphertext not in text

    def test_the_secret_is_32_bytes_and_not_in_the_table(self):
        webhook = Webhook(name="hook", url="https://93.184.215.14/")
        secret = webhooks.create(webhook, actor="ada", address_class="public")
        assert secret.startswith("whsec_")
        stored = Webhook.objects.get()
        assert len(webhooks.call_of(stored).secret) == 32
        assert secret not in str(Webhook.objects.values().get())

    def test_topics_that_cannot_be_read_are_refused(self):
        with pytest.raises(ValidationError, match="topic"):
            webhooks.create(
                Webhook(name="hook", url="https://93.184.215.14/", topics="a//b"), actor="ada", address_class="public"
            )
