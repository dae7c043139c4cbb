"""Behaviour of the whole gateway."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from providers import validation
from providers.models.fields import Strategy, UnknownPrice, UnsupportedParams, default_seconds
from providers.models.privacy import PrivacyPolicy


class GatewaySettings(models.Model):
    """Behaviour of the whole gateway: exactly one row."""

    strategy = models.CharField(max_length=32, choices=Strategy.choices, default=Strategy.PRIORITY)
    default_output_cap = models.PositiveIntegerField(default=8192, validators=(MinValueValidator(1),))
    body_limit_bytes = models.PositiveIntegerField(
        default=10 * 1024 * 1024, validators=(MinValueValidator(1024), MaxValueValidator(1 << 30))
    )
    body_timeout_s = default_seconds("body timeout", 30.0, 0.5)
    connect_timeout_s = default_seconds("connect timeout", 5.0, 0.05)
    first_byte_timeout_s = default_seconds("first-byte timeout", 120.0, 0.05)
    gap_timeout_s = default_seconds("gap timeout", 60.0, 0.05)
    total_timeout_s = default_seconds("total timeout", 600.0, 0.05)
    hold_wait_s = default_seconds("wait for held tokens", 5.0, 0, most=60)
    max_attempts = models.PositiveIntegerField(default=3, validators=(MinValueValidator(1), MaxValueValidator(10)))
    retry_percent = models.PositiveIntegerField(
        default=20,
        validators=(MaxValueValidator(1000),),
        help_text="Further upstream calls after failures, per hundred requests; 3 a second are always allowed.",
    )
    breaker_failures = models.PositiveIntegerField(default=5, validators=(MinValueValidator(1),))
    breaker_open_s = default_seconds("circuit open for", 30.0, 0.1)
    probe_interval_s = default_seconds("probe interval", 30.0, 0)
    ping_interval_s = default_seconds("ping interval", 15.0, 0)
    unsupported_params = models.CharField(
        "unsupported parameters",
        max_length=16,
        choices=UnsupportedParams.choices,
        default=UnsupportedParams.STRICT,
        help_text="What becomes of a request with a parameter that its provider cannot honour and that matters.",
    )
    cache_mb = models.PositiveIntegerField(
        "memory for kept answers (MiB)", default=64, validators=(MinValueValidator(1), MaxValueValidator(65_536))
    )
    embedding_model = models.CharField(
        "model that embeds questions",
        max_length=256,
        blank=True,
        validators=(validation.model_name,),
        help_text="As clients would name it, for routes that tell answers to similar questions. Blank = the model in "
        "the folder HOOSH_EMBEDDER names.",
    )
    queue_wait_s = default_seconds("wait for a free place", 10.0, 0, most=600)
    queue_size = models.PositiveIntegerField(
        "requests waiting",
        default=1000,
        validators=(MaxValueValidator(100_000),),
        help_text="At most, per worker, for a place at a route or provider that limits its requests at once.",
    )
    privacy_policy = models.ForeignKey(
        PrivacyPolicy,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="For teams that have none of their own. Blank = nothing is looked at.",
    )
    review = models.BooleanField(
        "review before publishing",
        default=False,
        help_text="What is saved waits as a draft until somebody else than its authors publishes it.",
    )
    drafts = models.BooleanField(
        "publish by hand", default=False, help_text="What is saved waits as a draft until anybody publishes it."
    )
    unknown_price = models.CharField(
        "unknown price",
        max_length=16,
        choices=UnknownPrice.choices,
        default=UnknownPrice.REFUSE,
        help_text="For models without a price row. Local providers are free unless a row prices them.",
    )
    audit_header = models.BooleanField(
        "audit header",
        default=False,
        help_text="Answers carry x-hoosh-audit, the audit log's last checkpoint: callers who keep it are witnesses.",
    )
    cors_origins = models.CharField(
        "CORS origins",
        max_length=1024,
        default="*",
        blank=True,
        validators=(validation.origins,),
        help_text="Comma-separated, or *.",
    )

    class Meta:
        verbose_name = verbose_name_plural = "gateway settings"
        constraints = (models.CheckConstraint(condition=models.Q(pk=1), name="gateway_settings_single_row"),)

    def __str__(self) -> str:
        return "Gateway settings"
