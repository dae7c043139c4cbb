"""Base classes of admin pages that every application shares: read-only logs, lists without counts, live changes.

Nothing here knows a model. The site that carries the pages offers two services of its own (`LiveSite`), so that pages
of lower applications need not import the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from django.contrib import messages
from django.contrib.admin import ModelAdmin, ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import flatten
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import RelatedFieldWidgetWrapper
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.paginator import Paginator
from django.db import IntegrityError, models, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.generics import Page, RowForm
from audit.history import LogHistory
from audit.shown_rows import SHOWN, ComparedPage
from audit.unusable import number as number  # pages of every application take it from here

_Model = TypeVar("_Model", bound=models.Model)
BEFORE = "before"  # the query parameter that continues a keyset list
BULK_LIMIT = 1000  # rows one action may touch
_CHUNK = 20  # rows in one transaction: about 3 ms each, and nobody shall wait 100 ms for a page
EDITABLE_ROWS = 25  # rows of a list with editable columns: saving them is one transaction
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ProbeOutcome(Protocol):
    """What a connection test found: `detail` says in plain words what is wrong, "" when it worked."""

    ok: bool
    detail: str
    models: Any  # a sequence of model names
    latency_ms: float | None


class Traffic(NamedTuple):
    """What went over a route."""

    requests: int  # first attempts
    attempts: int  # upstream calls
    errors: int  # of them
    cost_usd: Decimal


class LiveSite(Protocol):
    """What the admin site offers to its pages."""

    def wake(self) -> None:
        """Tell the control plane that something was committed, so that it is live at once. Never raises."""

    def probe(self, provider_id: int) -> ProbeOutcome:
        """Connect to a provider now and report. May take seconds; never called inside a transaction."""

    def next_steps(self, user: Any) -> list[tuple[str, str]]:
        """What this user may do once a model has its route: (text, address)."""

    def example_model(self) -> str:
        """A model to ask for in an example."""

    def provider_names(self) -> dict[int, str]:
        """The providers there are, by id."""

    def route_names(self, ids: Collection[int] | None = None) -> dict[int, str]:
        """What those of these routes that exist are called, by id; without any, of all there are."""

    def route_traffic(self, route_ids: Collection[int]) -> Mapping[int, Traffic]:
        """What went over these routes since the start of the hour before this one (UTC); those without are missing."""


def live_site(page: ModelAdmin[Any]) -> LiveSite:
    """The site a page belongs to, seen as what it offers."""
    return cast(LiveSite, page.admin_site)


def badge(text: str, tone: str = "") -> SafeString:
    """A small coloured label; `tone` is "good", "warn", "bad" or nothing."""
    return format_html('<span class="hoosh-badge {}">{}</span>', tone, text)


def operator(request: HttpRequest) -> str:
    """The name recorded as author of a change."""
    return request.user.get_username()


class _NamedRowForm(RowForm[_Model]):
    """A row of an editable list. Its fields have no labels there, so each is named by its column and its row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A formset also makes a form of no row, and a row without its relations may have no name.
        row = "" if self.instance.pk is None else f" of {self.instance}"
        for field in self.fields.values():
            if not field.widget.is_hidden:
                field.widget.attrs.setdefault("aria-label", f"{field.label}{row}")


