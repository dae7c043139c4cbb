"""The ledger: balances of pools, leases of workers, usage rows, decision shapes and journal positions.

Only `budgets.settle.Writer` writes these tables; everybody else reads. Ids of keys, agents, pools, providers and
prices are plain numbers, because on SQLite those rows live in another database file.
"""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from budgets.models.fields import HIGH_PICO, UsdField, pico, usd
from budgets.records import Basis, Unit


class PoolWindow(models.Model):
    """The balance of one pool in one window and one unit. `window_start` is Unix seconds; 0 = the pool's lifetime.

    Amounts are tokens or pico-USD, by `unit`. `capacity` is the operator's limit plus `adjusted`; None = no limit.
    """

    UNIT_CHOICES: ClassVar[list[tuple[int, str]]] = [(Unit.TOKENS.value, "tokens"), (Unit.PICO_USD.value, "pico-USD")]

    pool_id = models.BigIntegerField()
    unit = models.PositiveSmallIntegerField(choices=UNIT_CHOICES, default=Unit.TOKENS.value)
    window_start = models.BigIntegerField(default=0)
    window_end = models.BigIntegerField(default=0, help_text="Unix seconds; 0 = never.")
    capacity = models.BigIntegerField(null=True, blank=True)
    adjusted = models.BigIntegerField(
        default=0, help_text="The part of the capacity that was carried over or transferred; less than zero if away."
    )
    carry_from = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="Start of the window whose rest goes to this one, settled when it was opened; -1 = of none. Empty: "
        "control has not opened it.",
    )
    alerts = models.CharField(max_length=64, blank=True, help_text="Percents of the capacity an alert is raised at.")
    committed = models.BigIntegerField(default=0, help_text="Charged.")
    leased = models.BigIntegerField(default=0, help_text="What workers may still spend: held, idle or not settled yet.")
    overrun = models.BigIntegerField(
        default=0,
        help_text="Charged or leased above the capacity: a provider reported more than was held, the pool does not "
        "refuse, or the capacity was lowered below what was in use. It shrinks by itself as leases come back.",
    )

    class Meta:
        ordering = ("pool_id", "window_start", "unit")
        constraints = (
            models.UniqueConstraint(fields=("pool_id", "window_start", "unit"), name="window_once_per_pool_and_unit"),
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
    pool_id = models.BigIntegerField(help_text="The pool the request named, or the key's default.")
    window_start = models.BigIntegerField(default=0)
    pools = models.CharField(
        max_length=255, blank=True, help_text="Every pool charged, as id@window-start, space-separated."
    )
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
    input_audio_tokens = models.BigIntegerField(default=0)
    output_audio_tokens = models.BigIntegerField(default=0)
    input_image_tokens = models.BigIntegerField(default=0)
    tokens = models.BigIntegerField(default=0, help_text="Charged to each of the pools.")
    held = models.BigIntegerField(default=0, help_text="Tokens held for it before the upstream call.")
    cost_usd = UsdField("cost (USD)", default=0, db_column="cost_pico")
    price_id = models.BigIntegerField(
        default=0,
        help_text="The price row used; 0 = none matched, -1 = free, because the provider is local, "
        "-2 = nothing to price.",
    )
    basis = models.PositiveSmallIntegerField(choices=BASIS_CHOICES, default=Basis.REPORTED.value)
    latency_us = models.BigIntegerField(default=0)
    ttft_us = models.BigIntegerField("time to first byte (µs)", default=0)
    config_version = models.BigIntegerField(default=0)
    shape = models.CharField(max_length=32, blank=True, help_text="Digest of the decision's shape.")
    attempts = models.PositiveSmallIntegerField(default=1)
    client_request_id = models.CharField(max_length=128, blank=True)
    batch = models.BigIntegerField(
        null=True, blank=True, editable=False, help_text="The audit log's batch of rows it was settled in."
    )

    class Meta:
        ordering = ("-id",)
        verbose_name = "request"
        constraints = (models.UniqueConstraint(fields=("rid", "attempt"), name="usage_once_per_attempt"),)
        indexes = (
            models.Index(fields=("at",), name="usage_at"),
            models.Index(fields=("key_id", "at"), name="usage_key_at"),
            models.Index(fields=("agent_id", "at"), name="usage_agent_at"),
            # Of the few rows that have something: they cost the others nothing when they are written.
            models.Index(fields=("at",), name="usage_failed_at", condition=Q(status__gte=400)),
            models.Index(fields=("error", "at"), name="usage_error_at", condition=~Q(error="")),
            models.Index(fields=("client_request_id",), name="usage_client_id", condition=~Q(client_request_id="")),
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


class LedgerEntry(models.Model):
    """A change of a balance that is no usage: corrections, transfers, carried-over rests, resolved leases.

    `amount` is signed and in the window's unit: it was added to `committed` (correction, write_off) or to `capacity`
    (transfer, carry). Never changed: a mistake is corrected by a further entry.
    """

    class Kind(models.TextChoices):
        """What happened."""

        CORRECTION = "correction", "Correction"
        TRANSFER = "transfer", "Transfer"
        CARRY = "carry", "Carried over"
        WRITE_OFF = "write_off", "Lease written off as spent"
        RELEASE = "release", "Lease given back"

    kind = models.CharField(max_length=16, choices=Kind.choices)
    order_id = models.BigIntegerField(null=True, blank=True, help_text="The operator's order it carries out.")
    order_token = models.CharField(max_length=32, null=True, blank=True, help_text="No other order has it.")  # noqa: DJ001 - NULLs are not equal
    pool_id = models.BigIntegerField()
    unit = models.PositiveSmallIntegerField(choices=PoolWindow.UNIT_CHOICES, default=Unit.TOKENS.value)
    window_start = models.BigIntegerField(default=0)
    amount = models.BigIntegerField()
    actor = models.CharField(max_length=150, blank=True)
    note = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "ledger entries"
        constraints = (
            models.UniqueConstraint(
                fields=("order_token", "pool_id", "unit", "window_start"), name="entry_once_per_order_and_window"
            ),
        )
        indexes = (models.Index(fields=("pool_id", "window_start"), name="entry_pool_window"),)

    def __str__(self) -> str:
        return f"{self.kind} {self.amount} of pool {self.pool_id}"


class PoolAlert(models.Model):
    """A share of a limit that was reached; once per window, unit and percent."""

    pool_id = models.BigIntegerField()
    unit = models.PositiveSmallIntegerField(choices=PoolWindow.UNIT_CHOICES, default=Unit.TOKENS.value)
    window_start = models.BigIntegerField(default=0)
    percent = models.PositiveSmallIntegerField()
    committed = models.BigIntegerField()
    capacity = models.BigIntegerField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("pool_id", "unit", "window_start", "percent"), name="alert_once_per_window"
            ),
        )

    def __str__(self) -> str:
        return f"pool {self.pool_id} at {self.percent} %"


