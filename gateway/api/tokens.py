"""`/v1/tokens/*`: ask what is left, set tokens aside, report what was used, list the pools.

The same exact pools as inference draws on. A reservation is made through a key and draws on that key's budgets as
well, like a request of it.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from budgets.models import ApiKey, Pool, Reservation
from budgets.reservations import (
    OPEN_MAX,
    TTL_S,
    AlreadyReportedError,
    LedgerAwayError,
    NotYourReservationError,
    OtherReservationError,
    ReservationError,
    ReservationNotFoundError,
    Reservations,
    Share,
    TooManyReservationsError,
    Used,
    Wanted,
    new_id,
)
from budgets.settle import Writer
from gateway import plane
from gateway.api import pools
from gateway.api.authentication import HasKey, caller_of, scopes
from gateway.api.fields import read
from gateway.api.serializers import ErrorSerializer
from gateway.api.tokens_serializers import (
    CheckRequestSerializer,
    CheckSerializer,
    PoolsSerializer,
    ReportRequestSerializer,
    ReportSerializer,
    ReserveRequestSerializer,
    ReserveSerializer,
)
from gateway.api.views import ControlView
from gateway.errors import BadRequestError, ClientError, ForbiddenError, GatewayUnavailableError, NotFoundError
from gateway.idempotency import KEY_PATTERN

_ERRORS = {
    400: OpenApiResponse(ErrorSerializer, "A field is missing or not what it should be."),
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key may not use this pool or reservation."),
    404: OpenApiResponse(ErrorSerializer, "No such pool or reservation."),
    503: OpenApiResponse(ErrorSerializer, "The ledger is away."),
}
_CONFLICT = OpenApiResponse(ErrorSerializer, "It was reported with another number.")
_TOO_MANY = OpenApiResponse(ErrorSerializer, f"The key has {OPEN_MAX} open reservations.")
_MISMATCH = OpenApiResponse(ErrorSerializer, "The Idempotency-Key made another reservation.")
_HEADER = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, description="The same key gives the same reservation."
)
_RESERVATION_ID = re.compile(r"[0-9a-f]{32}\Z")


class CheckView(ControlView):
    """Whether there is room in a pool."""

    permission_classes = (HasKey,)

    @extend_schema(
        request=CheckRequestSerializer, responses={200: CheckSerializer, **_ERRORS}, summary="Is there room in a pool?"
    )
    def post(self, request: Request) -> Response:
        """Counts the pool and the budgets above it; operators may ask about any pool."""
        asked = read(CheckRequestSerializer, request.data)
        caller = caller_of(request)
        name = asked.get("pool")
        if caller.key is None:
            if name is None:
                raise BadRequestError("Name a pool: only an API key has a default one.", param="pool")
            chain = [pools.named(name)] if caller.is_operator else []
            if not chain:
                raise ForbiddenError("You may not see this pool.", code="pool_not_allowed", param="pool")
        else:
            chain = _chain_to_see(caller.key, name, is_operator=caller.is_operator)
        balances = pools.balances(chain)
        return Response({"allowed": pools.allows(balances, asked["tokens"]), "available": pools.left(balances)})


class ReserveView(ControlView):
    """Set tokens aside."""

    permission_classes = (HasKey,)

    @extend_schema(
        request=ReserveRequestSerializer,
        parameters=[_HEADER],
        responses={200: ReserveSerializer, 422: _MISMATCH, 429: _TOO_MANY, **_ERRORS},
        summary="Set tokens aside",
    )
    def post(self, request: Request) -> Response:
        """All or nothing, in the pool and the budgets above it. Without room the answer is 200 and `reserved` false."""
        asked = read(ReserveRequestSerializer, request.data)
        key = _spending_key(request)
        key_pools = pools.KeyPools(key)
        pool = key_pools.named(asked.get("pool"))
        chain = key_pools.chain(pool)
        wanted = Wanted(
            id=new_id(),
            pool_id=pool.pk,
            shares=tuple(Share(each.pk, each.mode) for each in chain),
            team_id=key.agent.team_id,
            agent_id=key.agent_id,
            key_id=key.pk,
            tokens=asked["tokens"],
            ttl_s=asked.get("ttl_s", TTL_S),
            idempotency_key=_idempotency_key(request),
        )
        try:
            outcome = _reservations().reserve(wanted)
        except ReservationError as exc:
            raise _told(exc) from exc
        made = outcome.made
        if made is None:
            return Response(
                {"reserved": False, "available": outcome.available, "id": None, "expires_at": None, "state": None}
            )
        return Response(
            {
                "reserved": made.state == Reservation.State.OPEN,
                "available": pools.left(pools.balances(chain)),
                "id": made.pk,
                "expires_at": made.expires_at,
                "state": made.state,
            }
        )


class ReportView(ControlView):
    """What was used of a reservation."""

    permission_classes = (HasKey,)

    @extend_schema(
        request=ReportRequestSerializer,
        responses={200: ReportSerializer, 409: _CONFLICT, **_ERRORS},
        summary="Report what a reservation used",
    )
    def post(self, request: Request) -> Response:
        """Charges what was used and gives the rest back. The same report again changes nothing when it has the id."""
        asked = read(ReportRequestSerializer, request.data)
        key = _spending_key(request)
        number, name = asked.get("id", ""), asked.get("pool")
        if number and not _RESERVATION_ID.match(number):
            raise _told(ReservationNotFoundError())
        pool = pools.KeyPools(key).named(name) if name is not None or not number else None
        used = Used(
            id=number,
            pool_id=pool.pk if pool is not None else None,
            team_id=key.agent.team_id,
            key_id=key.pk,
            actual=asked["actual"],
        )
        try:
            row = _reservations().report(used)
        except ReservationError as exc:
            raise _told(exc) from exc
        return Response({**_of_pool(row), "id": row.pk})


class PoolsView(ControlView):
    """The pools the caller may use."""

    permission_classes = (HasKey,)

    @extend_schema(responses={200: PoolsSerializer, **_ERRORS}, summary="Pools and what is left of them")
    def get(self, request: Request) -> Response:
        """By name; a key sees those it draws on or may name, an operator all."""
        caller = caller_of(request)
        if caller.is_operator:
            rows = list(Pool.objects.filter(enabled=True).order_by("name")[: pools.LISTED_MAX])
        elif caller.key is not None:
            rows = pools.KeyPools(caller.key).usable()
        else:
            raise ForbiddenError()
        return Response({"pools": [pools.shown(balance) for balance in pools.balances(rows)]})


def _spending_key(request: Request) -> ApiKey:
    """The key that pays. Raises `ForbiddenError` for people and for keys that may not spend."""
    key = caller_of(request).key
    if key is None:
        raise ForbiddenError("Reservations belong to API keys. Send one.")
    if "inference" not in scopes(key):
        raise ForbiddenError("This API key may not spend tokens (it lacks the scope 'inference').")
    return key


def _chain_to_see(key: ApiKey, name: str | None, *, is_operator: bool) -> list[Pool]:
    key_pools = pools.KeyPools(key)
    if is_operator and name is not None:
        pool = pools.named(name)
        if not key_pools.may_name(pool):
            return [pool]
    return key_pools.chain(key_pools.named(name))


def _idempotency_key(request: Request) -> str | None:
    """The digest of the header's value. Raises `BadRequestError` when it is no key."""
    value = request.headers.get("Idempotency-Key")
    if value is None:
        return None
    if not KEY_PATTERN.match(value.encode("utf-8", "surrogateescape")):
        raise BadRequestError(
            "The Idempotency-Key must be 1 to 255 printable ASCII characters.",
            param="idempotency-key",
            code="invalid_idempotency_key",
        )
    return hashlib.sha256(value.encode()).hexdigest()


