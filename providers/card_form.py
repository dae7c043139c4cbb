"""The form of a model card: known labels to tick, further ones as words."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from audit.generics import RowForm
from providers import validation
from providers.card_labels import ABILITIES, KNOWN, LIMITS, TIERS, canonical, problem
from providers.models import ModelCard

_GROUPS = (("It can", ABILITIES), ("Its tier", TIERS), ("How it is to be asked", LIMITS))


class CardForm(RowForm[ModelCard]):
    """A card of one's own. `labels` and `further` together are the column `capabilities`."""

    labels = forms.MultipleChoiceField(
        required=False,
        choices=[(title, [(name, f"{name}: {says}") for name, says in group.items()]) for title, group in _GROUPS],
        widget=forms.CheckboxSelectMultiple,
        help_text="Tick all that are true: once anything it can do is ticked, what is not counts as “cannot”. "
        "Nothing ticked = not known, or what the imported card says.",
    )
    further = forms.CharField(
        label="Further labels",
        required=False,
        max_length=256,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text="Comma-separated words of a-z, 0-9, _ . : and -, for your own use. "
        "One is acted on: num_ctx:8192 sets the context size of a model on Ollama.",
    )

    class Media:
        css = {"all": ("hoosh/cards.css",)}

    class Meta:
        model = ModelCard
        fields = ("pattern", "display_name", "context_tokens", "max_output_tokens", "min_bytes_per_token", "note")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = validation.split(self.instance.capabilities or self.initial.get("capabilities", ""))
        found = list(dict.fromkeys(map(canonical, stored)))
        self.initial.setdefault("labels", [label for label in found if label in KNOWN])
        self.initial.setdefault("further", ", ".join(label for label in found if label not in KNOWN))

    def clean_pattern(self) -> str:
        """One card of one's own for a pattern."""
        pattern: str = self.cleaned_data["pattern"]
        if ModelCard.objects.filter(pattern=pattern).exclude(pk=self.instance.pk).exists():
            raise ValidationError("A card with this pattern already exists.", code="unique")
        return pattern

    def clean_further(self) -> tuple[str, ...]:
        """Words that may be labels; those that mean a known one become it."""
        text: str = self.cleaned_data["further"]
        validation.labels(text)
        found = tuple(map(canonical, validation.split(text)))
        wrong = [words for words in map(problem, found) if words]
        if wrong:
            raise ValidationError(wrong, code="label")
        return found

    def clean(self) -> dict[str, Any]:
        """Both fields become the column."""
        super().clean()
        data: dict[str, Any] = self.cleaned_data
        labels = dict.fromkeys((*data.get("labels", ()), *data.get("further", ())))
        text = ",".join(labels)
        if len(text) > 256:
            self.add_error("further", "All labels together have at most 256 characters.")
        else:
            self.instance.capabilities = text
        return data
