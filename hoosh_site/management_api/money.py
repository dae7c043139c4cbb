"""Pools, what is ordered to be done to their balances, and prices."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from decimal import Decimal
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import access, amounts, orders, validation
from budgets.admin_orders import CORRECT_LEDGER
from budgets.balances import Balance, balances
from budgets.forms import PriceForm
from budgets.models import Lease, LedgerOrder, Pool, PoolWindow, Price, Team
from budgets.prices import IMPORT_SOURCE
from budgets.records import Unit
from gateway.errors import GatewayUnavailableError
from hoosh_site.management_api.access import may
from hoosh_site.management_api.fields import Money, Named, Percents, RowSerializer, Strict, Text, Whole
from hoosh_site.management_api.members import Live
from hoosh_site.management_api.paging import Filter, truth
from hoosh_site.management_api.problems import ConflictError
from hoosh_site.management_api.rows import Rows, once, search, wake

_UNITS = {"tokens": Unit.TOKENS, "usd": Unit.PICO_USD}
_RESOLVE = ("write_off", "release", "replay")
_PICO_LIMIT = validation.CAPACITY_LIMIT_USD * 10**12
_importing = threading.Lock()
_IMPORT_S = 100.0  # the worker that forwards waits 120 s
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}(=[^\x00-\x1f\x7f]{0,64})?\Z")


class BudgetSerializer(RowSerializer):
    """A budget of tokens, money or both."""

    team = Named(
        queryset=Team.objects.all(), allow_null=True, required=False, help_text="A project of this team, by name."
    )
    alert_percents = Percents(required=False)

    class Meta:
        model = Pool
        fields = (
            *("id", "name", "enabled", "capacity_tokens", "capacity_usd", "window", "time_zone", "mode", "shorten"),
            *("carry_over", "alert_percents", "team", "note", "managed_by", "created_at"),
        )
        read_only_fields = ("id", "managed_by", "created_at")


class PurseSerializer(serializers.Serializer[None]):
    """One unit of a pool's current window; USD as decimal texts."""

    unit = serializers.ChoiceField(choices=tuple(_UNITS))
    capacity = serializers.CharField(allow_null=True, help_text="null = no limit")
    committed = serializers.CharField(help_text="Charged.")
    leased = serializers.CharField(help_text="What workers may still spend.")
    available = serializers.CharField()
    overrun = serializers.CharField()
    adjusted = serializers.CharField(help_text="By transfers, and carried over.")


class BalanceSerializer(serializers.Serializer[None]):
    """A pool's current window."""

    window_start = serializers.IntegerField(help_text="Unix seconds.")
    window_end = serializers.IntegerField(help_text="Unix seconds; 0 = never.")
    purses = PurseSerializer(many=True)


class Pools(Live):
    """Budgets. Balances are never edited: see the ledger's orders."""

    label = "budgets.pool"
    serializer_class = BudgetSerializer
    queryset = Pool.objects.select_related("team")
    filters = {**search(), "team": Filter("team__name"), "enabled": Filter("enabled", "truth")}
    verbs: ClassVar = {"balance": "view"}

    def save(self, row: Pool, actor: str) -> None:
        """Create or change a pool."""
        access.save_pool(row, actor=actor)

    def erase(self, row: Pool, actor: str) -> None:
        """Delete a pool nothing draws on."""
        access.delete_pool(row, actor=actor)

    @extend_schema(responses=BalanceSerializer, summary="What is spent and leased of the current window")
    def balance(self, request: Request, **path: Any) -> Response:
        """From the ledger."""
        pool = self.row()
        found = balances([pool])[pool.pk]
        told = [_purse(name, purse) for name, purse in zip(_UNITS, found.purses, strict=True)]
        return Response({"window_start": found.start, "window_end": found.end, "purses": told})


def _purse(name: str, purse: Balance) -> dict[str, Any]:
    def shown(value: int | None) -> str | None:
        if value is None:
            return None
        return str(value) if purse.unit == Unit.TOKENS else f"{amounts.to_usd(value).normalize():f}"

    names = ("capacity", "committed", "leased", "available", "overrun", "adjusted")
    return {"unit": name, **{each: shown(getattr(purse, each)) for each in names}}