def _reservations() -> Reservations:
    control = plane.current
    if control is None or control.writer is None:
        raise GatewayUnavailableError("This process does not keep the ledger.", code="no_control_plane")
    return _reservations_of(control.writer)


@lru_cache(maxsize=1)
def _reservations_of(writer: Writer) -> Reservations:
    """One object for all requests: they share the pause between two call-backs."""

    def recall(pool_id: int, unit: int, window_start: int) -> None:
        if plane.current is not None:
            plane.current.recall(pool_id, unit, window_start)

    return Reservations(writer, recall=recall)


def _of_pool(row: Reservation) -> dict[str, Any]:
    """How the reservation's pool stands; it may be gone by now."""
    found = Pool.objects.filter(pk=row.pool_id).first()
    if found is None:
        return {"used": row.actual, "available": 0}
    (balance,) = pools.balances([found])
    return {"used": balance.tokens.used, "available": balance.tokens.available}


def _told(exc: ReservationError) -> Exception:
    """The reply that says why."""
    match exc:
        case NotYourReservationError():
            return ForbiddenError("This reservation is another team's.", code="reservation_not_yours", param="id")
        case AlreadyReportedError():
            return ClientError(
                "This reservation was reported with another number.",
                status=409,
                code="reservation_reported",
                param="id",
            )
        case TooManyReservationsError():
            return ClientError(
                f"This API key has {OPEN_MAX} open reservations. Report some of them, or let them expire.",
                status=429,
                type="rate_limit_error",
                code="too_many_reservations",
                retry_after_s=1,
            )
        case OtherReservationError():
            return ClientError(
                "This Idempotency-Key made another reservation. Use a new one for each.",
                status=422,
                code="idempotency_mismatch",
                param="idempotency-key",
            )
        case LedgerAwayError():
            return GatewayUnavailableError(
                "The ledger does not answer. Try again shortly.", code="ledger_unavailable", retry_after_s=1
            )
    return NotFoundError("There is no such open reservation.", code="reservation_not_found", param="id")
