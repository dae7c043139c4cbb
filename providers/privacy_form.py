"""Forms of privacy policies and of what they look for, and of a text to try."""

from __future__ import annotations

from typing import Any

from django import forms

from audit.generics import RowForm
from providers import validation
from providers.models import DataPattern, Level, PrivacyPolicy
from providers.privacy.about import ABOUT
from providers.privacy.patterns import BUILT_IN

TRIED_MAX = 20_000  # characters


class PrivacyPolicyForm(RowForm[PrivacyPolicy]):
    """A policy; what is not looked for is chosen from what there is."""

    disabled = forms.MultipleChoiceField(
        label="Switched off",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="Everything else is looked for.",
    )

    class Meta:
        model = PrivacyPolicy
        fields = (
            "name",
            "default_level",
            "internal",
            "confidential",
            "restricted",
            "redact_local",
            "scan_tool_results",
            "scan_answers",
            "answer_level",
            "answer_action",
            "disabled",
            "note",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["disabled"] = list(validation.split(self.instance.disabled))
        if "disabled" in self.fields:
            self.fields["disabled"].choices = pattern_choices()  # type: ignore[attr-defined]

    def clean_disabled(self) -> str:
        """The chosen names in their stored form."""
        return ",".join(self.cleaned_data["disabled"])


def pattern_choices() -> list[tuple[str, list[tuple[str, str]]]]:
    """Every pattern there is, in words, by level from the gravest; an operator's own behind the built-in ones."""
    found: dict[str, list[tuple[str, str]]] = {level: [] for level in reversed(Level.values)}
    for pattern in BUILT_IN:
        found[pattern.level].append((pattern.name, f"{pattern.name}: {ABOUT[pattern.name]}"))
    for name, level, enabled in DataPattern.objects.values_list("name", "level", "enabled"):
        found[level].append((name, f"{name}: of your own{'' if enabled else ', disabled'}"))
    return [(Level(level).label, choices) for level, choices in found.items() if choices]


class DataPatternForm(RowForm[DataPattern]):
    """A pattern of an operator's own. The row itself says what is wrong with its expression."""

    class Meta:
        model = DataPattern
        fields = ("name", "source", "level", "ignore_case", "enabled", "note")
        widgets = {"source": forms.TextInput({"class": "vLargeTextField hoosh-mono", "spellcheck": "false"})}


class TrialForm(forms.Form):
    """A text to look at. It is shown again and kept nowhere."""

    text = forms.CharField(
        max_length=TRIED_MAX,
        strip=False,
        widget=forms.Textarea({"rows": 6, "class": "vLargeTextField", "spellcheck": "false", "autocomplete": "off"}),
    )
