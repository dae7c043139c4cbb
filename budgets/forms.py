"""Forms of the pages for teams, keys and prices."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from audit.generics import RowForm
from budgets import validation
from budgets.models import ApiKey, Price

_SCOPE_LABELS = {
    "inference": "inference: call models and read the caller's own requests",
    "operator": "operator: also reload, provider details, metrics and every request",
}


class ApiKeyForm(RowForm[ApiKey]):
    """What a key may do. Its text is made by `budgets.keys` and is no part of any form.

    The page sets `may_give_operator` for who may change the gateway settings: nobody else makes or saves a key that
    can do more than they can themselves.
    """

    may_give_operator = False
    scopes = forms.MultipleChoiceField(
        choices=[(scope, _SCOPE_LABELS.get(scope, scope)) for scope in validation.SCOPES],
        widget=forms.CheckboxSelectMultiple,
        initial=["inference"],
        error_messages={"required": "Choose at least one scope."},
    )

    class Meta:
        model = ApiKey
        fields = ("name", "agent", "pool", "scopes", "models_allowed", "expires_at")
        help_texts = {
            "models_allowed": "Model names, comma-separated; * stands for any text. Blank = every model.",
            "expires_at": "UTC. Blank = never.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance._state.adding:
            self.initial["scopes"] = list(validation.split(self.instance.scopes))

    def clean_scopes(self) -> str:
        """The chosen scopes in their stored form."""
        if "operator" in self.cleaned_data["scopes"] and not self.may_give_operator:
            raise ValidationError("Only users who may change the gateway settings can give a key the scope “operator”.")
        return ",".join(self.cleaned_data["scopes"])

    def clean_expires_at(self) -> Any:
        """A new key must be usable; an old one may be ended by a date that has passed."""
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and self.instance._state.adding and expires_at <= timezone.now():
            raise ValidationError("The key would already be expired.")
        return expires_at


class PriceForm(RowForm[Price]):
    """A dated price; it holds from its date until a newer row for the same provider and pattern begins."""

    class Meta:
        model = Price
        fields = (
            "provider",
            "pattern",
            "input_usd_per_mtok",
            "output_usd_per_mtok",
            "cached_read_usd_per_mtok",
            "cache_write_usd_per_mtok",
            "reasoning_usd_per_mtok",
            "request_usd",
            "valid_from",
            "source",
        )
        help_texts = {
            "cached_read_usd_per_mtok": "Blank = as input.",
            "cache_write_usd_per_mtok": "Blank = as input.",
            "reasoning_usd_per_mtok": "Blank = as output.",
            "valid_from": "UTC. The newest row whose date has passed is charged.",
        }
        labels = {
            "input_usd_per_mtok": "Input",
            "output_usd_per_mtok": "Output",
            "cached_read_usd_per_mtok": "Cached input read",
            "cache_write_usd_per_mtok": "Cache write",
            "reasoning_usd_per_mtok": "Reasoning",
            "request_usd": "USD per request",
        }
