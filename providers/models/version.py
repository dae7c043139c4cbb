"""Published configurations, drafts, and what control keeps beside them."""

from __future__ import annotations

from django.db import models


class ConfigVersion(models.Model):
    """A published configuration. Insert-only but for `owners`: what ran, who published it and why."""

    number = models.BigAutoField(primary_key=True)
    digest = models.CharField(max_length=64, db_index=True)
    document = models.BinaryField(help_text="providers.config.pack() of the document")
    owners = models.JSONField(default=dict, editable=False)  # which import made which row: providers.owners
    author = models.CharField(max_length=150, blank=True)
    note = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "configuration version"
        ordering = ("-number",)

    def __str__(self) -> str:
        return f"Version {self.number}"


class DraftChange(models.Model):
    """A change that waits for somebody else to publish it, where the gateway settings ask for that."""

    at = models.DateTimeField(auto_now_add=True)
    author = models.CharField(max_length=150)
    what = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.author}: {self.what}"


class ScheduledPublication(models.Model):
    """A draft that is to be published at a moment, unless it changed by then."""

    class State(models.TextChoices):
        """What became of it."""

        WAITING = "waiting", "waiting"
        DONE = "done", "published"
        FAILED = "failed", "not published"
        CANCELLED = "cancelled", "cancelled"

    at = models.DateTimeField("publish at", db_index=True)
    author = models.CharField(max_length=150)
    note = models.CharField(max_length=500, blank=True)
    digest = models.CharField(max_length=64, help_text="Of the draft as it was when this was decided.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    result = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} UTC by {self.author}"


class Sequence(models.Model):
    """Counters control watches to see that rows outside the configuration document changed ("cards")."""

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class ImportState(models.Model):
    """What was last imported from a file, so that an unchanged file is not imported again. At most one row."""

    fingerprint = models.CharField(max_length=64, help_text="Over the file and the variables and files it names.")
    source = models.CharField(max_length=500, blank=True)
    imported_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = (models.CheckConstraint(condition=models.Q(pk=1), name="import_state_single_row"),)

    def __str__(self) -> str:
        return self.source
