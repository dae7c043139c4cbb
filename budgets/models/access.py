"""Who may call and what they may spend: teams, agents, API keys, pools, prices. Live rows, fed to workers by sequence.

Every row carries `seq`, the value of the "access" (or "prices") sequence when it last changed, so that control can
send workers only what is new. All writes go through `budgets.access`, which moves the sequence in the same
transaction.
"""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import Any

from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator
from django.db import models

from budgets import validation
from budgets.models.fields import pico


class Sequence(models.Model):
    """Change counters by name: "access" for keys, agents, teams and pools; "prices" for prices."""

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def _budget(help_text: str) -> Any:
    return models.ForeignKey(
        "budgets.Pool",
        verbose_name="budget",
        on_delete=models.PROTECT,
        related_name="+",
        null=True,
        blank=True,
        help_text=help_text,
    )


def _limit(label: str) -> Any:
    return models.PositiveIntegerField(
        label,
        null=True,
        blank=True,
        validators=(MinValueValidator(1), MaxValueValidator(validation.RATE_LIMIT)),
        help_text="Blank = no limit.",
    )


class Team(models.Model):
    """A group of people that owns agents."""

    name = models.CharField(max_length=100, unique=True, validators=(validation.name,))
    pool = _budget("Every request of the team draws on this pool, beside the others.")
    requests_per_minute = _limit("requests per minute")
    tokens_per_minute = _limit("tokens per minute")
    concurrent_requests = _limit("requests at once")
    privacy_policy = models.ForeignKey(
        "providers.PrivacyPolicy",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="teams",
        help_text="Blank = the gateway's.",
    )
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class AnomalyAction(models.TextChoices):
    """What happens when an agent behaves unlike itself."""

    ALERT = "", "Alert: tell the operators"
    OFF = "off", "Nothing: do not look"
    THROTTLE = "throttle", "Hold it back: alert, and few requests per minute for 15 minutes"


class Agent(models.Model):
    """An app or agent of a team; keys belong to agents."""

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="agents")
    name = models.CharField(max_length=100, validators=(validation.name,))
    pool = _budget("Every request of the agent draws on this pool, beside the others.")
    requests_per_minute = _limit("requests per minute")
    tokens_per_minute = _limit("tokens per minute")
    concurrent_requests = _limit("requests at once")
    anomaly_action = models.CharField(
        "when it behaves unlike itself",
        max_length=16,
        choices=AnomalyAction.choices,
        default=AnomalyAction.ALERT,
        blank=True,
        help_text="What happens when it spends far more than usual, or asks the same again and again.",
    )
    loop_limit = models.PositiveIntegerField(
        "same prompt per minute",
        null=True,
        blank=True,
        validators=(MinValueValidator(1), MaxValueValidator(100_000)),
        help_text="More often than this is a loop. Blank = prompts are not compared.",
    )
    throttle_rpm = models.PositiveIntegerField(
        "requests per minute while held back",
        null=True,
        blank=True,
        validators=(MinValueValidator(1), MaxValueValidator(validation.RATE_LIMIT)),
        help_text="Blank = 6.",
    )
    throttled_until = models.DateTimeField(null=True, blank=True, editable=False)
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("team__name", "name")
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="agent_name_per_team"),)

    def __str__(self) -> str:
        return f"{self.team} / {self.name}"