class OrderSerializer(serializers.ModelSerializer[LedgerOrder]):
    """What was ordered, and what came of it."""

    class Meta:
        model = LedgerOrder
        fields = ("id", "kind", "payload", "actor", "note", "state", "result", "created_at", "done_at")


class NewOrderSerializer(Strict):
    """An order. Which fields it has depends on its kind: see the documentation."""

    kind = serializers.ChoiceField(choices=("correction", "transfer", *_RESOLVE, "period"))
    note = Text(max_length=orders.NOTE_LENGTH, help_text="Why; it stays in the ledger and in the audit log.")
    pool = Named(queryset=Pool.objects.all(), required=False, help_text="Of a correction.")
    from_pool = Named(queryset=Pool.objects.all(), required=False, help_text="Of a transfer.")
    to_pool = Named(queryset=Pool.objects.all(), required=False, help_text="Of a transfer.")
    unit = serializers.ChoiceField(choices=tuple(_UNITS), required=False)
    amount = Money(
        max_digits=30,
        decimal_places=12,
        required=False,
        help_text="Tokens or USD. Of a correction: above zero is charged, below zero given back.",
    )
    window_start = Whole(required=False, help_text="Of a correction, Unix seconds; left out: the current window.")
    owner = Text(max_length=64, required=False, help_text="Of a decision about quarantined leases.")


_FIELDS = {
    "correction": {"pool", "unit", "amount"},
    "transfer": {"from_pool", "to_pool", "unit", "amount"},
    "period": set[str](),
    **{kind: {"owner"} for kind in _RESOLVE},
}


class Orders(Rows):
    """What is ordered to be done to balances; the ledger's writer carries each out once."""

    label = "budgets.ledgerorder"
    serializer_class = OrderSerializer
    queryset = LedgerOrder.objects.all()
    newest_first = True
    filters = {"state": Filter("state"), "kind": Filter("kind"), "actor": Filter("actor")}
    verbs: ClassVar = {"create": CORRECT_LEDGER}

    def needed(self) -> list[str]:
        """Who may place orders sees what came of them."""
        caller: Any = self.request.user
        return [CORRECT_LEDGER] if self.action and may(caller, CORRECT_LEDGER) else super().needed()

    @extend_schema(request=NewOrderSerializer, responses={201: OrderSerializer})
    def create(self, request: Request, **path: Any) -> Response:
        """Place an order. It is open until the writer has taken it: read it again."""
        serializer = NewOrderSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = dict(serializer.validated_data)
        kind, note = values.pop("kind"), values.pop("note")
        _check_fields(kind, values)
        payload = _payload(kind, values)
        with once(request):
            order = orders.place(kind, payload, actor=self.actor, note=note)
        wake()
        return self.told(order, status=201)


def _check_fields(kind: str, values: dict[str, Any]) -> None:
    wanted = _FIELDS[kind]
    extra = {"window_start"} if kind == "correction" else set[str]()
    wrong = dict.fromkeys(wanted - set(values), "This field is needed.")
    wrong |= dict.fromkeys(set(values) - wanted - extra, f"An order of the kind “{kind}” has no such field.")
    if wrong:
        raise ValidationError(dict(sorted(wrong.items())))


