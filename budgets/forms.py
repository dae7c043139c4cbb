"""Forms of the pages for teams, pools, keys, prices and orders to the ledger."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils import timezone

from audit.generics import RowForm
from budgets import amounts, scopes, validation, windows
from budgets.models import ApiKey, Pool, Price
from budgets.prices import IMPORT_SOURCE
from budgets.records import ENDPOINTS, Unit

SUBMISSION = "submission"  # names one showing of a form, so that sending it twice does its work once
_SUBMISSION_KEPT_S = 86_400
_OVERLAP_S = 86_400
_SCOPE_LABELS = {
    "inference": "inference: call models and read the caller's own requests",
    "routes": "routes: also choose the route of a request (header x-hoosh-route)",
    "operator": "operator: also reload, provider details, metrics and every request",
    "admin": "admin: also everything these pages can do, by the management API",
}
_UNITS = [(Unit.TOKENS.value, "tokens"), (Unit.PICO_USD.value, "USD")]


def claim_submission(request: HttpRequest, done: str) -> None:
    """Let each showing of a form do its work once: a reload or a double click sends it again, and is told `done`."""
    submission = request.POST.get(SUBMISSION, "")[:64]
    if submission and not cache.add(f"hoosh.submission.{submission}", True, _SUBMISSION_KEPT_S):
        raise ValidationError(f"This form was sent before: {done}")


def plain(value: object) -> object:
    """A decimal as people write it: 2.5 rather than 2.500000 or 0E-9."""
    return f"{value.normalize():f}" if isinstance(value, Decimal) else value


class ApiKeyForm(RowForm[ApiKey]):
    """What a key may do. Its text is made by `budgets.keys` and is no part of any form.

    The page sets `has_perm` to what its user may do: nobody makes or saves a key that can do more than they can
    themselves.
    """

    has_perm: Callable[[str], bool] = staticmethod(lambda name: False)
    scopes = forms.MultipleChoiceField(
        choices=[(scope, _SCOPE_LABELS.get(scope, scope)) for scope in validation.SCOPES],
        widget=forms.CheckboxSelectMultiple,
        initial=["inference"],
        error_messages={"required": "Choose at least one scope."},
    )

    endpoints_allowed = forms.MultipleChoiceField(
        label="Endpoints",
        choices=[(name, name) for name in ENDPOINTS],
        widget=forms.CheckboxSelectMultiple,
        required=False,
        help_text="None chosen = every endpoint.",
    )

    class Meta:
        model = ApiKey
        fields = (
            *("name", "agent", "pool", "own_pool", "pools_allowed", "scopes", "models_allowed", "expires_at"),
            *("endpoints_allowed", "addresses_allowed"),
            *("requests_per_minute", "tokens_per_minute", "concurrent_requests", "queue_class"),
        )
        help_texts = {
            "name": "What the key is for, such as the app and where it runs.",
            "agent": "The app that uses it; it belongs to a team. The plus beside it makes a new one.",
            "models_allowed": "Model names, comma-separated; * stands for any text. Blank = every model.",
            "expires_at": "UTC. Blank = never.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "queue_class" in self.fields:  # readers get none
            self.fields["queue_class"].required = False  # left out it is as by default
        if not self.instance._state.adding:
            self.initial["scopes"] = list(validation.split(self.instance.scopes))
            self.initial["endpoints_allowed"] = list(validation.split(self.instance.endpoints_allowed))

    def clean_scopes(self) -> str:
        """The chosen scopes in their stored form. Judged with those the key has: who may not give a scope may not take
        it away either, nor change anything else of such a key."""
        had = () if self.instance._state.adding else validation.split(self.instance.scopes)
        if scope := scopes.not_to_give(self.has_perm, {*had, *self.cleaned_data["scopes"]}):
            raise ValidationError(scopes.refusal(scope))
        return ",".join(self.cleaned_data["scopes"])

    def clean_endpoints_allowed(self) -> str:
        """The chosen endpoints in their stored form."""
        return ",".join(self.cleaned_data["endpoints_allowed"])

    def clean_expires_at(self) -> Any:
        """A new key must be usable; an old one may be ended by a date that has passed."""
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and self.instance._state.adding and expires_at <= timezone.now():
            raise ValidationError("The key would already be expired.")
        return expires_at


class RotationForm(forms.Form):
    """How long an old key works beside the one that replaces it. Left out it is a day."""

    overlap_s = forms.TypedChoiceField(
        label="The old key works for",
        choices=[(3600, "1 hour"), (86_400, "1 day"), (7 * 86_400, "7 days"), (30 * 86_400, "30 days")],
        coerce=int,
        initial=_OVERLAP_S,
        required=False,
        help_text="Then it ends by itself, unless it ends sooner anyway. To end it sooner, revoke it on its page.",
    )

    @property
    def overlap(self) -> dt.timedelta:
        """What was chosen. For a valid form."""
        return dt.timedelta(seconds=self.cleaned_data["overlap_s"] or _OVERLAP_S)


class PoolForm(RowForm[Pool]):
    """A budget: its limits, its window and what happens near the limit."""

    class Meta:
        model = Pool
        fields = (
            "name",
            "enabled",
            "capacity_tokens",
            "capacity_usd",
            "window",
            "time_zone",
            "mode",
            "shorten",
            "carry_over",
            "alert_percents",
            "team",
            "note",
        )
        labels = {"mode": "At the limit", "team": "Project of team", "window": "Begins anew"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "time_zone" in self.fields:
            stored = self.instance.time_zone
            names = sorted({*windows.zone_names(), stored} - {"UTC"})
            self.fields["time_zone"].widget = forms.Select(choices=[(name, name) for name in ("UTC", *names)])
        if self.initial.get("capacity_usd") is not None:
            self.initial["capacity_usd"] = plain(self.initial["capacity_usd"])

    def clean_alert_percents(self) -> str:
        """The percents in their stored form, ascending."""
        entries = self.cleaned_data["alert_percents"]
        validation.percents(entries)
        return ",".join(str(percent) for percent in sorted({int(entry) for entry in validation.split(entries)}))


class PriceForm(RowForm[Price]):
    """A dated price; it holds from its date until a newer row for the same provider, pattern and tier begins."""

    class Meta:
        model = Price
        fields = (
            "provider",
            "pattern",
            "route",
            "from_tokens",
            "valid_from",
            "source",
            "input_usd_per_mtok",
            "output_usd_per_mtok",
            "cached_read_usd_per_mtok",
            "cache_write_usd_per_mtok",
            "reasoning_usd_per_mtok",
            "input_audio_usd_per_mtok",
            "output_audio_usd_per_mtok",
            "input_image_usd_per_mtok",
            "request_usd",
        )
        help_texts = {
            "cached_read_usd_per_mtok": "Blank = as input.",
            "cache_write_usd_per_mtok": "Blank = as input.",
            "reasoning_usd_per_mtok": "Blank = as output.",
            "input_audio_usd_per_mtok": "Blank = as input.",
            "output_audio_usd_per_mtok": "Blank = as output.",
            "input_image_usd_per_mtok": "Blank = as input.",
            "valid_from": "UTC. The newest row whose date has passed is charged.",
        }
        labels = {
            "input_usd_per_mtok": "Input",
            "output_usd_per_mtok": "Output",
            "cached_read_usd_per_mtok": "Cached input read",
            "cache_write_usd_per_mtok": "Cache write",
            "reasoning_usd_per_mtok": "Reasoning",
            "input_audio_usd_per_mtok": "Audio input",
            "output_audio_usd_per_mtok": "Audio output",
            "input_image_usd_per_mtok": "Image input",
            "request_usd": "USD per request",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "from_tokens" in self.fields:
            self.fields["from_tokens"].required = False

    def clean_from_tokens(self) -> int:
        """Blank = for every request."""
        return self.cleaned_data["from_tokens"] or 0

    def clean_source(self) -> str:
        """Imported rows say so, and yield to the operators' own."""
        source: str = self.cleaned_data["source"]
        if source.startswith(IMPORT_SOURCE):
            raise ValidationError(f"Sources that begin with {IMPORT_SOURCE} are the importer's.")
        return source


