"""What the control process does for the audit log: the jobs of the ledger's writer that keep it, and its anchors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from django.conf import settings

from audit.anchors import STATE, Anchors
from audit.checking import Busy, Checker
from audit.growing import set_state
from audit.heads import Head
from audit.keys import Signer
from audit.retention import AuditRetention
from audit.sequencer import Sequencer
from audit.walking import Fault
from budgets.settle import Job
from gateway import event_sources

Submit = Callable[[Callable[[Any], None]], "Future[None]"]


class AuditPlane(NamedTuple):
    """The parts, for the writer and for the plane."""

    jobs: list[Job]
    at_end: list[Job]
    anchors: Anchors


def signer() -> Signer:
    """The signing key as the settings say."""
    return Signer(settings.HOOSH_KEYS_DIR, text=settings.HOOSH_SIGNING_KEY, next_text=settings.HOOSH_SIGNING_KEY_NEXT)


def build(*, tell: Callable[[int, bytes], object], submit: Submit, rows: Callable[[], int]) -> AuditPlane:
    """`tell(size, root)` tells the workers of a checkpoint, `submit` gives work to the writer's thread, `rows` says how
    many usage rows it has settled."""
    anchors = Anchors(
        file=settings.HOOSH_AUDIT_ANCHOR_FILE,
        syslog=settings.HOOSH_AUDIT_ANCHOR_SYSLOG,
        event=event_sources.from_checkpoint,
        period_s=settings.HOOSH_AUDIT_ANCHOR_S,
        on_state=lambda text: submit(lambda connection: set_state(connection.alias, STATE, text)),
    )

    def told(head: Head) -> None:
        tell(head.size, head.root)
        anchors.take(head)

    def fault(found: Fault) -> None:
        # Not in the writer's thread: the site's database may be in somebody's transaction.
        threading.Thread(target=event_sources.from_audit_fault, args=(found,), name="audit-fault", daemon=True).start()

    sequencer, is_busy = Sequencer(signer(), on_checkpoint=told), Busy()
    checker = Checker(on_fault=fault, busy=lambda: is_busy(rows()))
    retention = AuditRetention(settings.HOOSH_AUDIT_MONTHS, clock=time.time)
    return AuditPlane([sequencer, checker, retention], [sequencer], anchors)
