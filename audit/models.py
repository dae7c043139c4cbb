"""The outbox: what happened, written in the transaction of the change itself, until the log takes it over."""

from __future__ import annotations

from django.db import models


class OutboxEntry(models.Model):
    """One recorded event. Insert-only; `source` and `number` make it unique."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    action = models.CharField(max_length=100, db_index=True)  # dotted, e.g. "config.published"
    actor = models.CharField(max_length=150, blank=True)
    target = models.CharField(max_length=200, blank=True)
    data = models.JSONField(default=dict)
    level = models.CharField(max_length=10, default="info")

    class Meta:
        ordering = ("-id",)
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.action} {self.target}"