class OrderForm(forms.Form):
    """What every order to the ledger says: why."""

    note = forms.CharField(
        label="Why",
        max_length=500,
        help_text="Stays in the ledger and in the audit log.",
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )


class _AmountForm(OrderForm):
    """An order about an amount in one unit. Cleaned `amount` is in tokens or pico-USD."""

    unit = forms.TypedChoiceField(choices=_UNITS, coerce=int)
    amount = forms.DecimalField(
        max_digits=30, decimal_places=12, widget=forms.TextInput(attrs={"inputmode": "decimal"})
    )
    field_order = ["unit", "amount", "window", "to_pool", "note"]

    def clean(self) -> dict[str, Any]:
        """The amount as a whole number of the unit, never nothing."""
        data = super().clean() or self.cleaned_data
        value = data.get("amount")
        if value is None or "unit" not in data:
            return data
        try:
            data["amount"] = amounts.parse(data["unit"], value)
        except ValueError as exc:
            self.add_error("amount", str(exc))
            return data
        if not data["amount"]:
            self.add_error("amount", "Nothing would change.")
        elif abs(data["amount"]) > (validation.CAPACITY_LIMIT if data["unit"] == Unit.TOKENS else _PICO_LIMIT):
            self.add_error("amount", "That is more than any limit can be.")
        return data