class LiveAdmin(ComparedPage, LogHistory, Page[_Model]):
    """A page whose saves go through a service and are live at once.

    A subclass names the service in `write` and `erase`. The services validate again, so what slips between a form's
    check and the write (two operators at once) is refused with a message and leaves nothing half done.
    """

    list_per_page = 100
    show_facets = ShowFacets.NEVER

    def formfield_for_dbfield(self, db_field: models.Field[Any, Any], request: HttpRequest, **kwargs: Any) -> Any:
        """A related row can be added beside a field, but is changed and deleted on its own page only."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None and isinstance(field.widget, RelatedFieldWidgetWrapper):
            field.widget.can_change_related = field.widget.can_delete_related = field.widget.can_view_related = False
        return field

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> Any:
        """The form of one row of an editable list."""
        return super().get_changelist_form(request, **{"form": _NamedRowForm, **kwargs})

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """What the query string says about the fields of a new row; what cannot be a field's value is left out."""
        found: dict[str, Any] = {}
        for name, value in request.GET.items():
            try:
                field = self.opts.get_field(name)
                if field.concrete:
                    found[name] = number(str(value)) if field.is_relation else field.clean(value, None)
            except (FieldDoesNotExist, ValidationError):
                continue
        return found

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A part of the form that is folded up is open where something in it is wrong: Django itself does not look
        into lines of several fields."""
        shown: Any = context["adminform"]
        wrong = frozenset(shown.form.errors)
        shown.fieldsets = [
            (name, {**options, "classes": [each for each in options.get("classes", ()) if each != "collapse"]})
            if wrong.intersection(flatten(options["fields"]))
            else (name, options)
            for name, options in shown.fieldsets
        ]
        return super().render_change_form(request, context, *args, **kwargs)

    def write(self, row: _Model, actor: str) -> None:
        """Create or change a row through its service."""
        raise NotImplementedError

    def erase(self, row: _Model, actor: str) -> None:
        """Delete a row through its service."""
        raise NotImplementedError

    def committed(self, request: HttpRequest) -> None:
        """Called once after the change of this request is committed: wakes control."""
        live_site(self).wake()

    def after_commit(self, request: HttpRequest) -> None:
        """Have `committed` called once, behind everything the services do at the commit."""
        if not getattr(request, "_hoosh_after_commit", False):
            request._hoosh_after_commit = True  # type: ignore[attr-defined]
            transaction.on_commit(lambda: self.committed(request), robust=True)

    def save_model(self, request: HttpRequest, obj: _Model, form: Any, change: bool) -> None:
        """Write through the service."""
        self.write(obj, operator(request))
        self.after_commit(request)

    def delete_model(self, request: HttpRequest, obj: _Model) -> None:
        """Delete through the service."""
        self.erase(obj, operator(request))
        self.after_commit(request)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[_Model]) -> None:
        """Delete the chosen rows through the service."""
        self.each(request, queryset, self.erase)

    def each(
        self, request: HttpRequest, queryset: QuerySet[_Model] | list[_Model], work: Callable[[_Model, str], object]
    ) -> int:
        """Do `work` on each chosen row and say how many there were.

        Done in chunks, each all or none: one long transaction would keep every other writer waiting. When a row is
        refused, what was done before it stays, and the message says how much that is.
        """
        rows = list(queryset[: BULK_LIMIT + 1])
        if len(rows) > BULK_LIMIT:
            raise ValidationError(f"Choose at most {BULK_LIMIT} rows at once.")
        done = 0
        with self.bulk(request):
            try:
                for start in range(0, len(rows), _CHUNK):
                    with transaction.atomic():
                        for row in rows[start : start + _CHUNK]:
                            work(row, operator(request))
                    done = min(start + _CHUNK, len(rows))
            except ValidationError as exc:
                raise ValidationError([*exc.messages, f"{done} of {len(rows)} rows were done before."]) from exc
        return done

    @contextmanager
    def bulk(self, request: HttpRequest) -> Iterator[None]:
        """Around all chunks of an action: wakes control once, behind the last."""
        try:
            yield
        finally:
            self.after_commit(request)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The form; a refusal of the service at the last moment brings the operator back to it."""
        try:
            return self.open_changeform(request, object_id, form_url, extra_context)
        except (ValidationError, IntegrityError) as exc:
            return self.refused(request, exc)

    def open_changeform(
        self, request: HttpRequest, object_id: str | None, form_url: str, extra_context: dict[str, Any] | None
    ) -> HttpResponse:
        """Django's own form, one transaction around a save."""
        return super().changeform_view(request, object_id, form_url, extra_context)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, its editable columns and its actions."""
        try:
            if request.method == "POST" and "_save" in request.POST and SHOWN in request.POST:
                with transaction.atomic():  # around the comparison, too
                    self.gate(request, None)
                    return super().changelist_view(request, extra_context)
            return super().changelist_view(request, extra_context)
        except (ValidationError, IntegrityError) as exc:
            return self.refused(request, exc)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The question before a deletion, and the deletion."""
        try:
            return super().delete_view(request, object_id, extra_context)
        except (ValidationError, IntegrityError) as exc:
            return self.refused(request, exc)

    def refused(self, request: HttpRequest, exc: ValidationError | IntegrityError) -> HttpResponse:
        """Say why nothing was saved and show the page again."""
        if isinstance(exc, ValidationError):
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
        else:
            self.message_user(request, "Nothing was saved: another change came first. Look again.", messages.ERROR)
        return HttpResponseRedirect(request.get_full_path())


