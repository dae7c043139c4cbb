"""The audit log as programs see it: entries, signed checkpoints, and proofs anybody can verify without us."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from audit import checking, proving, reading
from audit.models import AuditEntry
from audit.walking import Fault, fault_of
from gateway import request_proofs
from gateway.api.audit_serializers import AuditSerializer, CheckpointSerializer, ConsistencySerializer, ProofSerializer
from gateway.api.authentication import HasKey, IsOperator, caller_of
from gateway.api.fields import is_plain
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.errors import BadRequestError, ForbiddenError, GatewayError, GatewayUnavailableError, NotFoundError

LIMIT, LIMIT_MAX = 100, 1000
TEXT_MAX = 200
VERSION = "2.0.0"  # of the entries' form; hoosh's own chain is 1.0.0
_DIGITS = 18
_YEARS = (1971, 9997)  # that every database and time zone can show
_REFUSED = {
    400: OpenApiResponse(ErrorSerializer, "A parameter is not what it should be; `param` names it."),
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key may not do this."),
}
_ABSENT = {404: OpenApiResponse(ErrorSerializer, "There is none, or none yet: then with `Retry-After`.")}
_TEXTS = {
    "action": "One action, or with a dot at its end everything that begins so: `key.`",
    "actor": "Name of who did it, exactly.",
    "target": "What or who it is about, exactly.",
    "level": "info, warning, error or critical.",
    "source": "site, ledger, usage or log.",
}
_FILTERS = [
    OpenApiParameter("limit", int, description=f"1 to {LIMIT_MAX}; {LIMIT} if left out."),
    OpenApiParameter("before", OpenApiTypes.INT64, description="Continue behind this sequence number: `next`."),
    *(OpenApiParameter(name, description=text) for name, text in _TEXTS.items()),
    OpenApiParameter("from", OpenApiTypes.DATETIME, description="First moment or day, in UTC."),
    OpenApiParameter("to", OpenApiTypes.DATETIME, description="Last moment or day, in UTC; a day is included."),
    OpenApiParameter("q", description="A sequence number or a request id."),
]
_SIZE = OpenApiParameter("size", OpenApiTypes.INT64, description="The checkpoint of exactly so many entries.")


class AuditView(ControlView):
    """The entries."""

    permission_classes = (IsOperator,)

    @extend_schema(parameters=_FILTERS, responses={200: AuditSerializer, **_REFUSED}, summary="The audit log")
    def get(self, request: Request) -> Response:
        """Newest first. `chain_valid` is verified, not assumed; `verified` says what that rests on."""
        limit = _number(request, "limit", least=1, most=LIMIT_MAX)
        page = _found(request, LIMIT if limit is None else limit)
        verdict = checking.look()
        fault = verdict.fault or _fault_of(page.entries)
        total = reading.last_seq() + 1
        return Response(
            {
                "entries": [told(each) for each in reading.readable(page.entries)],
                "total": total,
                "count": total,
                "chain_valid": fault is None,
                "valid": fault is None,
                "verified": {**verdict.as_dict(), "fault": _told_fault(verdict, fault)},
                "next": page.next,
            }
        )


class CheckpointView(ControlView):
    """The newest signed tree head, or a certain one."""

    permission_classes = (HasKey,)

    @extend_schema(
        parameters=[_SIZE, OpenApiParameter("log", description='Of this month, such as "2026-11".')],
        responses={
            (200, "text/plain"): OpenApiTypes.STR,
            (200, "application/json"): CheckpointSerializer,
            **_REFUSED,
            **_ABSENT,
        },
        summary="A signed checkpoint of the audit log",
    )
    def get(self, request: Request) -> HttpResponseBase:
        """A C2SP signed note; with `Accept: application/json` its parts as well."""
        size, name = _number(request, "size"), _text(request, "log")
        try:
            log = proving.log_named(name)
            row = proving.checkpoint(log, size)
        except proving.ProofError as exc:
            raise _told(exc) from exc
        if "application/json" in request.headers.get("Accept", ""):
            parts = {"log": log.name, "size": row.size, "root": bytes(row.root).hex(), "at": row.at, "note": row.note}
            return Response(parts)
        return HttpResponse(row.note, content_type="text/plain; charset=utf-8", headers=self.default_response_headers)


class InclusionView(ControlView):
    """That an entry, or a request, is in the log."""

    permission_classes = (HasKey,)

    @extend_schema(
        parameters=[
            OpenApiParameter("seq", OpenApiTypes.INT64, description="An entry; operators only."),
            OpenApiParameter("request_id", description="A request of the key's team; operators: any."),
            OpenApiParameter("attempt", OpenApiTypes.INT64, description="Only this attempt of the request."),
            _SIZE,
        ],
        responses={200: ProofSerializer, **_REFUSED, **_ABSENT},
        summary="Proof that an entry or a request is in the audit log",
    )
    def get(self, request: Request) -> HttpResponseBase:
        """A proof file, as tools/verify_audit.py reads it; of a request with several attempts one line for each."""
        seq, rid, size = _number(request, "seq"), _text(request, "request_id"), _number(request, "size")
        if (seq is None) == (not rid):
            raise BadRequestError("Give either 'seq' or 'request_id'.", param="seq")
        attempt = _number(request, "attempt")
        try:
            if seq is not None:
                if not caller_of(request).is_operator:
                    raise ForbiddenError("Entries by their number need an API key with the operator scope.")
                found = [proving.inclusion(seq, size)]
            else:
                found = self._of_request(request, rid, attempt, size)
        except proving.ProofError as exc:
            raise _told(exc) from exc
        kind = "application/json" if len(found) == 1 else "application/x-ndjson"
        text = b"".join(proving.proof_bytes(each) for each in found)
        return HttpResponse(text, content_type=kind, headers=self.default_response_headers)

    def _of_request(self, request: Request, text: str, attempt: int | None, size: int | None) -> list[dict[str, Any]]:
        rid, caller = request_proofs.request_id(text), caller_of(request)
        if rid is None:
            raise BadRequestError("'request_id' is the 32 hexadecimal digits of x-hoosh-request.", param="request_id")
        everything = caller.is_operator or (caller.user is not None and caller.user.has_perm("budgets.view_usage"))
        team = None if everything else request_proofs.team_of(caller.key) if caller.key is not None else -1
        rows = request_proofs.usage_of(rid, team)
        rows = [row for row in rows if attempt is None or row.attempt == attempt]
        if not rows:
            # Another team's request and one that never was look the same on purpose.
            raise proving.NotYetError("No request of yours has this id. Usage is booked within a second.")
        return request_proofs.proofs(rows, size)


class ConsistencyView(ControlView):
    """That a log only grew between two checkpoints."""

    permission_classes = (HasKey,)

    @extend_schema(
        parameters=[
            OpenApiParameter("from", OpenApiTypes.INT64, required=True, description="Size of the older checkpoint."),
            OpenApiParameter("to", OpenApiTypes.INT64, description="Size of the newer one; the last if left out."),
            OpenApiParameter("log", description="The month; the newest if left out."),
        ],
        responses={200: ConsistencySerializer, **_REFUSED, **_ABSENT},
        summary="Proof that the audit log only grew",
    )
    def get(self, request: Request) -> HttpResponseBase:
        """For whoever kept an earlier checkpoint, or a reply's x-hoosh-audit."""
        first, second = _number(request, "from"), _number(request, "to")
        if first is None:
            raise BadRequestError("'from' is needed: the size of the older checkpoint.", param="from")
        try:
            log = proving.log_named(_text(request, "log"))
            newest = second if second is not None else proving.checkpoint(log).size
            found = proving.consistency(log, first, newest)
        except proving.ProofError as exc:
            raise _told(exc) from exc
        return HttpResponse(
            proving.proof_bytes(found), content_type="application/json", headers=self.default_response_headers
        )


