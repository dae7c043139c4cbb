"""What all resources here share: lists, single rows, creation, exact changes, deletion.

A resource names its rows, its serializer, the permissions ("app.model") and the services that write. A write holds the
change counter its service will move from before the row is read, so that what is compared (`If-Match`) and what is
changed is the row as it is, whoever else writes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, ClassVar

from django.contrib import admin
from django.core.cache import cache
from django.db import models, transaction
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ViewSetMixin

from budgets import access as access_rows
from gateway.api.authentication import caller_of
from gateway.api.parsers import StrictJSONParser
from gateway.api.views import ControlView
from gateway.errors import BadRequestError, PayloadTooLargeError
from hoosh_site.management_api import access, problems
from hoosh_site.management_api.paging import CURSOR, LIMIT_NAME, Filter, Filters, Keyset
from hoosh_site.management_api.schema import ManagementSchema
from providers import publish, sequences

BODY_LIMIT_BYTES = 1024 * 1024
ID_LIMIT = 2**63
PUBLICATION = "x-hoosh-publication"
ANYBODY = "*"  # the `label` of a view that looks itself at what its caller may
_KEY_LENGTH = 128
_KEPT_S = 86_400


class BodyParser(StrictJSONParser):
    """One JSON object of bounded size."""

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The object. Raises `BadRequestError`, `PayloadTooLargeError`."""
        return super().parse(bounded(stream, BODY_LIMIT_BYTES), media_type, parser_context)


def bounded(stream: IO[bytes], limit_bytes: int) -> IO[bytes]:
    """A whole body. Raises `PayloadTooLargeError` where it is longer than so many bytes."""
    found = stream.read(limit_bytes + 1)
    if len(found) > limit_bytes:
        raise PayloadTooLargeError(limit_bytes)
    return io.BytesIO(found)


class ManagementView(ControlView):
    """Permissions by action, errors in one shape, query parameters that are known."""

    schema: Any = ManagementSchema()
    parser_classes: Any = (BodyParser,)
    permission_classes = (access.MayManage,)
    label: ClassVar[str] = ""  # "app.model": the permissions are those of its pages
    # Permission by action: a verb for `label`, or a whole name. What is not named is "change".
    verbs: ClassVar[Mapping[str, str]] = {}
    query: ClassVar[Mapping[str, frozenset[str]]] = {}  # parameters by action
    bodiless: ClassVar[frozenset[str]] = frozenset()  # actions that take no fields
    action: Any

    def needed(self) -> list[str]:
        """The permissions of what is asked."""
        if self.action is None or self.label == ANYBODY:  # a method nobody may use here is told to whoever has a key
            return []
        verb = {**_VERBS, **self.verbs}.get(self.action, "change")
        app, _, model = self.label.partition(".")
        return [each if "." in each else f"{app}.{each}_{model}" for each in verb.split()]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse strangers, then parameters nobody knows."""
        super().initial(request, *args, **kwargs)
        known = self.parameters()
        for name in request.query_params:
            if name not in known:
                shown = name[:64].replace("\0", "")
                raise BadRequestError(f"There is no query parameter '{shown}' here.", param=shown)
        if any("\0" in value for values in request.query_params.lists() for value in values[1]):
            raise BadRequestError("A query parameter has a NUL character.")
        if self.action in self.bodiless and request.data:
            shown = str(next(iter(request.data)))[:64].replace("\0", "")
            raise BadRequestError(f"There is no field '{shown}' here: this takes no body.", param=shown)

    def parameters(self) -> frozenset[str]:
        """The query parameters of what is asked."""
        return self.query.get(self.action or "", frozenset())

    def get_exception_handler(self) -> Callable[..., Response]:
        """Errors of this API."""
        return problems.handler

    @property
    def actor(self) -> str:
        """Who is recorded as the author of a change."""
        return caller_of(self.request).name


_VERBS = {"list": "view", "retrieve": "view", "create": "add", "destroy": "delete"}


class Acting(ViewSetMixin, ManagementView):
    """A view whose methods are mapped to actions by the table of paths."""


class Rows(ManagementView, GenericViewSet[Any]):
    """A resource. A subclass says which rows, and what writes them (`save`, `erase`)."""

    pagination_class: Any = Keyset
    filter_backends = (Filters,)
    filters: ClassVar[Mapping[str, Filter]] = {"name": Filter("name", about="Exactly this name.")}
    keyset: ClassVar[tuple[str, ...]] = ("id",)
    newest_first: ClassVar[bool] = False
    publishes: ClassVar[bool] = False  # whether a change becomes a version of the configuration
    told_by: ClassVar[tuple[str, ...]] = ()  # read-only fields that tell of a change of what is written only

    # To be said by the subclass

    def save(self, row: Any, actor: str) -> None:
        """Create or change a row through its service."""
        raise NotImplementedError

    def erase(self, row: Any, actor: str) -> None:
        """Delete a row through its service."""
        raise NotImplementedError

    def gate(self) -> None:
        """Hold whatever the service takes first. Called inside the transaction, before the row is read."""

    # The common part

    def parameters(self) -> frozenset[str]:
        """Lists know their filters."""
        if self.action == "list":
            return frozenset({LIMIT_NAME, CURSOR, *self.filters})
        return super().parameters()

    def list(self, request: Request, **path: Any) -> Response:
        """One page."""
        assert self.paginator is not None
        rows = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(self.get_serializer(rows, many=True).data)

    def retrieve(self, request: Request, **path: Any) -> Response:
        """One row."""
        return self.told(self.row())

    def create(self, request: Request, **path: Any) -> Response:
        """A new row."""
        values = self.read(request)
        with self.writing():
            row = self.make(values)
            self.save(row, self.actor)
        return self.told(self.again(row), status=201)

    def partial_update(self, request: Request, **path: Any) -> Response:
        """Change the fields that are there, and no others."""
        values = self.read(request, partial=True)
        with self.writing():
            row = self.row()
            self.match(request, row)
            for name, value in values.items():
                setattr(row, name, value)
            self.save(row, self.actor)
        return self.told(self.again(row))

    def destroy(self, request: Request, **path: Any) -> Response:
        """Delete a row."""
        with self.writing():
            row = self.row()
            self.match(request, row)
            self.erase(row, self.actor)
        return Response(status=204, headers=self.publication())

    def read(self, request: Request, *, partial: bool = False) -> dict[str, Any]:
        """The values of a body, by column."""
        serializer = self.get_serializer(data=request.data, partial=partial)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def make(self, values: Mapping[str, Any]) -> Any:
        """A new row with these values, not stored."""
        return self.get_queryset().model(**values)

    def row(self) -> Any:
        """The row the path names. Raises `Http404`."""
        number = int(self.kwargs["pk"])
        found = self.get_queryset().filter(pk=number).first() if number < ID_LIMIT else None
        if found is None:
            raise Http404
        return found

    def again(self, row: models.Model) -> Any:
        """The row as it is stored now."""
        return self.get_queryset().filter(pk=row.pk).first() or row

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around a change: one transaction; behind it the running gateway is told."""
        with transaction.atomic():
            self.gate()
            yield
        wake()

    def match(self, request: Request, row: Any) -> None:
        """Refuse to change a row that is not the one the caller saw (`If-Match`)."""
        wanted = request.headers.get("If-Match", "").strip()
        if not wanted or wanted == "*":
            return
        tags = {each.strip().removeprefix("W/") for each in wanted.split(",")}
        if self.etag(row) not in tags:
            raise problems.ChangedError

    def etag(self, row: Any) -> str:
        """Names what may be written of a row, as it is."""
        serializer: Any = self.get_serializer(row)
        told = serializer.data
        kept = {
            name: told[name]
            for name, field in serializer.fields.items()
            if name in told and (not field.read_only or name in self.told_by)
        }
        text = json.dumps([row.pk, kept], sort_keys=True, default=str)
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'

    def told(self, row: Any, *, status: int = 200, **more: Any) -> Response:
        """A row, with its name for `If-Match`, and after a change what became of it."""
        headers = {"ETag": self.etag(row)}
        if self.request.method != "GET":
            headers |= self.publication()
        if status == 201:
            headers["Location"] = f"{self.request.path.rstrip('/')}/{row.pk}"
        return Response({**self.get_serializer(row).data, **more}, status=status, headers=headers)

    def publication(self) -> dict[str, str]:
        """What became of a change of the configuration: "published", "waiting" as a draft, or "refused"."""
        return publication() if self.publishes else {}


