"""The admin pages of events and webhooks."""

from __future__ import annotations

import re

import pytest
from django.utils import timezone

from audit.models import OutboxEntry
from events import names
from events.emit import emit, emit_all, made
from events.models import Event, Webhook
from hoosh_site import webhooks
from tests.admin_case import AdminTestCase
from tests.events.receiver import Receiver, is_genuine

pytestmark = pytest.mark.database


class EventPages(AdminTestCase):
    def test_the_list_is_read_by_key_and_filtered_without_a_count(self):
        emit_all([made("a.b", {"n": n, "mark": f"row{n:03}"}) for n in range(60)])
        emit(names.DISABLED, {"mark": "shattered"})
        html = self.page("events_event_changelist")
        assert "shattered" in html
        assert "row059" in html
        assert "row000" not in html
        older = re.search(r'href="(\?before=\d+)" rel="next"', html)
        assert older is not None
        assert "row000" in self.page("events_event_changelist", query=older[1])
        assert "row059" not in self.page("events_event_changelist", query="?level=error")
        assert "shattered" not in self.page("events_event_changelist", query="?topic=providers/health")
        assert "shattered" in self.page("events_event_changelist", query="?topic=webhooks/disabled&span=hour")
        Event.objects.filter(name=names.DISABLED).update(at=timezone.now() - timezone.timedelta(days=2))
        assert "shattered" not in self.page("events_event_changelist", query="?topic=webhooks/disabled&span=day")

    def test_the_list_costs_the_same_whatever_there_is(self):
        emit_all([made("a.b", {"n": n}) for n in range(60)])
        with self.queries(3):  # session, user, rows
            self.page("events_event_changelist")

    def test_an_event_is_shown_and_cannot_be_changed(self):
        emit("a.b", {"text": "<b>bold</b>"})
        event = Event.objects.get()
        html = self.page("events_event_change", event.pk)
        assert "&lt;b&gt;bold" in html
        assert "<b>bold" not in html
        assert self.client.get(self.url("events_event_add")).status_code == 403
        assert self.post("events_event_delete", {"post": "yes"}, event.pk).status_code == 403
        assert Event.objects.exists()

    def test_only_those_who_may_see_events_see_them(self):
        self.allow(self.bob)
        assert self.client.get(self.url("events_event_changelist")).status_code == 403
        self.allow(self.bob, "view_event")
        assert self.client.get(self.url("events_event_changelist")).status_code == 200


class WebhookPages(AdminTestCase):
    def form(self, url: str, **changes: object) -> dict[str, object]:
        return {"name": "hook", "url": url, "topics": "", "enabled": "on", "note": "", "internal": "on", **changes}

    def made(self, url: str = "http://127.0.0.1:9/") -> tuple[Webhook, str]:
        html = self.clean_html(self.post("events_webhook_add", self.form(url)))
        secret = re.search(r'<code id="hoosh-key">(whsec_[^<]+)</code>', html)
        assert secret is not None
        return Webhook.objects.get(), secret[1]

    def test_a_new_one_shows_its_secret_once_and_a_test_event_bears_it(self):
        with Receiver() as receiver:
            webhook, secret = self.made(receiver.url)
            html = self.page("events_webhook_change", webhook.pk)
            assert secret not in html
            assert "never called" in html
            response = self.post("events_webhook_test", {}, webhook.pk)
            assert "was taken (204)" in self.messages(response)
        assert is_genuine(receiver.calls[0], secret)
        assert OutboxEntry.objects.get(action="webhook.created").actor == "ada"
        assert "204" in self.page("events_webhook_changelist")
        response = self.post("events_webhook_test", {}, webhook.pk)
        assert "No connection" in self.messages(response)
        assert "no answer" in self.page("events_webhook_change", webhook.pk)

    def test_a_new_secret_replaces_the_old_one(self):
        with Receiver() as receiver:
            webhook, old = self.made(receiver.url)
            html = self.clean_html(self.post("events_webhook_secret", {}, webhook.pk))
            new = re.search(r'<code id="hoosh-key">(whsec_[^<]+)</code>', html)
            assert new is not None
            webhooks.send_test(Webhook.objects.get())
        assert is_genuine(receiver.calls[0], new[1])
        assert not is_genuine(receiver.calls[0], old)

    def test_an_internal_address_must_be_meant(self):
        response = self.post("events_webhook_add", {**self.form("http://127.0.0.1:9/"), "internal": ""})
        assert "internal (this host)" in self.errors(response)
        assert "never be sent" in self.errors(self.post("events_webhook_add", self.form("http://169.254.169.254/")))
        assert "no topic" in self.errors(
            self.post("events_webhook_add", self.form("http://127.0.0.1:9/", topics="a//"))
        )
        assert not Webhook.objects.exists()

    def test_a_change_keeps_where_it_stands_and_a_failing_one_is_tried_anew(self):
        webhook, _ = self.made()
        before = Webhook.objects.get()
        Webhook.objects.update(
            cursor=7,
            enabled=False,
            failures=9,
            failing_since=timezone.now(),
            last_error="It is down.",
            last_at=timezone.now(),
        )
        html = self.page("events_webhook_change", webhook.pk)
        assert "Switched off" in html
        assert "It is down." in html
        response = self.post("events_webhook_change", self.form("http://127.0.0.1:9/", topics="config/*"), webhook.pk)
        assert response.status_code == 302
        row = Webhook.objects.get()
        assert (row.cursor, row.enabled, row.failures, row.failing_since, row.topics) == (7, True, 0, None, "config/*")
        assert (row.ciphertext, row.address_class) == (before.ciphertext, "loopback")

    def test_deleting_one_is_recorded(self):
        webhook, _ = self.made()
        assert self.post("events_webhook_delete", {"post": "yes"}, webhook.pk).status_code == 302
        assert not Webhook.objects.exists()
        assert OutboxEntry.objects.filter(action="webhook.deleted", actor="ada").exists()

    def test_rights_hold_for_pages_and_buttons(self):
        webhook, _ = self.made()
        self.allow(self.bob, "view_webhook")
        html = self.page("events_webhook_change", webhook.pk)
        assert "Send a test event" not in html
        for name in ("events_webhook_test", "events_webhook_secret"):
            assert self.post(name, {}, webhook.pk).status_code == 403
            assert self.client.get(self.url(name, webhook.pk)).status_code == 405
        assert self.client.get(self.url("events_webhook_add")).status_code == 403
        self.allow(self.bob, "change_webhook")
        assert self.post("events_webhook_test", {}, 999).status_code == 404
