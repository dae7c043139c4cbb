"""What agents did unlike themselves, and what is known of them to tell."""

from __future__ import annotations

from django.db import models

from budgets.models.access import Agent


class SpendHistory(models.Model):
    """What one agent spends in five minutes in which it spends anything: see `budgets.anomalies`."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="+")
    unit = models.CharField(max_length=8)
    mean = models.FloatField(default=0.0)
    variance = models.FloatField(default=0.0)
    count = models.PositiveIntegerField(default=0)
    stretch = models.BigIntegerField(default=0, help_text="The last one learned: Unix seconds of its start.")

    class Meta:
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("agent", "unit"), name="spend_history_once"),)

    def __str__(self) -> str:
        return f"{self.agent_id} {self.unit}"


class Anomaly(models.Model):
    """An agent spent far more than it used to, or asked the same again and again."""

    class Kind(models.TextChoices):
        """What was unusual."""

        SPEND = "spend", "Spending"
        LOOP = "loop", "Loop"

    class State(models.TextChoices):
        """Open until somebody says they have seen it."""

        OPEN = "open", "Open"
        ACKNOWLEDGED = "acknowledged", "Acknowledged"

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="anomalies")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    stretch = models.BigIntegerField(help_text="Start of the minutes it was seen in, Unix seconds.")
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    unit = models.CharField(max_length=8, help_text="usd, tokens or requests.")
    observed = models.FloatField()
    expected = models.FloatField(help_text="The mean of its history; the limit where it is a loop.")
    sigma = models.FloatField(default=0.0)
    prompt = models.CharField("prompt's digest", max_length=32, blank=True)
    throttled = models.BooleanField("held back", default=False)
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN)
    acknowledged_by = models.CharField(max_length=150, blank=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "anomalies"
        constraints = (
            models.UniqueConstraint(fields=("agent", "kind", "stretch", "prompt"), name="anomaly_once_per_stretch"),
        )
        indexes = (models.Index(fields=("state", "id"), name="anomaly_by_state"),)

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.agent}"
