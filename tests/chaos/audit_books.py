"""The audit log of a run that has ended: no fork, no gap, every settled row in one batch, every batch logged once.

Reads the tables with the driver alone and builds records and trees anew.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from audit import canonical, merkle, notes
from tests.chaos.books import Verdict
from tests.chaos.databases import fetch, rows

TRUTH = "entries.truth"  # in the run's directory: targets of entries whose transaction was committed, one a line
_COLUMNS = {
    **{"agent": "agent_id", "at": "at", "attempt": "attempt", "audio_in": "input_audio_tokens"},
    **{"audio_out": "output_audio_tokens", "basis": "basis", "cache_write": "cache_write_tokens"},
    **{"cached": "cached_tokens", "config": "config_version", "cost_pico": "cost_pico", "decision": "shape"},
    **{"endpoint": "endpoint", "error": "error", "id": "rid", "image_in": "input_image_tokens"},
    **{"input": "input_tokens", "key": "key_id", "model": "model", "output": "output_tokens", "pool": "pool_id"},
    **{"pools": "pools", "price": "price_id", "provider": "provider_id", "reasoning": "reasoning_tokens"},
    **{"route": "route_id", "status": "status", "stream": "stream", "team": "team_id", "tokens": "tokens"},
    **{"upstream_model": "upstream_model"},
}


def check_log(connection: Any, verdict: Verdict) -> int:
    """Entries, numbers, trees and signatures; how many entries there are."""
    leaves: list[bytes] = []
    numbers: dict[str, int] = defaultdict(int)
    query = "SELECT seq, source, number, action, body, leaf FROM audit_entry ORDER BY seq"
    for seq, source, number, action, body, leaf in rows(connection, query):
        if seq != len(leaves):
            verdict.note("lost", f"behind entry {len(leaves) - 1} comes {seq}")
            return len(leaves)
        if merkle.leaf_hash(body.encode()) != bytes(leaf) or json.loads(body)["seq"] != str(seq):
            verdict.note("doubled", f"entry {seq} is not what its hash says")
        if number != numbers[source] + 1 or action in ("outbox.gap", "outbox.reset"):
            verdict.note("lost", f"entry {seq}: behind number {numbers[source]} of {source} comes {number} ({action})")
        numbers[source] = number
        leaves.append(bytes(leaf))
    check_heads(connection, leaves, verdict)
    return len(leaves)


def check_heads(connection: Any, leaves: list[bytes], verdict: Verdict) -> None:
    """Every checkpoint is over the entries there are, and follows the one before it."""
    ((state,),) = fetch(connection, "SELECT value FROM audit_auditstate WHERE name = 'keys'")
    vkey = notes.parse_vkey(json.loads(state)[0]["vkey"])
    firsts = dict(fetch(connection, "SELECT number, first_seq FROM audit_log ORDER BY number"))
    tree, log, previous = merkle.Frontier(), 0, notes.NO_PREVIOUS
    for number, size, root, note in rows(connection, "SELECT log, size, root, note FROM audit_checkpoint ORDER BY id"):
        if number != log:
            tree, log = merkle.Frontier(), number
        for leaf in leaves[firsts[log] + tree.size : firsts[log] + size]:
            tree.append(leaf)
        try:
            signed = notes.verify(note, [vkey])
        except notes.NoteError as exc:
            verdict.note("doubled", f"checkpoint {size} of log {log}: {exc}")
            return
        if (signed.size, signed.root, bytes(root), signed.previous) != (tree.size, tree.root(), signed.root, previous):
            verdict.note("doubled", f"checkpoint {size} of log {log} is a fork, or does not follow the one before")
        previous = notes.note_hash(note)
    if not log or firsts[log] + tree.size != len(leaves):
        verdict.note("lost", "the last entries are under no checkpoint")


def check_batches(connection: Any, verdict: Verdict) -> int:
    """Usage rows, batches and entries against each other; how many batches there are."""
    told: dict[tuple[str, str], tuple[str, str]] = {}
    for (body,) in rows(connection, "SELECT body FROM audit_entry WHERE source = 'usage' ORDER BY seq"):
        for batch in json.loads(body)["data"]["batches"]:
            name = batch["owner"], batch["number"]
            if name in told:
                verdict.note("doubled", f"batch {name} is in two entries")
            told[name] = batch["count"], batch["root"]
    leaves: dict[int, list[bytes]] = defaultdict(list)
    query = f"SELECT batch, {', '.join(_COLUMNS.values())} FROM budgets_usage ORDER BY id"
    for batch, *values in rows(connection, query):
        leaves[batch].append(merkle.leaf_hash(record(values)))
    last: dict[str, int] = defaultdict(int)
    query = "SELECT id, owner, number, count, root, leaves FROM audit_usagebatch ORDER BY owner, number"
    count = 0
    for key, owner, number, size, root, hashes in rows(connection, query):
        count += 1
        if number != last[owner] + 1:
            verdict.note("lost", f"behind batch {last[owner]} of {owner} comes {number}")
        last[owner] = number
        mine = leaves.pop(key, [])
        if b"".join(mine) != bytes(hashes) or size != len(mine) or merkle.root_of(mine) != bytes(root):
            verdict.note("lost", f"batch {owner}/{number} has not the rows that name it")
        if told.pop((owner, str(number)), None) != (str(size), bytes(root).hex()):
            verdict.note("lost", f"batch {owner}/{number} is not in the log as it is")
    for key in leaves:
        verdict.note("lost", f"{len(leaves[key])} usage rows name batch {key}, which does not exist")
    for name in told:
        verdict.note("doubled", f"the log has a batch {name} that nobody settled")
    return count


def record(values: list[Any]) -> bytes:
    """A usage row's record, out of its columns."""
    found = dict(zip(_COLUMNS, values, strict=True))
    if isinstance(found["at"], str):
        found["at"] = dt.datetime.fromisoformat(found["at"]).replace(tzinfo=dt.UTC)
    return canonical.encode({**found, "stream": bool(found["stream"])})


def check_entries(connection: Any, directory: Path, verdict: Verdict) -> int:
    """What was committed on the site's side is in the log exactly once, in its order; how much it was."""
    committed = (directory / TRUTH).read_text().split() if (directory / TRUTH).exists() else []
    logged: dict[str, int] = {}
    for seq, target in rows(connection, "SELECT seq, target FROM audit_entry WHERE source = 'site' ORDER BY seq"):
        if target in logged:
            verdict.note("doubled", f"the entry about {target} is in the log twice")
        logged[target] = seq
    for target in committed:
        if target not in logged:
            verdict.note("lost", f"the entry about {target} was committed and is not in the log")
    return len(committed)