class ReadOnlyRows(Rows):
    """A resource nobody writes here."""


def publication() -> dict[str, str]:
    """The header that says what became of saved changes."""
    if publish.waits():
        return {PUBLICATION: "waiting"}
    try:
        publish.draft_digest()
    except publish.PublishError:
        return {PUBLICATION: "refused"}
    return {PUBLICATION: "published"}


def wake() -> None:
    """Tell the running gateway that something was committed."""
    admin.site.wake()  # type: ignore[attr-defined]  # ours


def hold_config() -> None:
    """Hold what writers of the configuration take first."""
    sequences.locked(sequences.CONFIG)


def hold_cards() -> None:
    """Hold what writers of model cards take first."""
    sequences.locked(sequences.CARDS)


def hold_access() -> None:
    """Hold what writers of teams, agents, keys and pools take first."""
    access_rows.hold()


@contextmanager
def once(request: Request) -> Iterator[None]:
    """Let an `Idempotency-Key` do its work once; whoever sends it again is told so with a 409. What fails inside was
    not done: the key may come again."""
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        yield
        return
    if len(key) > _KEY_LENGTH or not key.isprintable():
        raise BadRequestError(f"An Idempotency-Key has at most {_KEY_LENGTH} characters.", param="Idempotency-Key")
    digest = hashlib.sha256(f"{caller_of(request).name}\0{request.path}\0{key}".encode()).hexdigest()
    name = f"hoosh.management.{digest}"
    if not cache.add(name, True, _KEPT_S):
        raise problems.ConflictError("A request with this Idempotency-Key was carried out before.", code="sent_before")
    try:
        yield
    except BaseException:
        cache.delete(name)
        raise


def search(field: str = "name") -> dict[str, Filter]:
    """Filters by a name: exactly, or a part of it."""
    return {
        field: Filter(field, about=f"Exactly this {field}."),
        f"{field}_contains": Filter(f"{field}__icontains", about=f"A part of the {field}."),
    }