class PoolSample(models.Model):
    """What a window had committed at a moment, every few minutes while it moves: the forecast's history."""

    pool_id = models.BigIntegerField()
    unit = models.PositiveSmallIntegerField(choices=PoolWindow.UNIT_CHOICES, default=Unit.TOKENS.value)
    window_start = models.BigIntegerField(default=0)
    at_s = models.BigIntegerField(help_text="Unix seconds.")
    committed = models.BigIntegerField()

    class Meta:
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("pool_id", "unit", "window_start", "at_s"), name="sample_once"),)

    def __str__(self) -> str:
        return f"pool {self.pool_id}: {self.committed} at {self.at_s}"


class UsageSums(models.Model):
    """What sums of usage rows are by, beside their time, and what is summed. `budgets.summed` has the SQL."""

    team_id = models.BigIntegerField()
    agent_id = models.BigIntegerField()
    key_id = models.BigIntegerField()
    pool_id = models.BigIntegerField()
    provider_id = models.BigIntegerField()
    route_id = models.BigIntegerField()
    endpoint = models.CharField(max_length=32)
    model = models.CharField(max_length=256)
    upstream_model = models.CharField(max_length=256, blank=True)
    requests = models.BigIntegerField(default=0, help_text="First attempts.")
    attempts = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0, help_text="Attempts that ended with an error.")
    unpriced = models.BigIntegerField(default=0, help_text="Attempts that used tokens no price was known for.")
    input_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    cache_write_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    tokens = models.BigIntegerField(default=0)
    cost_milli_usd = models.BigIntegerField(default=0, help_text="Sum of the costs' whole thousandths of a USD.")
    cost_rest_pico = models.BigIntegerField(default=0, help_text="Sum of what is left of each cost, in pico-USD.")
    latency_us = models.BigIntegerField(default=0, help_text="Sum over the attempts.")

    class Meta:
        abstract = True


