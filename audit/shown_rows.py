"""Two operators in one form: a page carries what its row was when it was shown, so that a later save overwrites nothing
unseen.

What is carried is a signed digest of each field's value, never a value. A save compares it with the row as it is: where
somebody else has changed a field that this save would write over, the form comes back and says who changed what, with
both values; saved again, it is saved knowingly. A form without the digests (a program's) is not compared.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from django.contrib.admin.utils import unquote
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.forms.models import _get_foreign_key  # as Django's admin does
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from audit.changes import object_of
from audit.unusable import number

SHOWN = "hoosh_shown"  # the name of the hidden field
AGAIN = "Save again to keep yours."
_SALT = "hoosh.shown"
_LENGTH = 12  # characters of a digest
_TEXT = 80
_LATE = dt.timedelta(seconds=5)  # an entry may be that much older than the look that did not see its change yet
_ENTRIES = 20
_VOLATILE = frozenset({"used_at", "updated_at", "created_at", "last_login", "seq"})

Digests = dict[str, str]


def digest(value: object) -> str:
    """What stands for a value."""
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()[:_LENGTH]


def digests_of(row: models.Model, *, every: bool = False) -> Digests:
    """What a row is, field by field: what people may write, with `every` also what services write."""
    found = {
        field.name: digest(field.get_prep_value(getattr(row, field.attname)))
        for field in row._meta.concrete_fields
        if not field.primary_key and field.name not in _VOLATILE and (field.editable or every)
    }
    for many in row._meta.many_to_many:
        if many.editable:
            found[many.name] = digest(sorted(getattr(row, many.name).values_list("pk", flat=True)))
    return found


def told(row: models.Model, name: str) -> str:
    """A field's value in words, cut to fit."""
    field = row._meta.get_field(name)
    if field.many_to_many:
        text = ", ".join(sorted(str(each) for each in getattr(row, name).all()))
    elif getattr(field, "choices", None):
        text = str(getattr(row, f"get_{name}_display")())
    else:
        value = getattr(row, name)
        text = ("yes" if value else "no") if isinstance(value, bool) else "" if value is None else str(value)
    return f"“{text[:_TEXT]}”" if text else "nothing"


def since(row: models.Model, moment: dt.datetime, fields: Iterable[str] = ()) -> str:
    """Who changed one of these fields (none = any) of a row since then, newest first, in words; "" where the log knows
    of nobody."""
    from audit import reading
    from audit.models import OutboxEntry

    wanted = {part for name in fields for part in (name, f"{name}_id")}

    def is_meant(action: str, data: Mapping[str, Any]) -> bool:
        changed = {*data.get("fields", ()), *data}
        return not action.endswith(".created") and (not wanted or not wanted.isdisjoint(changed))

    after = moment - _LATE
    waiting = OutboxEntry.objects.filter(data__object=object_of(row), at__gte=after).order_by("-pk")[:_ENTRIES]
    found = reading.page(reading.Question(object=object_of(row), since=after), _ENTRIES)
    names = [(each.actor, each.at) for each in waiting if is_meant(each.action, {**each.data, **each.personal})]
    names += [
        (each.actor, each.entry.at)
        for each in reading.readable(found.entries)
        if is_meant(each.entry.action, {**each.data, **each.personal})
    ]
    newest: dict[str, dt.datetime] = {}
    for actor, at in names:
        newest.setdefault(actor or "somebody", at)
    return ", ".join(f"{actor} at {at.astimezone(dt.UTC):%H:%M:%S} UTC" for actor, at in list(newest.items())[:3])


def sealed(kind: str, content: Mapping[str, Any]) -> str:
    """What a page carries."""
    return signing.dumps({"of": kind, "at": timezone.now().timestamp(), **content}, salt=_SALT, compress=True)


def opened(text: str, kind: str) -> dict[str, Any] | None:
    """What a page carried; None for what was not made here, or for another page."""
    try:
        found = signing.loads(text, salt=_SALT)
    except signing.BadSignature:
        return None
    return found if isinstance(found, dict) and found.get("of") == kind else None