_PICO_LIMIT = validation.CAPACITY_LIMIT_USD * 10**12


class CorrectionForm(_AmountForm):
    """A correcting entry: what was charged wrongly is charged or given back by a further row."""

    window = forms.TypedChoiceField(coerce=int)

    def __init__(self, *args: Any, spans: Iterable[tuple[int, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["window"].choices = list(spans)  # type: ignore[attr-defined]
        self.fields[
            "amount"
        ].help_text = (
            "In the unit above. Above zero: charged in addition. Below zero (-500, -0.25): given back to the pool."
        )


class TransferForm(_AmountForm):
    """Moves a free part of the limit to another pool, for the current windows of both."""

    to_pool = forms.ModelChoiceField(Pool.objects.none(), label="To pool")

    def __init__(self, *args: Any, source: Pool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["to_pool"].queryset = Pool.objects.exclude(pk=source.pk)  # type: ignore[attr-defined]
        self.fields["amount"].help_text = "In the unit above. Only what is neither spent nor leased can be moved."

    def clean(self) -> dict[str, Any]:
        """A transfer goes one way."""
        data = super().clean()
        if not self.errors and data["amount"] < 0:
            self.add_error("amount", "Write an amount above zero; to move it the other way, start at the other pool.")
        return data


class ResolveForm(OrderForm):
    """What to do about the quarantined leases of a dead worker, by the kind of the order."""

    KINDS: ClassVar[dict[str, dict[str, str]]] = {
        "write_off": {
            "title": "Write off as spent?",
            "text": "The rest of these leases is charged to the pools, as if all of it had been used. Choose this when "
            "the worker's journal is lost: nothing can be spent twice.",
            "button": "Write off as spent",
        },
        "release": {
            "title": "Give back to the pools?",
            "text": "The rest of these leases can be spent again. Choose this when you know that the worker did not "
            "use it: what it used without our knowledge would not be charged.",
            "button": "Give back",
        },
        "replay": {
            "title": "Read the journal again?",
            "text": "What can be read of the worker's journal is settled now. Choose this after its files were "
            "restored, or with a newer version. What is in the ledger already changes nothing. The leases stay "
            "quarantined: decide about their rest then.",
            "button": "Read the journal again",
        },
    }
