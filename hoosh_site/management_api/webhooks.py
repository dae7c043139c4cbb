"""Addresses that are told events."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from events.models import Webhook
from hoosh_site import webhooks
from hoosh_site.management_api.fields import Joined, RowSerializer, Truth
from hoosh_site.management_api.paging import Filter
from hoosh_site.management_api.rows import Rows, search, wake

_STATE = ("delivered", "failures", "failing_since", "next_try_at", "last_at", "last_status", "last_error")


class WebhookSerializer(RowSerializer):
    """An address that is told events, signed with a secret that is told once."""

    topics = Joined(required=False, help_text="Topics or names; empty = every event.")
    internal = Truth(write_only=True, required=False, help_text="The address may be on this host or in a private net.")

    class Meta:
        model = Webhook
        fields = (
            *("id", "name", "url", "topics", "enabled", "note", "internal", "address_class"),
            *_STATE,
            *("created_at", "updated_at"),
        )
        read_only_fields = ("id", "address_class", *_STATE, "created_at", "updated_at")


class NewWebhookSerializer(WebhookSerializer):
    """A webhook with its new secret."""

    secret = serializers.CharField(read_only=True, help_text="whsec_…, told this once.")

    class Meta(WebhookSerializer.Meta):
        fields = (*WebhookSerializer.Meta.fields, "secret")  # type: ignore[assignment]


class TestSerializer(serializers.Serializer[None]):
    """What came of a test event."""

    taken = serializers.BooleanField()
    status = serializers.IntegerField(help_text="0 = there was no answer")
    error = serializers.CharField(help_text="What is wrong; empty where nothing is.")


class Webhooks(Rows):
    """Addresses that are told events."""

    label = "events.webhook"
    bodiless = frozenset({"test", "secret"})
    serializer_class = WebhookSerializer
    queryset = Webhook.objects.all()
    filters = {**search(), "enabled": Filter("enabled", "truth")}
    verbs: ClassVar = {}

    @extend_schema(responses={201: NewWebhookSerializer})
    def create(self, request: Request, **path: Any) -> Response:
        """The answer holds its secret, which is told this once. The address is looked up before anything is written."""
        values = self.read(request)
        internal = values.pop("internal", False)
        row = Webhook(**values)
        found = webhooks.observe(row.url, internal=internal)
        with transaction.atomic():
            secret = webhooks.create(row, actor=self.actor, address_class=found)
        wake()
        return self.told(self.again(row), status=201, secret=secret)

    def partial_update(self, request: Request, **path: Any) -> Response:
        """Change the fields that are there. `url` or `internal` look the address up again."""
        values = self.read(request, partial=True)
        row = self.row()
        internal = values.pop("internal", None)
        found = ""
        if "url" in values or internal is not None:
            allowed = row.address_class != Webhook.AddressClass.PUBLIC if internal is None else internal
            found = webhooks.observe(values.get("url", row.url), internal=allowed)
        with transaction.atomic():
            row = Webhook.objects.select_for_update().filter(pk=row.pk).first() or self.row()
            self.match(request, row)
            for name, value in values.items():
                setattr(row, name, value)
            webhooks.change(row, actor=self.actor, address_class=found or row.address_class)
        wake()
        return self.told(self.again(row))

    def erase(self, row: Webhook, actor: str) -> None:
        """Forget a webhook."""
        webhooks.delete(row, actor=actor)

    @extend_schema(request=None, responses=TestSerializer, summary="Send a test event now")
    def test(self, request: Request, **path: Any) -> Response:
        """It stands nowhere else. Takes ten seconds at most."""
        answer = webhooks.send_test(self.row())
        return Response({"taken": not answer.error, "status": answer.status, "error": answer.error})

    @extend_schema(request=None, responses=NewWebhookSerializer, summary="A new secret instead of the old one")
    def secret(self, request: Request, **path: Any) -> Response:
        """From the next call on. The answer holds it, this once."""
        row = self.row()
        secret = webhooks.renew_secret(row, actor=self.actor)
        wake()
        return self.told(row, secret=secret)