def _payload(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    if kind == "period":
        return {}
    if kind in _RESOLVE:
        owner: str = values["owner"]
        if not Lease.objects.filter(state=Lease.State.QUARANTINED, owner=owner).exists():
            raise ValidationError({"owner": "There is no quarantined lease of this owner."})
        return {"owner": owner}
    unit = _UNITS[values["unit"]]
    amount = _amount(unit, values["amount"])
    if kind == "transfer":
        if amount < 0:
            raise ValidationError({"amount": "What is transferred must be more than zero."})
        pools = values["from_pool"], values["to_pool"]
        if pools[0] == pools[1]:
            raise ValidationError({"to_pool": "A transfer needs two pools."})
        return {"from_pool": pools[0].pk, "to_pool": pools[1].pk, "unit": int(unit), "amount": amount}
    pool: Pool = values["pool"]
    current = balances([pool])[pool.pk].start
    start = values.get("window_start", current)
    if start != current and not PoolWindow.objects.filter(pool_id=pool.pk, window_start=start).exists():
        raise ValidationError({"window_start": "The pool has no window that begins then."})
    return {"pool_id": pool.pk, "unit": int(unit), "window_start": start, "amount": amount}


def _amount(unit: Unit, value: Decimal) -> int:
    try:
        amount = amounts.parse(unit, value)
    except ValueError as exc:
        raise ValidationError({"amount": str(exc)}) from exc
    if not amount:
        raise ValidationError({"amount": "Nothing would change."})
    if abs(amount) > (validation.CAPACITY_LIMIT if unit == Unit.TOKENS else _PICO_LIMIT):
        raise ValidationError({"amount": "That is more than any limit can be."})
    return amount


class PriceSerializer(RowSerializer):
    """A dated price in USD; of rows for the same, the newest whose date has passed counts."""

    class Meta:
        model = Price
        fields = ("id", *PriceForm.Meta.fields, "created_at")
        read_only_fields = ("id", "created_at")
        extra_kwargs = {"valid_from": {"required": False, "help_text": "Left out: from now on."}}


class PriceImportSerializer(Strict):
    """Which prices to import from the installed package."""

    providers = serializers.ListField(
        child=Text(max_length=130), required=False, max_length=50, help_text="ID or ID=NAME; left out: all kinds."
    )


class Prices(Rows):
    """Dated prices. A row is never changed: a new price is a new row."""

    label = "budgets.price"
    serializer_class = PriceSerializer
    queryset = Price.objects.all()
    filters = {
        **search("pattern"),
        **{name: Filter(name) for name in ("provider", "route", "source")},
        "valid_before": Filter("valid_from__lte", "time", "Valid from this moment or before."),
    }
    verbs: ClassVar = {"import_prices": "view add"}
    query: ClassVar = {"import_prices": frozenset({"check"})}

    def make(self, values: Any) -> Price:
        """A price that holds from now on, unless it says otherwise."""
        if str(values.get("source", "")).startswith(IMPORT_SOURCE):
            raise ValidationError({"source": f"Sources that begin with {IMPORT_SOURCE} are the importer's."})
        return Price(**{"valid_from": timezone.now().replace(microsecond=0), **values})

    def save(self, row: Price, actor: str) -> None:
        """Add a price."""
        access.add_price(row, actor=actor)

    @extend_schema(
        request=PriceImportSerializer,
        parameters=[OpenApiParameter("check", bool, description="1 = only say what would be written.")],
        responses={200: OpenApiTypes.OBJECT},
        summary="Add prices of the installed package genai-prices",
    )
    def import_prices(self, request: Request, **path: Any) -> Response:
        """With `?check=1` nothing is written. The answer is that of `manage.py import_prices --json`."""
        serializer = PriceImportSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        chosen = serializer.validated_data.get("providers", [])
        if not all(_PROVIDER.match(each) for each in chosen):
            raise ValidationError({"providers": "Write ID or ID=NAME, such as openai or azure=our-azure."})
        found = _import(chosen, check=truth(request, "check"), actor=self.actor)
        wake()
        return Response(found)


def _import(chosen: list[str], *, check: bool, actor: str) -> Any:
    """In a process of its own: the list takes memory that control would keep. One at a time."""
    if not _importing.acquire(blocking=False):
        raise ConflictError("Another import of prices is under way.")
    try:
        return _run_import(chosen, check=check, actor=actor)
    finally:
        _importing.release()


def _run_import(chosen: list[str], *, check: bool, actor: str) -> Any:
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "import_prices", "--json", f"--actor={actor}"]
    command += ["--dry-run" if check else "--yes", *(f"--provider={each}" for each in chosen)]
    try:
        done = subprocess.run(  # noqa: S603 - our own command, its arguments are checked
            command, cwd=settings.BASE_DIR, capture_output=True, text=True, timeout=_IMPORT_S, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as exc:
        raise GatewayUnavailableError("The import did not end in time. Use manage.py import_prices.") from exc
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or ["It failed."]
        raise ValidationError({"providers": told[0].removeprefix("CommandError: ")[:1000]})
    return json.loads(done.stdout)
