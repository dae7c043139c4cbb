"""Who may call and what they may spend: teams, agents, API keys, pools, prices. Live rows, fed to workers by sequence.

Every row carries `seq`, the value of the "access" (or "prices") sequence when it last changed, so that control can
send workers only what is new. All writes go through `budgets.access`, which moves the sequence in the same
transaction.
"""

from __future__ import annotations

from typing import Any

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from budgets import validation


class Sequence(models.Model):
    """Change counters by name: "access" for keys, agents, teams and pools; "prices" for prices."""

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class Team(models.Model):
    """A group of people that owns agents."""

    name = models.CharField(max_length=100, unique=True, validators=(validation.name,))
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Agent(models.Model):
    """An app or agent of a team; keys belong to agents."""

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="agents")
    name = models.CharField(max_length=100, validators=(validation.name,))
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("team__name", "name")
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="agent_name_per_team"),)

    def __str__(self) -> str:
        return f"{self.team} / {self.name}"


class Pool(models.Model):
    """A budget of tokens that keys draw on. Balances live in the ledger (`PoolWindow`), not here."""

    class Mode(models.TextChoices):
        """What happens at the edge."""

        HARD = "hard", "Hard: refuse at the limit"

    name = models.CharField(max_length=100, unique=True, validators=(validation.name,))
    capacity_tokens = models.BigIntegerField(
        "capacity (tokens)",
        default=10_000_000,
        validators=(MinValueValidator(0), MaxValueValidator(validation.CAPACITY_LIMIT)),
    )
    mode = models.CharField(max_length=16, choices=Mode.choices, default=Mode.HARD)
    enabled = models.BooleanField(default=True)
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(condition=models.Q(capacity_tokens__gte=0), name="pool_capacity_not_negative"),
        )

    def __str__(self) -> str:
        return self.name


class ApiKey(models.Model):
    """A key of an agent. Only the SHA-256 digest is stored; the text is shown once, at creation."""

    agent = models.ForeignKey(Agent, on_delete=models.PROTECT, related_name="keys")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="keys")
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
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


def _usd(label: str, places: int, *, optional: bool = False) -> Any:
    return models.DecimalField(
        label,
        max_digits=16,
        decimal_places=places,
        null=optional,
        blank=optional,
        default=None if optional else 0,
        validators=(MinValueValidator(0),),
    )


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
    valid_from = models.DateTimeField()
    source = models.CharField(max_length=100, default="operator")
    seq = models.BigIntegerField(default=0, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("provider", "pattern", "-valid_from")

    def __str__(self) -> str:
        return f"{self.provider} {self.pattern} from {self.valid_from:%Y-%m-%d}"
