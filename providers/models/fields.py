"""What several rows have: limits, seconds, choices."""

from __future__ import annotations

from typing import Any

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from providers import validation
from providers.catalog import KIND_CHOICES

_DAY_S = 86_400


def limit(label: str) -> Any:
    """A limit of requests or tokens; blank = none."""
    return models.PositiveIntegerField(
        label,
        null=True,
        blank=True,
        validators=(MinValueValidator(1), MaxValueValidator(validation.RATE_LIMIT)),
        help_text="Blank = no limit.",
    )


def seconds(label: str) -> Any:
    """A time limit; blank = the gateway's."""
    return models.FloatField(
        label,
        null=True,
        blank=True,
        validators=(validation.finite, MinValueValidator(0.05), MaxValueValidator(_DAY_S)),
        help_text="Seconds; blank = the gateway's default.",
    )


def default_seconds(label: str, default: float, least: float, most: float = _DAY_S) -> Any:
    """A time limit of the gateway."""
    return models.FloatField(
        label,
        default=default,
        validators=(validation.finite, MinValueValidator(least), MaxValueValidator(most)),
        help_text="Seconds.",
    )


def kind_choices() -> tuple[tuple[str, str], ...]:
    """The catalogue's kinds. A function, so that a new catalogue row needs no migration."""
    return KIND_CHOICES


class AddressClass(models.TextChoices):
    """Where a provider's address may resolve to; fixed when the operator saves the URL."""

    LOOPBACK = "loopback", "Loopback (this host)"
    PRIVATE = "private", "Private network"
    PUBLIC = "public", "Public internet"
    UNIX = "unix", "Unix socket"


class Strategy(models.TextChoices):
    """How a policy orders the candidates of a model."""

    PRIORITY = "priority", "Priority: the lowest number first"
    ROUND_ROBIN = "round_robin", "Round robin: each in turn"
    WEIGHTED = "weighted", "Weighted: by chance, in proportion to the weights"
    LOWEST_LATENCY = "lowest_latency", "Lowest latency: who answered fastest of late"
    LEAST_BUSY = "least_busy", "Least busy: fewest calls under way"
    LEAST_COST = "least_cost", "Least cost: the lowest price for the request"
    DIRECT = "direct", "Direct: the first by priority and nobody else"


class DisconnectPolicy(models.TextChoices):
    """What happens upstream when the client leaves mid-answer."""

    CANCEL = "cancel", "Cancel the upstream call"
    DRAIN = "drain", "Read the answer to its end"
    CAP = "cap", "Read on for so many tokens, then cancel"


class UnknownPrice(models.TextChoices):
    """What happens to a request that draws on a money budget when nobody knows its price."""

    REFUSE = "refuse", "Refuse where a pool has a money limit"
    OBSERVE = "observe", "Let it through; it costs nothing and is counted as unpriced"


class UnsupportedParams(models.TextChoices):
    """What becomes of a request with a parameter that its provider cannot honour and that means something."""

    STRICT = "strict", "Refuse it"
    LENIENT = "lenient", "Leave the parameter out and say so in a header"
