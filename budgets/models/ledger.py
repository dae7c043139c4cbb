"""The ledger: balances of pools, leases of workers, usage rows, decision shapes and journal positions.

Only `budgets.settle.Writer` writes these tables; everybody else reads. Ids of keys, agents, pools, providers and
prices are plain numbers, because on SQLite those rows live in another database file.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from budgets.records import Basis


class PoolWindow(models.Model):
    """The balance of one pool in one window, in tokens. `window_start` is Unix seconds; 0 = the pool's lifetime."""

    pool_id = models.BigIntegerField()
    window_start = models.BigIntegerField(default=0)
    capacity = models.BigIntegerField()
    committed = models.BigIntegerField(default=0, help_text="Tokens charged.")
    leased = models.BigIntegerField(
        default=0, help_text="Tokens workers may still spend: held, idle or not settled yet."
    )
    overrun = models.BigIntegerField(
        default=0,
        help_text="Tokens charged or leased above the capacity: a provider reported more than was held, or the "
        "capacity was lowered below what was in use. It shrinks by itself as leases come back.",
    )

    class Meta:
        ordering = ("pool_id", "window_start")
        constraints = (
            models.UniqueConstraint(fields=("pool_id", "window_start"), name="window_once_per_pool"),
            models.CheckConstraint(
                condition=Q(capacity__gte=0, committed__gte=0, leased__gte=0, overrun__gte=0),
                name="window_amounts_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(committed__lte=F("capacity") + F("overrun") - F("leased")), name="window_within_capacity"
            ),
        )

    def __str__(self) -> str:
        return f"pool {self.pool_id} from {self.window_start}: {self.committed} of {self.capacity}"


class Lease(models.Model):
    """What one worker incarnation may spend from one window.

    `granted` and `returned` only grow; `remaining` = granted - returned - charged.
    """

    class State(models.TextChoices):
        """`quarantined`: the owner's journal is damaged; the rest stays counted until an operator writes it off."""

        ACTIVE = "active", "Active"
        QUARANTINED = "quarantined", "Quarantined"

    owner = models.CharField(max_length=64)
    window = models.ForeignKey(PoolWindow, on_delete=models.PROTECT, related_name="leases")
    granted = models.BigIntegerField(default=0)
    returned = models.BigIntegerField(default=0)
    remaining = models.BigIntegerField(default=0)
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)

    class Meta:
        ordering = ("owner", "window")
        constraints = (
            models.UniqueConstraint(fields=("owner", "window"), name="lease_once_per_owner"),
            models.CheckConstraint(
                condition=Q(granted__gte=0, returned__gte=0, remaining__gte=0), name="lease_amounts_not_negative"
            ),
        )

    def __str__(self) -> str:
        return f"{self.owner}: {self.remaining} of {self.granted}"


class Usage(models.Model):
    """One attempt of one request, as it was charged. Insert-only; (`rid`, `attempt`) makes a replay harmless."""

    BASIS_CHOICES: ClassVar[list[tuple[int, str]]] = [(basis.value, basis.name.lower()) for basis in Basis]

    rid = models.CharField("request id", max_length=32, help_text="Ours, time-ordered, hexadecimal.")
    attempt = models.PositiveSmallIntegerField(default=0)
    at = models.DateTimeField(help_text="Start of the request.")
    key_id = models.BigIntegerField()
    agent_id = models.BigIntegerField()
    team_id = models.BigIntegerField()
    pool_id = models.BigIntegerField()
    window_start = models.BigIntegerField(default=0)
    route_id = models.BigIntegerField(default=0)
    provider_id = models.BigIntegerField(default=0)
    endpoint = models.CharField(max_length=32)
    model = models.CharField(max_length=256, help_text="As requested.")
    upstream_model = models.CharField(max_length=256, blank=True)
    status = models.IntegerField(help_text="What the client was told; 499 = the client left, 0 = unknown.")
    error = models.CharField(max_length=64, blank=True)
    stream = models.BooleanField(default=False)
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    cache_write_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    tokens = models.BigIntegerField(default=0, help_text="Charged to the pool.")
    held = models.BigIntegerField(default=0, help_text="Held for it before the upstream call.")
    cost_usd = models.DecimalField(max_digits=24, decimal_places=12, default=0)
    price_id = models.BigIntegerField(default=0, help_text="The price row used; 0 = none matched.")
    basis = models.PositiveSmallIntegerField(choices=BASIS_CHOICES, default=Basis.REPORTED.value)
    latency_us = models.BigIntegerField(default=0)
    ttft_us = models.BigIntegerField("time to first byte (µs)", default=0)
    config_version = models.BigIntegerField(default=0)
    shape = models.CharField(max_length=32, blank=True, help_text="Digest of the decision's shape.")
    attempts = models.PositiveSmallIntegerField(default=1)
    client_request_id = models.CharField(max_length=128, blank=True)

    class Meta:
        ordering = ("-id",)
        verbose_name = "usage row"
        constraints = (models.UniqueConstraint(fields=("rid", "attempt"), name="usage_once_per_attempt"),)
        indexes = (
            models.Index(fields=("at",), name="usage_at"),
            models.Index(fields=("key_id", "at"), name="usage_key_at"),
            models.Index(fields=("agent_id", "at"), name="usage_agent_at"),
        )

    def __str__(self) -> str:
        return f"{self.rid}/{self.attempt}"


class DecisionShape(models.Model):
    """A routing decision's shape (candidates and reasons), stored once and named by usage rows."""

    digest = models.CharField(max_length=32, primary_key=True)
    payload = models.TextField(help_text="JSON.")

    class Meta:
        ordering = ("digest",)

    def __str__(self) -> str:
        return self.digest


class JournalPosition(models.Model):
    """Where to read a worker's journal from after a restart: its oldest open hold, or the end of what was settled."""

    owner = models.CharField(max_length=64, primary_key=True)
    segment = models.BigIntegerField()
    offset_bytes = models.BigIntegerField()

    class Meta:
        ordering = ("owner",)

    def __str__(self) -> str:
        return f"{self.owner} {self.segment}:{self.offset_bytes}"