class ReadOnlyAdmin(LogHistory, Page[_Model]):
    """A page that shows rows and can neither add, change nor delete them, whoever asks."""

    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows are written by the gateway, never by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: _Model | None = None) -> bool:
        """What happened does not change."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: _Model | None = None) -> bool:
        """What happened stays."""
        return False


class UncountedPaginator(Paginator):  # type: ignore[type-arg]  # not subscriptable when run
    """One page of unknown position: never counts."""

    count = 0
    num_pages = 1


class KeysetChangeList(ChangeList):
    """A list that is read newest first along a key: no count, no offset, the same cost on any page.

    The model admin names the key in `keyset`; `?before=CURSOR` continues behind the row the cursor names.
    """

    def get_filters_params(self, params: dict[str, list[str]] | None = None) -> dict[str, Any]:
        """The filters of the query string, without the cursor."""
        found: dict[str, Any] = super().get_filters_params(params)
        found.pop(BEFORE, None)
        return found

    def get_results(self, request: HttpRequest) -> None:
        """Read one page."""
        keyset = cast(KeysetAdmin[Any], self.model_admin).keyset
        rows = self.queryset.order_by(*(f"-{name}" for name in keyset))
        before = request.GET.get(BEFORE, "")
        if before:
            rows = rows.filter(_behind(self.model, keyset, before))
        shown, cursor = self.read(rows, self.list_per_page)
        self.show_page(shown, cursor, continued=bool(before))

    def show_page(self, shown: list[Any], older: str, *, continued: bool) -> None:
        """Show these rows. `older` is the cursor of the next page, "" where there is none; `continued`: this is not the
        first one."""
        self.result_list = shown
        self.result_count = len(shown)
        self.full_result_count = len(shown)  # equal to the count shown: no 'of how many', which nobody counts
        self.show_full_result_count = False
        self.show_admin_actions = False
        self.can_show_all = False
        self.multi_page = False
        self.paginator = UncountedPaginator([], self.list_per_page)
        self.is_continued = continued
        self.older_url = self.get_query_string({BEFORE: older}) if older else ""
        self.newest_url = self.get_query_string()

    def read(self, rows: Any, limit: int) -> tuple[list[Any], str]:
        """A page of these rows, in their order, and the cursor that continues behind it; "" when that is all."""
        found = list(rows[: limit + 1])
        if len(found) <= limit:
            return found, ""
        keyset = cast(KeysetAdmin[Any], self.model_admin).keyset
        return found[:limit], cursor_of(getattr(found[limit - 1], name) for name in keyset)

    def get_query_string(self, new_params: Any = None, remove: Any = None) -> str:
        """The current filters with changes. The cursor belongs to one set of filters, so it is always dropped."""
        return str(super().get_query_string(new_params, [BEFORE, *(remove or ())]))


def cursor_of(values: Iterable[Any]) -> str:
    """The cursor that names a place in a list by the values of its key."""
    return "-".join(str((value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else value) for value in values)


def _behind(model: type[models.Model], keyset: tuple[str, ...], cursor: str) -> models.Q:
    """Rows after the cursor: `id < I`, or `at <= A and (at < A or id < I)`, a range for an index on `at`."""
    texts = cursor.split("-", len(keyset) - 1)
    parts = [_part(model, name, text) for name, text in zip(keyset, texts, strict=False)]
    if len(parts) != len(keyset):
        raise IncorrectLookupParameters
    last = models.Q(**{f"{keyset[-1]}__lt": parts[-1]})
    if len(keyset) == 1:
        return last
    return models.Q(**{f"{keyset[0]}__lte": parts[0]}) & (models.Q(**{f"{keyset[0]}__lt": parts[0]}) | last)


def _part(model: type[models.Model], name: str, text: str) -> object:
    field = model._meta.get_field(name)
    if isinstance(field, models.CharField):  # an id that is a text sorts as one
        return text
    value = number(text)
    if value is None:
        raise IncorrectLookupParameters
    try:
        return _EPOCH + value * _MICROSECOND if isinstance(field, models.DateTimeField) else value
    except OverflowError as exc:
        raise IncorrectLookupParameters from exc


class KeysetAdmin(ReadOnlyAdmin[_Model]):
    """A read-only log of any size. `keyset` is ("id",) or a time field and "id"; an index must serve it.

    An id may be a text when later rows have greater ones.
    """

    keyset: tuple[str, ...] = ("id",)
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # facets count the whole table
    sortable_by = ()
    list_per_page = 50
    change_list_template = "admin/hoosh/keyset_list.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that reads by key."""
        return KeysetChangeList
