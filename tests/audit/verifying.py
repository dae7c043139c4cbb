"""Verifies exports of made logs in process, with the one-file verifier."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest

from audit import canonical, merkle
from tests.audit.made_log import MadeLog
from tools.verify_audit import Export, Fault, read_export, read_key


def made(seed: str = "first", *, entries: int = 120, second: int = 60) -> MadeLog:
    """Two months; the key changes within the first."""
    log = MadeLog(seed)
    log.open("2026-11")
    log.fill(entries // 2, every=20)
    log.rotate(f"{seed} second")
    log.fill(entries // 2, every=20)
    log.open("2026-12")
    log.fill(second, every=20)
    return log


def check(lines: Sequence[bytes], log: MadeLog | str | None = None, anchored: Sequence[str] = ()) -> Export:
    """Verify; `log` is the one whose first key is pinned, or that key."""
    pinned = log.first_vkey if isinstance(log, MadeLog) else log
    export = Export(read_key(pinned) if pinned else None, list(anchored))
    read_export(io.BytesIO(b"".join(lines)), export)
    return export


def fault_of(lines: Sequence[bytes], log: MadeLog | str | None, anchored: Sequence[str] = ()) -> Fault:
    """The fault that verifying meets."""
    with pytest.raises(Fault) as raised:
        check(lines, log, anchored)
    return raised.value


def all_notes(log: MadeLog) -> list[str]:
    """Every checkpoint there is."""
    return [note for month in log.months for _, note in month.checkpoints]


def kind_of(line: bytes) -> str:
    """The kind of a line."""
    return str(json.loads(line)["kind"])


def seq_of(line: bytes) -> int:
    """The seq of an entry's line, 0 of others."""
    record = json.loads(line)
    return int(json.loads(record["body"])["seq"]) if record["kind"] == "entry" else 0


def changed_entry(lines: list[bytes], seq: int) -> list[bytes]:
    """The export with one entry replaced by a well-formed other one."""
    place = next(i for i, line in enumerate(lines) if kind_of(line) == "entry" and seq_of(line) == seq)
    entry = json.loads(json.loads(lines[place])["body"]) | {"target": "key:other"}
    body = canonical.encode(entry)
    line = canonical.encode({"kind": "entry", "body": body.decode(), "leaf": merkle.leaf_hash(body).hex()}) + b"\n"
    return [*lines[:place], line, *lines[place + 1 :]]