class UsageRollup(UsageSums):
    """Sums of usage rows over one hour (or, later, one day) for one combination of who, where and what.

    Kept for ever, while usage rows go. `period` is the reporting period in which the rows were settled. A cost is kept
    in two parts, because ten rows of a million USD each are more pico-USD than 64 bits hold.
    """

    start = models.BigIntegerField(help_text="Unix seconds, start of the bucket in UTC.")
    seconds = models.PositiveIntegerField(default=3600, help_text="Length of the bucket: an hour or a day.")
    period = models.BigIntegerField(default=0)

    class Meta:
        ordering = ("start", "id")
        constraints = (
            models.UniqueConstraint(
                fields=(
                    *("start", "seconds", "period", "team_id", "agent_id", "key_id", "pool_id", "provider_id"),
                    *("route_id", "endpoint", "model", "upstream_model"),
                ),
                name="rollup_once_per_bucket",
            ),
        )
        indexes = (
            models.Index(fields=("period",), name="rollup_period"),
            models.Index(fields=("team_id", "start"), name="rollup_team"),
        )

    def __str__(self) -> str:
        return f"{self.start}: {self.tokens} tokens"

    @property
    def cost_usd(self) -> Decimal:
        """Both parts of the cost, exact."""
        return usd(self.cost_milli_usd * HIGH_PICO + self.cost_rest_pico)

    @cost_usd.setter
    def cost_usd(self, amount: Decimal) -> None:
        self.cost_milli_usd, self.cost_rest_pico = divmod(pico(amount), HIGH_PICO)


class UsageDay(UsageSums):
    """Sums of usage rows over one day for some of the dimensions: those of its cut (`budgets.day_sums`).

    The other dimensions are 0 or empty. Kept for ever; made from the usage rows and hourly sums, and can be made again.
    """

    cut = models.PositiveSmallIntegerField(help_text="Which dimensions it is by.")
    start = models.BigIntegerField(help_text="Unix seconds, start of the day in UTC.")
    period = models.BigIntegerField(default=0)

    class Meta:
        ordering = ("start", "id")
        constraints = (
            models.UniqueConstraint(
                fields=(
                    *("cut", "start", "period", "team_id", "agent_id", "key_id", "pool_id", "provider_id"),
                    *("route_id", "endpoint", "model", "upstream_model"),
                ),
                name="usage_day_once",
            ),
        )

    def __str__(self) -> str:
        return f"{self.start}: {self.tokens} tokens"


class LedgerState(models.Model):
    """Single numbers the writer keeps, such as "rolled_up" (last usage id in the rollups), "period", "period_since"."""

    name = models.CharField(max_length=64, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class Reservation(models.Model):
    """Tokens a caller set aside itself, on its pool and the budgets above it. Its leases are owned by `owner`."""

    class State(models.TextChoices):
        """Open until it is reported or expires."""

        OPEN = "open", "Open"
        REPORTED = "reported", "Reported"
        EXPIRED = "expired", "Expired"

    id = models.CharField(max_length=40, primary_key=True)
    pool_id = models.BigIntegerField()
    draws = models.CharField(max_length=255, help_text="Every pool drawn on, as id@window-start, space-separated.")
    team_id = models.BigIntegerField()
    agent_id = models.BigIntegerField()
    key_id = models.BigIntegerField()
    tokens = models.BigIntegerField()
    actual = models.BigIntegerField(null=True, blank=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN)
    idempotency_key = models.CharField(max_length=64, null=True, blank=True, help_text="SHA-256, hexadecimal.")  # noqa: DJ001 - NULLs are not equal
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ("created_at", "id")
        constraints = (models.UniqueConstraint(fields=("key_id", "idempotency_key"), name="reservation_once_per_key"),)
        indexes = (
            models.Index(fields=("state", "expires_at"), name="reservation_state"),
            models.Index(fields=("key_id", "state", "pool_id"), name="reservation_key"),
        )

    def __str__(self) -> str:
        return self.id


class IdempotentReply(models.Model):
    """What was answered to a request that carried an `Idempotency-Key`, for a day."""

    class State(models.TextChoices):
        """Running while its worker lives."""

        RUNNING = "running", "Running"
        DONE = "done", "Done"

    key_id = models.BigIntegerField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the header's value, hexadecimal.")
    request_digest = models.CharField(max_length=64, help_text="SHA-256 of path and body, hexadecimal.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.RUNNING)
    owner = models.CharField(max_length=64)
    rid = models.CharField(max_length=32, blank=True)
    status = models.IntegerField(default=0)
    content_type = models.CharField(max_length=100, blank=True)
    body = models.BinaryField(null=True, blank=True, help_text="Encrypted; None = too large to keep.")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("key_id", "digest"), name="idempotent_once_per_key"),)
        indexes = (models.Index(fields=("owner",), name="idempotent_owner"),)

    def __str__(self) -> str:
        return f"{self.key_id} {self.digest[:8]}"