class ComparedPage:
    """For a `ModelAdmin`: its change form and its editable list compare what they save with what was shown."""

    def gate(self, request: HttpRequest, object_id: str | None) -> None:
        """Hold what the writers of these rows take first, so that what is compared is what is written over. Called in
        the transaction of a save, before the row is read."""
        page = cast(Any, self)
        if object_id is not None and (row_id := number(object_id)) is not None:
            page.model._base_manager.select_for_update().filter(pk=row_id).first()

    def _changeform_view(
        self, request: HttpRequest, object_id: str | None, form_url: str, extra_context: dict[str, Any] | None
    ) -> HttpResponse:
        if request.method == "POST" and transaction.get_connection().in_atomic_block:
            self.gate(request, unquote(object_id) if object_id else None)
        page = cast(Any, super())
        return cast(HttpResponse, page._changeform_view(request, object_id, form_url, extra_context))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form, which for a save compares."""
        form = cast(Any, super()).get_form(request, obj, change=change, **kwargs)
        if obj is None or not change or request.method != "POST":
            return form
        compared = _Compared(self, request, copy.copy(obj))
        request._hoosh_compared = compared  # type: ignore[attr-defined]

        def post_clean(self: Any) -> None:
            form._post_clean(self)
            compared.judge(self)

        return type(form.__name__, (form,), {"_post_clean": post_clean})

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """With what the row is now, for its next save."""
        row = context.get("original")
        if row is not None and cast(Any, self).has_change_permission(request, row):
            compared: _Compared | None = getattr(request, "_hoosh_compared", None)
            if compared is None:
                compared = _Compared(self, request, row)
            context[SHOWN] = compared.next()
        return cast(Any, super()).render_change_form(request, context, *args, **kwargs)

    def get_changelist_formset(self, request: HttpRequest, **kwargs: Any) -> Any:
        """The formset of the editable columns, which for a save compares."""
        made = cast(Any, super()).get_changelist_formset(request, **kwargs)
        names = tuple(cast(Any, self).list_editable)
        return type(made.__name__, (_ComparedRows, made), {"names": names, "sent": request.POST.get(SHOWN)})

    def refuse_changed(self, request: HttpRequest) -> None:
        """For pages that judge their form before their transaction: refuse a row that was changed in between. Raises
        `ValidationError`."""
        compared: _Compared | None = getattr(request, "_hoosh_compared", None)
        if compared is not None:
            compared.refuse_changed()


class _Compared:
    """One save of one row."""

    def __init__(self, page: Any, request: HttpRequest, row: models.Model) -> None:
        """`row` is as it is stored."""
        self._page, self._request, self._row = page, request, row
        self._kind = object_of(row)
        self._now, self._inlines = digests_of(row), self._inline_digests()
        self._next, self._next_inlines = dict(self._now), dict(self._inlines)

    def _inline_digests(self) -> dict[str, dict[str, Digests]]:
        found: dict[str, dict[str, Digests]] = {}
        for inline in self._page.get_inline_instances(self._request, self._row):
            key = _get_foreign_key(type(self._row), inline.model, fk_name=inline.fk_name)
            rows = inline.model._base_manager.filter(**{key.name: self._row}).order_by("pk")
            name = inline.model._meta.label_lower
            found[name] = {str(row.pk): {"row": digest(digests_of(row, every=True)), "name": str(row)} for row in rows}
        return found

    def next(self) -> str:
        """What the page shown now carries."""
        return sealed(self._kind, {"fields": self._next, "inlines": self._next_inlines})

    def refuse_changed(self) -> None:
        """Raises `ValidationError` where the row is not what it was when the form was judged."""
        row = type(self._row)._base_manager.filter(pk=self._row.pk).first()
        if row is None or digests_of(row) != self._now:
            raise ValidationError("Nothing was saved: another change came first. Look again.")

    def judge(self, form: Any) -> None:
        """Add errors for what the form would write over unseen."""
        _keep_precision(form, self._row)
        text = self._request.POST.get(SHOWN)
        if text is None:
            return
        shown = opened(text, self._kind)
        if shown is None:
            form.add_error(None, f"This page is too old to tell what was changed since. Look, then: {AGAIN}")
            return
        changed = {name for name, value in self._now.items() if shown["fields"].get(name, value) != value}
        wrong = list(self._overwritten(form, changed))
        rows = list(self._changed_rows(shown["inlines"]))
        for name in changed - {each for each, _ in wrong}:
            if name in form.errors:  # it is not known yet whether it would be written over
                self._next[name] = shown["fields"][name]
        if not wrong and not rows:
            return
        who = since(self._row, dt.datetime.fromtimestamp(shown["at"], dt.UTC), () if rows else changed)
        who = who or "somebody"
        form.add_error(None, f"Changed by {who} while you had it open. {AGAIN}")
        for name, message in wrong:
            form.add_error(name if name in form.fields else None, message)
        for message in rows:
            form.add_error(None, message)

    def _overwritten(self, form: Any, changed: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in sorted(changed):
            if name in form.errors:
                continue
            field: Any = self._row._meta.get_field(name)
            label = str(getattr(field, "verbose_name", name))
            if field.many_to_many:
                if name not in form.cleaned_data:
                    continue
                chosen = form.cleaned_data[name]
                mine, yours = digest(sorted(each.pk for each in chosen)), ", ".join(sorted(map(str, chosen)))[:_TEXT]
                text = f"“{yours}”" if yours else "nothing"
            else:
                mine, text = digest(field.get_prep_value(getattr(form.instance, field.attname))), ""
                text = told(form.instance, name) if mine != self._now[name] else ""
            if mine != self._now[name]:
                yield name, f"{label.capitalize()} is {told(self._row, name)} now; yours is {text}."

    def _changed_rows(self, shown: Mapping[str, Mapping[str, Digests]]) -> Iterator[str]:
        for kind, rows in self._inlines.items():
            before = shown.get(kind, {})
            for pk in sorted({*rows, *before}, key=int):
                old, new = before.get(pk), rows.get(pk)
                if old is None and new is not None:
                    yield f"“{new['name']}” was added."
                elif new is None and old is not None:
                    yield f"“{old['name']}” was deleted."
                elif old is not None and new is not None and old["row"] != new["row"]:
                    yield f"“{old['name']}” was changed; it is “{new['name']}” now."


def _keep_precision(form: Any, row: models.Model) -> None:
    """Give moments back what a form cannot carry: it shows whole seconds, and sends those back for a field that nobody
    touched. `row` is as it is stored."""
    for field in row._meta.concrete_fields:
        if isinstance(field, models.DateTimeField) and field.name in form.fields:
            stored, mine = getattr(row, field.attname), getattr(form.instance, field.attname)
            if stored is not None and mine == stored.replace(microsecond=0):
                setattr(form.instance, field.attname, stored)


class _ComparedRows:
    """The editable columns of a list: fields nobody here touched keep what somebody else made of them."""

    names: tuple[str, ...] = ()
    sent: str | None = None

    def clean(self) -> None:
        """Compare each row that would be saved."""
        formset = cast(Any, self)
        cast(Any, super()).clean()
        self._next: dict[str, Digests] = {}
        shown = opened(self.sent, self._kind()) if self.sent is not None else None
        if shown is None:
            return
        for form in formset.initial_forms:
            before = shown["rows"].get(str(form.instance.pk))
            if before is not None:
                self._next[str(form.instance.pk)] = dict(before)
                if form.has_changed():
                    self._judge(form, before, dt.datetime.fromtimestamp(shown["at"], dt.UTC))

    def _judge(self, form: Any, before: Digests, moment: dt.datetime) -> None:
        for name in self.names:
            if name not in before or name not in form.cleaned_data or name not in form.changed_data:
                continue
            field = form.instance._meta.get_field(name)
            now = _prepared(field, form.initial.get(name))
            mine = _prepared(field, form.cleaned_data[name])
            if before[name] == now or mine == now:
                continue
            stored = field.to_python(form.initial.get(name))
            if mine == before[name]:  # not touched here
                form.cleaned_data[name] = stored
                setattr(form.instance, field.attname, stored)
                form.changed_data.remove(name)
                continue
            who = since(form.instance, moment, (name,)) or "somebody"
            yours = form.cleaned_data[name]
            form.add_error(name, f"Changed by {who} to “{stored}”; yours is “{yours}”. {AGAIN}")
            self._next[str(form.instance.pk)][name] = now

    def _kind(self) -> str:
        return str(cast(Any, self).model._meta.label_lower)

    @property
    def shown(self) -> str:
        """What the list carries: what its rows are, or were when they were last told."""
        formset = cast(Any, self)
        rows = getattr(self, "_next", None) or {
            str(form.instance.pk): {
                name: _prepared(form.instance._meta.get_field(name), form.initial.get(name)) for name in self.names
            }
            for form in formset.initial_forms
        }
        return sealed(self._kind(), {"rows": rows})


def _prepared(field: Any, value: object) -> str:
    return digest(field.get_prep_value(value))