# --- answers ----------------------------------------------------------------------------------------------------------


def told(read: reading.Readable) -> dict[str, Any]:
    """An entry in the shape of hoosh's audit entries."""
    row, data = read.entry, {**read.data, **read.personal}
    entry: dict[str, Any] = {
        "id": row.seq,
        "seq": row.seq,
        "timestamp": int(row.at.timestamp() * 1000),
        "event": row.action,
        "level": row.level,
        "message": read.message,
        "source": row.source,
        "actor": read.actor,
        "target": read.target,
        "data": data,
        "integrity": {
            "version": VERSION,
            "leaf": bytes(row.leaf).hex(),
            "log": row.log,
            "index": read.index,
        },
    }
    for name in ("provider", "model"):
        if isinstance(data.get(name), str):
            entry[name] = data[name]
    return entry


def _fault_of(entries: Sequence[AuditEntry]) -> Fault | None:
    """What is wrong with the entries that are being told: whoever reads them shall not wait for the next round."""
    return next((fault for row in entries if (fault := fault_of(row)) is not None), None)


def _told_fault(verdict: checking.Verdict, fault: Fault | None) -> Mapping[str, Any] | None:
    if fault is None:
        return None
    return {**fault.as_dict(), "found": verdict.fault_at or timezone.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


def _told(exc: proving.ProofError) -> GatewayError:
    match exc:
        case proving.NotYetError():
            return NotFoundError(str(exc), code="not_settled", retry_after_s=1)
        case proving.PrunedError():
            return NotFoundError(str(exc), code="pruned")
        case proving.BrokenError():
            return GatewayUnavailableError(str(exc), code="audit_log_broken", status=500, should_retry=False)
    return NotFoundError(str(exc))


# --- questions --------------------------------------------------------------------------------------------------------


def _found(request: Request, limit: int) -> reading.Page:
    texts = {name: _text(request, name) for name in _TEXTS}
    since, until = _moment(request, "from"), _moment(request, "to", end=True)
    asked = reading.Question(**texts, since=since, until=until, before=_number(request, "before"))
    if wanted := _text(request, "q"):
        seq = _seq(wanted)
        row = None if seq is None else reading.entry(seq)
        return reading.Page([] if row is None else [row], None)
    return reading.page(asked, limit)


def _seq(text: str) -> int | None:
    """The entry a sequence number or a request id stands for."""
    rid = request_proofs.request_id(text)
    if rid is not None:
        return request_proofs.find(rid)
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise BadRequestError("'q' must be a sequence number or a request id.", param="q")
    return int(text)


def _text(request: Request, name: str) -> str:
    values = request.query_params.getlist(name)
    if not values:
        return ""
    if len(values) > 1 or len(values[0]) > TEXT_MAX or not is_plain(values[0]):
        raise BadRequestError(f"'{name}' must be one text of at most {TEXT_MAX} characters.", param=name)
    return values[0]


def _number(request: Request, name: str, *, least: int = 0, most: int = 10**_DIGITS - 1) -> int | None:
    values = request.query_params.getlist(name)
    if not values:
        return None
    text = values[0]
    if len(values) > 1 or not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise BadRequestError(f"'{name}' must be one whole number.", param=name)
    if not least <= int(text) <= most:
        raise BadRequestError(f"'{name}' must be a whole number from {least} to {most}.", param=name)
    return int(text)


def _moment(request: Request, name: str, *, end: bool = False) -> dt.datetime | None:
    """A day or a moment; for the end of a stretch the first moment behind it."""
    text = _text(request, name)
    if not text:
        return None
    day = None
    try:
        day = parse_date(text)
        found = parse_datetime(text) if day is None else dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    except ValueError:
        found = None
    if found is not None and _YEARS[0] <= found.year <= _YEARS[1]:
        moment = found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)
        return moment + (dt.timedelta(microseconds=1) if day is None else dt.timedelta(days=1)) if end else moment
    if found is not None:
        raise BadRequestError(f"'{name}' is out of range: a year from {_YEARS[0]} to {_YEARS[1]}.", param=name)
    raise BadRequestError(f"'{name}' must be a day (2026-11-05) or a moment (2026-11-05T09:30:00Z).", param=name)