class Pool(models.Model):
    """A budget of tokens, money or both that keys draw on. Balances live in the ledger (`PoolWindow`), not here."""

    class Mode(models.TextChoices):
        """What happens at the limit."""

        HARD = "hard", "Hard: never above the limit"
        SOFT = "soft", "Soft: refuse once the limit is reached; what is under way may pass it"
        OBSERVE = "observe", "Observe: only count and alert"

    class Window(models.TextChoices):
        """How often the budget begins anew."""

        LIFETIME = "lifetime", "Never: one budget for ever"
        HOUR = "hour", "Every hour"
        DAY = "day", "Every day"
        WEEK = "week", "Every week, from Monday"
        MONTH = "month", "Every month"

    name = models.CharField(max_length=100, unique=True, validators=(validation.name,))
    capacity_tokens = models.BigIntegerField(
        "limit (tokens)",
        null=True,
        blank=True,
        default=10_000_000,
        validators=(MinValueValidator(0), MaxValueValidator(validation.CAPACITY_LIMIT)),
        help_text="Per window. Blank = tokens are only counted.",
    )
    capacity_usd = models.DecimalField(
        "limit (USD)",
        max_digits=13,
        decimal_places=6,
        null=True,
        blank=True,
        validators=(MinValueValidator(0), MaxValueValidator(validation.CAPACITY_LIMIT_USD)),
        help_text="Per window. Blank = money is only counted.",
    )
    window = models.CharField(max_length=16, choices=Window.choices, default=Window.LIFETIME)
    time_zone = models.CharField(
        max_length=64, default="UTC", validators=(validation.time_zone,), help_text="Where days, weeks, months begin."
    )
    window_since = models.BigIntegerField(default=0, editable=False)  # Unix seconds; see budgets.windows
    mode = models.CharField(max_length=16, choices=Mode.choices, default=Mode.HARD)
    carry_over = models.BooleanField(
        default=False, help_text="What a window leaves over is added to the next one. Acts from the next window on."
    )
    alert_percents = models.CharField(
        "alerts at (percent)",
        max_length=64,
        default="80,100",
        blank=True,
        validators=(validation.percents,),
        help_text="Comma-separated shares of a limit at which an alert is raised, once per window.",
    )
    shorten = models.BooleanField(
        "shorten answers",
        default=False,
        help_text="Near the limit, lower a request's output limit (not below 256 tokens, never with tools or a "
        "response format) instead of refusing it; the reply's header says so.",
    )
    team = models.ForeignKey(
        Team,
        on_delete=models.PROTECT,
        related_name="pools",
        null=True,
        blank=True,
        help_text="A project of this team: its keys may name the pool in a request.",
    )
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(condition=models.Q(capacity_tokens__gte=0), name="pool_capacity_not_negative"),
            models.CheckConstraint(condition=models.Q(capacity_usd__gte=0), name="pool_money_not_negative"),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """The limits by `Unit`: tokens and pico-USD; None = there is none."""
        return self.capacity_tokens, None if self.capacity_usd is None else pico(self.capacity_usd)


class QueueClass(models.TextChoices):
    """Which requests go first where they wait for a place (`budgets.records.QUEUE_CLASSES`)."""

    INTERACTIVE = "interactive", "interactive"
    AGENT = "agent", "agent"
    BATCH = "batch", "batch"


class ApiKey(models.Model):
    """A key of an agent. Only the SHA-256 digest is stored; the text is shown once, at creation."""

    agent = models.ForeignKey(Agent, on_delete=models.PROTECT, related_name="keys")
    pool = models.ForeignKey(
        Pool,
        verbose_name="default pool",
        on_delete=models.PROTECT,
        related_name="keys",
        help_text="Drawn on where a request names no pool of its own.",
    )
    own_pool = _budget("Every request of the key draws on this pool, beside the others.")
    pools_allowed = models.CharField(
        "further pools",
        max_length=1024,
        blank=True,
        validators=(validation.patterns,),
        help_text="Comma-separated globs over names of pools a request may name instead of the default pool. The "
        "projects of the key's team are always allowed.",
    )
    requests_per_minute = _limit("requests per minute")
    tokens_per_minute = _limit("tokens per minute")
    concurrent_requests = _limit("requests at once")
    name = models.CharField(max_length=100, validators=(validation.name,))
    prefix = models.CharField(max_length=24, editable=False, db_index=True, help_text="The visible start of the key.")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.CharField(
        max_length=200,
        default="inference",
        validators=(validation.scopes,),
        help_text="Comma-separated: inference, operator.",
    )
    models_allowed = models.CharField(
        "models",
        max_length=1024,
        blank=True,
        validators=(validation.patterns,),
        help_text="Comma-separated globs; blank = every model.",
    )
    queue_class = models.CharField(
        "class",
        max_length=16,
        choices=QueueClass.choices,
        default=QueueClass.INTERACTIVE,
        help_text="Whose requests go first where they wait for a place; a request may name a lower class.",
    )
    endpoints_allowed = models.CharField(
        "endpoints",
        max_length=200,
        blank=True,
        validators=(validation.endpoints,),
        help_text="Comma-separated names of inference endpoints; blank = every endpoint.",
    )
    addresses_allowed = models.CharField(
        "addresses",
        max_length=1024,
        blank=True,
        validators=(validation.addresses,),
        help_text="Comma-separated addresses or networks (10.0.0.0/8) a client must come from; blank = anywhere.",
    )
    rotated_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, related_name="rotated_to", null=True, blank=True, editable=False
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)
        verbose_name = "API key"
        indexes = (models.Index(fields=("expires_at",), name="key_ending"),)
        permissions = (("give_operator_scope", "Can give keys the scope operator"),)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def limits(self) -> tuple[int | None, int | None, int | None]:
        """Requests per minute, tokens per minute, requests at once; None = no limit."""
        return self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests


class WarmQuestion(models.Model):
    """A question whose answer workers keep before anybody asks it: asked as its API key would ask it."""

    key = models.ForeignKey(
        ApiKey,
        verbose_name="API key",
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Asks and pays; the answer is kept for all keys of its team.",
    )
    model = models.CharField(max_length=256, validators=(validation.model,), help_text="As a client would name it.")
    system = models.TextField(
        "system message",
        blank=True,
        validators=(validation.text, MaxLengthValidator(validation.SYSTEM_LIMIT)),
        help_text="Exactly as clients send it; blank = none.",
    )
    question = models.TextField(
        validators=(validation.text, MaxLengthValidator(validation.QUESTION_LIMIT)),
        help_text="What the user says, exactly as clients send it.",
    )
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("model", "id")
        verbose_name = "question asked ahead"
        verbose_name_plural = "questions asked ahead"

    def __str__(self) -> str:
        return f"{self.model}: {self.question[:60]}"

    def clean(self) -> None:
        """Forms send the line ends of HTTP; clients send those of their texts."""
        self.system, self.question = (text.replace("\r\n", "\n") for text in (self.system, self.question))


_SQLITE_DIGITS = 15


def _usd(label: str, places: int, *, optional: bool = False) -> Any:
    return models.DecimalField(
        label,
        max_digits=16,
        decimal_places=places,
        null=optional,
        blank=optional,
        default=None if optional else 0,
        validators=(MinValueValidator(0), MaxValueValidator(validation.PRICE_LIMIT_USD)),
    )


class ReadablePrices(models.Manager["Price"]):
    """Rows whose amounts can be read: SQLite keeps 15 digits, so that a number above them is no decimal of its column.

    None is accepted any more; rows of before would else make every reading of prices fail.
    """

    def get_queryset(self) -> models.QuerySet[Price]:
        """Without the others."""
        readable = models.Q()
        for name, end in _READABLE_BELOW.items():
            readable &= models.Q(**{f"{name}__isnull": True}) | models.Q(**{f"{name}__lt": end})
        return super().get_queryset().filter(readable)


class Price(models.Model):
    """A dated price in USD; a change is a new row. The newest row whose `valid_from` has passed wins."""

    provider = models.CharField(
        max_length=64, default="*", validators=(validation.name,), help_text="Provider name or kind, or *."
    )
    pattern = models.CharField(
        max_length=256, validators=(validation.pattern,), help_text="Upstream model name; * matches anything."
    )
    input_usd_per_mtok = _usd("input (USD per million tokens)", 6)
    cached_read_usd_per_mtok = _usd("cached read (USD per million tokens)", 6, optional=True)
    cache_write_usd_per_mtok = _usd("cache write (USD per million tokens)", 6, optional=True)
    output_usd_per_mtok = _usd("output (USD per million tokens)", 6)
    reasoning_usd_per_mtok = _usd("reasoning (USD per million tokens)", 6, optional=True)
    request_usd = _usd("request (USD each)", 9)
    input_audio_usd_per_mtok = _usd("audio input (USD per million tokens)", 6, optional=True)
    output_audio_usd_per_mtok = _usd("audio output (USD per million tokens)", 6, optional=True)
    input_image_usd_per_mtok = _usd("image input (USD per million tokens)", 6, optional=True)
    route = models.CharField(
        max_length=64, blank=True, help_text="Name of a route: this price is for calls on it only, before all others."
    )
    from_tokens = models.PositiveIntegerField(
        default=0, help_text="For requests with at least so many input tokens (long-context tiers)."
    )
    valid_from = models.DateTimeField()
    source = models.CharField(max_length=100, default="operator")
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ReadablePrices()
    stored: models.Manager[Price] = models.Manager()  # also what cannot be read: ask it for ids only

    class Meta:
        ordering = ("provider", "pattern", "-valid_from")

    def __str__(self) -> str:
        return f"{self.provider} {self.pattern} from {self.valid_from:%Y-%m-%d}"


# By amount: with 15 digits every number below is a decimal of its column.
_READABLE_BELOW = {
    field.name: Decimal(10) ** whole - Decimal(10) ** (whole - _SQLITE_DIGITS)
    for field in Price._meta.fields
    if isinstance(field, models.DecimalField)
    for whole in (field.max_digits - field.decimal_places,)
}


def new_token() -> str:
    """128 random bits in hexadecimal."""
    return secrets.token_hex(16)


class LedgerOrder(models.Model):
    """What an operator wants done to the ledger: recorded here with its audit entry, carried out by the writer once.

    The ledger keeps the order's token with what it did, so that an order that is found open again does nothing. Numbers
    would not do: after a restore from a backup they are given out again.
    """

    class State(models.TextChoices):
        """Open until the writer has taken it."""

        OPEN = "open", "Open"
        DONE = "done", "Done"
        REFUSED = "refused", "Refused"

    token = models.CharField(max_length=32, unique=True, default=new_token, editable=False)
    kind = models.CharField(max_length=16)  # "correction", "transfer", "write_off", "release", "period"
    payload = models.JSONField(default=dict)
    actor = models.CharField(max_length=150)
    note = models.CharField(max_length=500, blank=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN, db_index=True)
    result = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
