"""Which models go where, and how candidates are ordered."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from providers import validation
from providers.models.fields import DisconnectPolicy, Strategy, limit, seconds
from providers.models.provider import Provider


class Route(models.Model):
    """One rule: requests for models like `pattern` may go to `provider`."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    pattern = models.CharField(
        max_length=256,
        validators=(validation.pattern,),
        help_text="Model name as clients send it; * matches anything.",
    )
    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="routes")
    upstream_model = models.CharField(
        max_length=256, blank=True, validators=(validation.model_name,), help_text="Blank = the requested name."
    )
    priority = models.IntegerField(default=10, help_text="Lower is tried first.")
    weight = models.PositiveIntegerField(
        default=1,
        validators=(MaxValueValidator(1_000_000),),
        help_text="Its share where a policy weighs routes; 0 = only when the others fail.",
    )
    sticky = models.BooleanField(
        default=False,
        help_text="Keep conversations on this route where the policy leaves a choice, for the provider's prompt cache.",
    )
    tags = models.CharField(max_length=256, blank=True, validators=(validation.labels,), help_text="Comma-separated.")
    capabilities = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Comma-separated; what this route can do.",
    )
    connect_timeout_s = seconds("connect timeout")
    first_byte_timeout_s = seconds("first-byte timeout")
    gap_timeout_s = seconds("gap timeout")
    total_timeout_s = seconds("total timeout")
    output_cap = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="Most output tokens of an answer on this route; a request that asks for more gets this many.",
    )
    on_disconnect = models.CharField(
        max_length=16,
        choices=DisconnectPolicy.choices,
        default=DisconnectPolicy.CANCEL,
        help_text="What happens upstream when the client leaves in mid-answer. What was read is charged.",
    )
    disconnect_cap = models.PositiveIntegerField(
        "tokens read on",
        default=1024,
        validators=(MinValueValidator(1),),
        help_text="Output tokens read after the client left, at most; only where the policy is to read on for so many.",
    )
    duplicates_allowed = models.BooleanField(
        default=False, help_text="May a request that was already sent be sent again to the next candidate?"
    )
    requests_per_minute = limit("requests per minute")
    tokens_per_minute = limit("tokens per minute")
    concurrent_requests = limit("requests at once")
    cache_s = models.PositiveIntegerField(
        "keep answers for (s)",
        default=0,
        validators=(MaxValueValidator(7 * 86_400),),
        help_text="The same request of the same team gets the same answer again. 0 = never.",
    )
    cache_price_percent = models.PositiveIntegerField(
        "price of a kept answer (%)",
        default=0,
        validators=(MaxValueValidator(100),),
        help_text="Of what the answer cost when it was given first. 0 = nothing.",
    )
    semantic_threshold = models.FloatField(
        "tell them to similar questions from",
        default=0.0,
        validators=(validation.threshold,),
        help_text="Cosine of the questions' vectors from which on they count as the same, 0.5 to 1. 0 = never.",
    )
    compact_percent = models.PositiveIntegerField(
        "shorten conversations above (% of the context)",
        default=0,
        validators=(MaxValueValidator(100),),
        help_text="Older turns of longer conversations are left out, and a header says so. 0 = never.",
    )
    compress = models.BooleanField(
        "compress prompts",
        default=False,
        help_text="Runs of white space become one, but in code blocks and tool arguments; a header says so.",
    )
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("priority", "name")

    def __str__(self) -> str:
        return self.name


class RoutingPolicy(models.Model):
    """How the candidates of some models are ordered, and which models to fall back to."""

    name = models.CharField(max_length=64, unique=True, validators=(validation.name,))
    pattern = models.CharField(max_length=256, default="*", validators=(validation.pattern,))
    strategy = models.CharField(max_length=32, choices=Strategy.choices, default=Strategy.PRIORITY)
    fallbacks = models.CharField(
        max_length=1024,
        blank=True,
        validators=(validation.model_names,),
        help_text="Further model names, comma-separated.",
    )
    tags = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Only routes that have all of these tags; comma-separated.",
    )
    position = models.IntegerField(default=0, help_text="The first matching policy wins.")
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ("position", "id")
        verbose_name_plural = "routing policies"

    def __str__(self) -> str:
        return self.name
