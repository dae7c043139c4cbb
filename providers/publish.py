"""Publishing: rows become an immutable, numbered configuration document that workers run.

Nothing is published while the rows cannot run as a whole; the version before stays in force. Compiling happens before
the transaction begins, and the "config" counter shows whether a row changed meanwhile: then it is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from django.db import transaction

from audit.record import record
from events import names
from events.emit import emit
from providers import config, owners, sequences
from providers.compile import Problem, compile_document, problems
from providers.models import ConfigVersion, DraftChange, GatewaySettings

_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class PublishError(Exception):
    """The rows cannot be published; `problems` name each row, field and remedy."""

    def __init__(self, found: Sequence[Problem]) -> None:
        self.problems = tuple(found)
        super().__init__(" ".join(str(problem) for problem in found))


@dataclass(frozen=True, slots=True)
class _Compiled:
    blob: bytes
    digest: str
    document: config.ConfigDocument


def _compile() -> _Compiled:
    document = compile_document()
    found = problems(document)
    if found:
        raise PublishError(found)
    return _Compiled(config.pack(document), config.digest(document), document)


def publish(author: str, note: str = "") -> ConfigVersion:
    """Publish the rows as they are. Returns the version in force: a new one, or the last when nothing changed.

    Raises `PublishError` when they cannot run; the version before stays in force.
    """
    GatewaySettings.objects.get_or_create(pk=1)
    for _ in range(_ATTEMPTS):
        seen = sequences.current(sequences.CONFIG)
        made = _compile()
        with transaction.atomic():
            if sequences.locked(sequences.CONFIG) == seen:
                return _store(made, author, note)
    with transaction.atomic():  # rows change without pause: hold them still while they are read
        sequences.locked(sequences.CONFIG)
        return _store(_compile(), author, note)


def _store(made: _Compiled, author: str, note: str) -> ConfigVersion:
    last = ConfigVersion.objects.order_by("-number").defer("document").first()
    owned = owners.of_rows()
    if last is not None and last.digest == made.digest:
        if last.owners != owned:  # an import took rows over as they were
            ConfigVersion.objects.filter(pk=last.pk).update(owners=owned)
        DraftChange.objects.all().delete()
        return last
    version = ConfigVersion.objects.create(
        digest=made.digest, document=made.blob, owners=owned, author=author[:150], note=note[:500]
    )
    counts = {"providers": len(made.document.providers), "routes": len(made.document.routes)}
    data = {"digest": made.digest, "note": note, **counts}
    DraftChange.objects.all().delete()
    record("config.published", actor=author, target=str(version), data=data)
    emit(names.PUBLISHED, {"version": version.number, "author": author, **data})
    return version


@dataclass(slots=True)
class _Batch:
    """The publications one transaction asked for: the first to run does it for all."""

    size: int = 0
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class _PublishLater:
    author: str
    note: str
    batch: _Batch

    def __call__(self) -> None:
        if self.batch.is_done:
            return
        self.batch.is_done = True
        note = f"{self.note} and more" if self.note and self.batch.size > 1 else self.note
        try:
            publish(self.author, note)
        except PublishError as exc:
            _log.error("config.publish_failed", extra={"author": self.author, "problems": len(exc.problems)})
            found = [str(problem) for problem in exc.problems[:20]]
            record("config.publish_failed", actor=self.author, level="error", data={"problems": found})


_held_back: ContextVar[bool] = ContextVar("publishing_is_held_back", default=False)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, `publish_on_commit` does nothing: the caller publishes once, when everything is written."""
    token = _held_back.set(True)
    try:
        yield
    finally:
        _held_back.reset(token)


def publish_on_commit(author: str, note: str = "") -> None:
    """Publish once when the transaction under way commits (at once outside of one), however often this is called.

    Where changes wait as a draft, note only that there is one more: see `providers.drafts`.

    A failure raises nothing here, since the rows are already saved: it is an audit entry "config.publish_failed", and
    `draft_digest` goes on raising until the rows are mended.
    """
    if _held_back.get():
        return
    if waits():
        DraftChange.objects.create(author=author[:150], what=note[:200])
        return
    batch = _Batch()
    for _, callback, *_ in reversed(transaction.get_connection().run_on_commit):
        if isinstance(callback, _PublishLater) and not callback.batch.is_done:
            batch = callback.batch
            break
    batch.size += 1
    transaction.on_commit(_PublishLater(author, note, batch))


_cached: tuple[tuple[int, str], bytes] | None = None


def latest() -> tuple[int, bytes] | None:
    """Number and packed document of the version in force, or None before the first. One small query when unchanged."""
    global _cached
    key = ConfigVersion.objects.order_by("-number").values_list("number", "digest").first()
    if key is None:
        return None
    if _cached is None or _cached[0] != key:
        _cached = key, bytes(ConfigVersion.objects.values_list("document", flat=True).get(number=key[0]))
    return key[0], _cached[1]


_in_force: tuple[tuple[int, str], config.SettingsDoc] | None = None


def _settings_in_force() -> config.SettingsDoc | None:
    """Those of the version in force, None before the first. One small query when it is the same as before."""
    global _in_force
    key = ConfigVersion.objects.order_by("-number").values_list("number", "digest").first()
    if key is None:
        return None
    if _in_force is None or _in_force[0] != key:
        found = latest()
        if found is None:
            return None
        _in_force = key, config.unpack(found[1]).settings
    return _in_force[1]


def is_reviewed() -> bool:
    """Whether the version in force asks for a review of what is saved.

    It is the version's word that counts, not the row's: to put an end to reviews is itself reviewed.
    """
    settings = _settings_in_force()
    return settings is not None and settings.review


def waits() -> bool:
    """Whether what is saved waits as a draft, for a review or for anybody who publishes it."""
    settings = _settings_in_force()
    return settings is not None and (settings.review or settings.drafts)


def publish_document(document: config.ConfigDocument, author: str, note: str) -> ConfigVersion:
    """Publish this document, whatever the rows say. Raises `PublishError` when it cannot run."""
    found = problems(document)
    if found:
        raise PublishError(found)
    made = _Compiled(config.pack(document), config.digest(document), document)
    with transaction.atomic():
        sequences.locked(sequences.CONFIG)
        waiting = list(DraftChange.objects.all())
        version = _store(made, author, note)
        DraftChange.objects.bulk_create(waiting)  # the draft is not what was published
    return version


def draft_digest() -> str:
    """The digest the rows would be published under now. Raises `PublishError` when they cannot run."""
    return _compile().digest
