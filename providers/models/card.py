"""What is known of models."""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from providers import validation


class OwnCards(models.Manager["ModelCard"]):
    """The cards that operators and their configuration files made."""

    def get_queryset(self) -> models.QuerySet[ModelCard]:
        """Without the imported ones."""
        return super().get_queryset().filter(source="")


class ModelCard(models.Model):
    """What is known of a model: its name, limits and abilities (`providers.cards` says which card counts).

    An imported card has a `source`. It lies under an operator's own cards and is never edited, so that an import can
    follow its list without touching what an operator wrote; `objects` are therefore the own cards, `every` all.
    """

    pattern = models.CharField(
        max_length=256,
        validators=(validation.pattern,),
        help_text="The model's name at the provider; * matches anything.",
    )
    display_name = models.CharField(max_length=100, blank=True, help_text="For people; blank = the model's own name.")
    context_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="Prompt and answer together, at most. Told to clients and used for advice; not enforced.",
    )
    max_output_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=(MinValueValidator(1),),
        help_text="The longest answer; used where a request names no limit.",
    )
    min_bytes_per_token = models.FloatField(
        default=1.0,
        validators=(validation.finite, MinValueValidator(0.25), MaxValueValidator(16)),
        help_text="1 is provable for byte-level tokenizers; a higher figure is your assumption and holds less.",
    )
    capabilities = models.CharField(
        max_length=256,
        blank=True,
        validators=(validation.labels,),
        help_text="Labels, comma-separated: tools, vision, …",
    )
    note = models.TextField(blank=True)
    managed_by = models.CharField(max_length=64, blank=True, editable=False)
    source = models.CharField(
        max_length=64, blank=True, editable=False, help_text="The list an imported card comes from; blank = your own."
    )

    objects = OwnCards()
    every: ClassVar[models.Manager[ModelCard]] = models.Manager()

    class Meta:
        ordering = ("pattern",)
        constraints = (
            models.UniqueConstraint(
                fields=("pattern",),
                condition=models.Q(source=""),
                name="one_own_card_per_pattern",
                violation_error_message="A card with this pattern already exists.",
            ),
            models.UniqueConstraint(
                fields=("pattern",), condition=~models.Q(source=""), name="one_imported_card_per_pattern"
            ),
        )

    def __str__(self) -> str:
        return self.pattern

    @property
    def is_imported(self) -> bool:
        """Whether an import made this card and follows its list."""
        return bool(self.source)
