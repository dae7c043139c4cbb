"""What happened in the gateway, for programs that want to be told; and the addresses they are told at.

Events are no audit log: they are kept for some weeks (`HOOSH_EVENTS_DAYS`), and those of workers may get lost.
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class Level(models.TextChoices):
    """How much an event matters."""

    INFO = "info", "Info"
    WARNING = "warning", "Warning"
    ERROR = "error", "Error"


class Event(models.Model):
    """One thing that happened. Insert-only; `events.emit` is the only writer, `events.order` says in which order."""

    at = models.DateTimeField("time", default=timezone.now, db_index=True)
    topic = models.CharField(max_length=100, help_text="What it is about, e.g. providers/health.")
    name = models.CharField(max_length=100, help_text="What happened, e.g. provider.health_changed.")
    level = models.CharField(max_length=10, choices=Level.choices, default=Level.INFO)
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ("-id",)
        indexes = (models.Index(fields=("topic", "id"), name="event_topic"),)

    def __str__(self) -> str:
        return f"{self.name} {self.pk}"


class Cursor(models.Model):
    """How far a table has been turned into events: exactly once, since it moves in the transaction of the events."""

    name = models.CharField(max_length=40, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name} up to {self.value}"


class Webhook(models.Model):
    """An address that is told events in the order of their ids. `cursor` is the last one it has, or did not want."""

    class AddressClass(models.TextChoices):
        """Where the address is; it must still be there at every call."""

        PUBLIC = "public", "Public internet"
        PRIVATE = "private", "Private network"
        LOOPBACK = "loopback", "This host"

    name = models.CharField(max_length=64, unique=True)
    url = models.CharField("URL", max_length=500)
    address_class = models.CharField(max_length=10, choices=AddressClass.choices, editable=False)
    topics = models.CharField(
        max_length=500,
        blank=True,
        help_text="Comma-separated topics or names: * stands for one part, # for the rest. Blank: every event.",
    )
    ciphertext = models.TextField(editable=False)
    enabled = models.BooleanField(default=True)
    note = models.CharField(max_length=200, blank=True)
    cursor = models.BigIntegerField(default=0, editable=False)
    delivered = models.BigIntegerField(default=0, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Attempts in a row that failed.")
    failing_since = models.DateTimeField(null=True, blank=True, editable=False)
    next_try_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_at = models.DateTimeField("last attempt", null=True, blank=True, editable=False)
    last_status = models.PositiveSmallIntegerField("last answer", null=True, blank=True, editable=False)
    last_error = models.CharField(max_length=300, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(condition=models.Q(cursor__gte=0, delivered__gte=0), name="webhook_counts_forward"),
        )

    def __str__(self) -> str:
        return self.name
