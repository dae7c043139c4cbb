"""`tools/verify_audit.py` over exports of a made log: what it accepts, what it finds, and where."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
from collections.abc import Iterator, Sequence
from hashlib import sha256

import pytest

from audit import canonical, merkle, notes
from tests.audit.made_log import MadeLog, closed, key_of
from tests.audit.verifying import all_notes, changed_entry, check, fault_of, kind_of, made, seq_of
from tools.verify_audit import Export, Fault, read_export, read_key


class Snapshots:
    """An export of 1,000 entries and the verifier's state before each of its lines, so that a change at a line is
    verified from there on: what comes before is the same."""

    def __init__(self, log: MadeLog) -> None:
        self.lines = log.export()
        self.before: list[tuple[bytes, object]] = []
        export = Export(read_key(log.first_vkey), [])
        for line in self.lines:
            digest, export.digest = export.digest, None
            self.before.append((pickle.dumps(export), digest.copy()))
            export.digest = digest
            export.take(line)

    def fault(self, place: int, rest: bytes | Sequence[bytes]) -> Fault | None:
        """The fault met when `rest` follows the first `place` lines."""
        state, digest = self.before[place]
        export = pickle.loads(state)
        export.digest = digest.copy()
        try:
            read_export(io.BytesIO(rest if isinstance(rest, bytes) else b"".join(rest)), export)
        except Fault as fault:
            return fault
        return None


@pytest.fixture(scope="module")
def log() -> MadeLog:
    return made(entries=700, second=298)


@pytest.fixture(scope="module")
def snapshots(log: MadeLog) -> Snapshots:
    return Snapshots(log)


def test_an_export_of_a_thousand_entries_fits(log, snapshots):
    export = check(snapshots.lines, log, all_notes(log))
    summary = export.summary()
    records = [record for _, _, _, records in log.batches for record in records]
    assert summary["entries"] == log.seq >= 1000
    assert summary["checkpoints"] == summary["anchors_matched"] == len(all_notes(log))
    assert (summary["batches"], summary["requests"]) == (len(log.batches), len(records))
    cost = sum(int(json.loads(record)["cost_pico"]) for record in records)
    assert float(summary["cost_usd"]) == pytest.approx(cost / 1e12, abs=1e-12)
    assert summary["keys"] == [log.first_vkey, str(log.vkey)]
    assert (summary["pruned_entries"], summary["pruned_requests"], summary["anchors_elsewhere"]) == (0, 0, 0)


def test_one_month_is_verified_from_the_first_key_and_from_a_later_one(log):
    december = log.export(2)
    assert check(december, log).summary()["keys"][0] == log.first_vkey
    assert check(december, str(log.vkey)).summary()["keys"] == [str(log.vkey)]
    check(log.export(1, 1), log)
    assert "does not lead there" in fault_of(december, MadeLog("stranger").first_vkey).what


def test_a_key_that_was_rotated_below_the_months_last_checkpoint_is_followed():
    log = MadeLog()
    log.open("2026-11")
    log.fill(30)
    log.rotate("second")
    log.checkpoint()
    log.open("2026-12")
    log.rotate("third")
    log.fill(10)
    for first in (1, 2):
        assert check(log.export(first), log).keys[-1].vkey == str(log.vkey)


def test_a_month_from_before_a_change_of_keys_is_signed_by_the_key_in_force_and_proves_the_way_to_it():
    log = MadeLog()
    log.open("2026-11")
    log.fill(30)
    log.open("2026-12")
    for seed in ("second", "third"):
        log.rotate(seed)
        log.fill(10)
    november = log.export(1, 1)
    assert check(november, log).keys[-1].vkey == str(log.vkey)
    places = [place for place, line in enumerate(november) if kind_of(line) == "rotation"]
    assert places == [len(november) - 3, len(november) - 2]
    for place in places:
        without = [*november[:place], *november[place + 1 : -1]]
        fault_of(closed(without, log.key), log)
    assert "does not follow" in fault_of(closed([*november[:-1], november[places[1]]], log.key), log).what
    forged = json.loads(november[places[0]]) | {"checkpoint": log.months[0].checkpoints[-1][1]}
    fault_of(closed([*november[: places[0]], canonical.encode(forged) + b"\n"], log.key), log)


# Structure: deletion, insertion, swap, duplication, head and tail cut.


def test_every_deleted_line_is_found_before_the_end(snapshots):
    lines = snapshots.lines
    for place in range(len(lines) - 1):
        fault = snapshots.fault(place, lines[place + 1 : place + 90] if place + 90 < len(lines) else lines[place + 1 :])
        assert fault is not None
        assert fault.line < len(lines) - 1 or place > len(lines) - 8
        if kind_of(lines[place]) == "entry" == kind_of(lines[place + 1]):
            assert (fault.line, fault.seq) == (place + 1, seq_of(lines[place]))


def test_every_swap_of_neighbours_is_found(snapshots):
    lines = snapshots.lines
    for place in range(len(lines) - 1):
        swapped = [lines[place + 1], lines[place], *lines[place + 2 : place + 60]]
        assert snapshots.fault(place, swapped) is not None, place


def test_every_swap_of_distant_entries_is_found(snapshots):
    lines = snapshots.lines
    places = [i for i, line in enumerate(lines) if kind_of(line) == "entry"]
    for place, other in zip(places, places[7:], strict=False):
        swapped = [lines[other], *lines[place + 1 : other], lines[place], *lines[other + 1 : other + 60]]
        fault = snapshots.fault(place, swapped)
        assert fault is not None
        assert fault.line == place + 1


def test_every_doubled_line_is_found_at_once_or_with_its_batch(snapshots):
    lines = snapshots.lines
    for place, line in enumerate(lines):
        fault = snapshots.fault(place, [line, *lines[place : place + 30]])
        assert fault is not None
        if kind_of(line) != "usage":
            assert fault.line == place + 2


def test_an_entry_inserted_anywhere_is_found(snapshots):
    lines = snapshots.lines
    for place in range(1, len(lines)):
        forged = json.loads(json.loads(lines[2])["body"])
        forged |= {"seq": str(seq_of(lines[place])), "number": "1", "action": "made.up", "source": "site"}
        body = canonical.encode(forged)
        entry = canonical.encode({"kind": "entry", "body": body.decode(), "leaf": merkle.leaf_hash(body).hex()}) + b"\n"
        assert snapshots.fault(place, [entry, *lines[place : place + 30]]) is not None


def test_a_usage_record_inserted_anywhere_is_found(snapshots):
    lines = snapshots.lines
    usage = canonical.encode({"kind": "usage", "body": canonical.encode({"id": "made up"}).decode()}) + b"\n"
    for place in range(1, len(lines)):
        assert snapshots.fault(place, [usage, *lines[place : place + 30]]) is not None


def test_every_head_cut_is_found(snapshots):
    lines = snapshots.lines
    for cut in range(1, len(lines)):
        assert snapshots.fault(0, lines[cut : cut + 3]) is not None
        assert snapshots.fault(1, lines[cut + 1 : cut + 90]) is not None


def test_every_tail_cut_is_found(snapshots):
    lines = snapshots.lines
    for cut in range(len(lines)):
        fault = snapshots.fault(cut, b"")
        assert fault is not None
        assert fault.line == cut + 1
        assert snapshots.fault(cut, lines[-1:]) is not None or cut == len(lines) - 1


def test_a_tail_cut_by_somebody_with_the_key_is_found_where_it_is_anchored(log):
    places = [(month, at) for month in log.months for at in range(len(month.checkpoints))]
    for month, at in places[:-1:3]:
        short = pickle.loads(pickle.dumps(log.export()))
        size, note = month.checkpoints[at]
        end = next(
            i for i, line in enumerate(short) if kind_of(line) == "checkpoint" and json.loads(line)["note"] == note
        )
        seq = month.first_seq + size
        named = sum(1 for batch_seq, *_ in log.batches if batch_seq < seq)
        batches = [i for i, line in enumerate(short) if kind_of(line) == "batch"]
        usage = short[batches[0] : batches[named]] if named < len(batches) else short[batches[0] : -1]
        header = json.loads(short[0]) | {"to_log": str(month.number)}
        key = key_of("first" if month.number == 1 and month.first_seq + size <= 351 else "first second")
        cut = closed([canonical.encode(header) + b"\n", *short[1 : end + 1], *usage], key)
        check(cut, log)  # as nothing tells of more
        anchored = all_notes(log)
        if at + 1 < len(month.checkpoints):
            assert "which was cut off" in fault_of(cut, log, anchored).what
        else:
            assert check(cut, log, anchored).summary()["anchors_elsewhere"] > 0


# Bits.


def proven_entries(log: MadeLog) -> Iterator[tuple[bytes, bytes, int, int, list[bytes], bytes]]:
    """Each entry's body, leaf hash and index, and its proof below its month's last checkpoint: size, path, root."""
    for month in log.months:
        size, note = month.checkpoints[-1]
        reader = merkle.reader_of(month.leaves)
        for index, (body, leaf) in enumerate(zip(month.bodies, month.leaves, strict=True)):
            yield body, leaf, index, size, merkle.inclusion_proof(reader, index, size), notes.parse(note).root


def test_every_bit_of_every_entry_is_below_the_signed_root(log):
    for body, leaf, index, size, proof, root in proven_entries(log):
        assert merkle.verify_inclusion(leaf, index, size, proof, root)
        flipped = bytearray(b"\0" + body)
        for place in range(1, len(flipped)):
            good = flipped[place]
            for bit in (1, 2, 4, 8, 16, 32, 64, 128):
                flipped[place] = good ^ bit
                other = sha256(flipped).digest()
                assert other != leaf
            flipped[place] = good
            if place % 4 == index % 4:
                assert not merkle.verify_inclusion(other, index, size, proof, root)


def test_two_thousand_flipped_bits_of_the_export_are_found_and_named(snapshots):
    lines = snapshots.lines
    whole = b"".join(lines)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    chosen = random.Random(20261105)
    for _ in range(2000):
        place = chosen.randrange(len(lines))
        at = chosen.randrange(len(lines[place]) * 8)
        flipped = bytearray(whole[starts[place] :])
        flipped[at >> 3] ^= 1 << (at & 7)
        fault = snapshots.fault(place, bytes(flipped))
        assert fault is not None, (place, at)
        if kind_of(lines[place]) in ("entry", "checkpoint"):
            assert fault.line == place + 1
        if kind_of(lines[place]) == "entry":
            assert fault.seq == seq_of(lines[place])


# Changes by somebody who can compute hashes, but not sign.


def test_an_entry_replaced_with_its_hash_is_found_at_the_next_checkpoint():
    log = made()
    fault = fault_of(closed(changed_entry(log.export(), 27)[:-1], log.key), log)
    assert "entries 21 to 40 are not those that were signed" in fault.what
    assert fault.seq == 21


@pytest.mark.parametrize("kind", ["usage", "batch"])
def test_usage_that_is_left_out_is_found_by_reconciling(kind):
    log = made()
    lines = log.export()[:-1]
    for place, line in enumerate(lines):
        if kind_of(line) != kind:
            continue
        left_out = lines[:place] + lines[place + 1 :]
        if kind == "batch":
            after = next((i for i in range(place, len(left_out)) if kind_of(left_out[i]) == "batch"), len(left_out))
            del left_out[place:after]
        fault = fault_of(closed(left_out, log.key), log)
        assert "usage records" in fault.what
        seq = [seq for seq, owner, number, _ in log.batches if f"batch {number} of {owner!r}" in fault.what]
        assert fault.seq in seq


def test_a_usage_record_that_is_changed_is_found_with_its_batch():
    log = made()
    lines = log.export()[:-1]
    place = next(i for i, line in enumerate(lines) if kind_of(line) == "usage")
    body = canonical.encode(json.loads(json.loads(lines[place])["body"]) | {"cost_pico": "1"})
    lines[place] = canonical.encode({"kind": "usage", "body": body.decode()}) + b"\n"
    fault = fault_of(closed(lines, log.key), log)
    assert "batch 1 of 'w0', before this line, has usage records that are not those of its Merkle root" in fault.what
    assert fault.seq == log.batches[0][0]


def test_a_batch_that_no_entry_names_is_found():
    log = made()
    log.batches.append((log.seq - 1, "w9", 1, [canonical.encode({"id": "unlogged"})]))
    assert "named by no entry" in fault_of(log.export(), log).what


def test_events_taken_out_before_they_were_logged_leave_a_gap():
    for source, number in (("site", 30), ("ledger", 9), ("site", 1)):
        log = MadeLog()
        log._numbers[source] = number if number == 1 else 0
        log.open("2026-11")
        log.fill(40)
        log._numbers[source] += number > 1
        log.fill(40)
        assert f"of source {source!r} follows" in fault_of(log.export(), log).what


def test_a_gap_that_the_log_itself_tells_of_is_a_fault_once_all_else_fits():
    log = MadeLog()
    log.open("2026-11")
    log.fill(40)
    last = log._numbers["site"]
    told = log.seq
    log.entry("log", "outbox.gap", {"source": "site", "from": last + 1, "to": last + 3})
    log._numbers["site"] += 3
    log.fill(40)
    lines = log.export()
    fault = fault_of(lines, log)
    assert f"number {last + 1} to {last + 3} of source 'site' were taken out" in fault.what
    assert (kind_of(lines[fault.line - 1]), seq_of(lines[fault.line - 1]), fault.seq) == ("entry", told, told)
    worse = [*lines[: fault.line + 5], *lines[fault.line + 6 :]]
    assert fault_of(worse, log).seq > told
    log.entry("log", "outbox.gap", {"source": "site", "from": 1, "to": 2})
    log.checkpoint()
    assert "contradict" in fault_of(log.export(), log).what


def test_a_batch_taken_out_before_it_was_logged_leaves_a_gap():
    log = MadeLog()
    log.open("2026-11")
    log.usage(("w1", 3), ("w2", 1))
    log._batch_numbers["w1"] += 1
    log.usage(("w1", 2))
    log.checkpoint()
    assert "batch 3 of 'w1' follows where 2 is due" in fault_of(log.export(), log).what


# Signatures, keys, anchors.


def test_an_export_signed_anew_with_another_key_is_found_by_the_pinned_key():
    log, forged = made(), made("somebody else")
    assert "does not lead there" in fault_of(forged.export(), log).what
    assert check(forged.export()).summary()["keys"][0] == forged.first_vkey


def test_an_end_signed_with_another_key_is_found():
    log = made()
    assert "signature" in fault_of(closed(log.export()[:-1], key_of("somebody else")), log).what


def test_a_log_written_anew_with_the_true_key_is_found_against_the_anchors():
    true, rewritten = made(), MadeLog()
    rewritten.open("2026-11")
    rewritten.fill(60, every=20)
    rewritten.entry("site", "made.up", {})
    rewritten.checkpoint()
    rewritten.rotate("first second")
    rewritten.fill(60, every=20)
    rewritten.open("2026-12")
    rewritten.fill(60, every=20)
    check(rewritten.export(), true)
    for anchored in (all_notes(true), all_notes(true)[-1:], all_notes(true)[4:5]):
        assert "anchored" in fault_of(rewritten.export(), true, anchored).what
    assert check(rewritten.export(), true, all_notes(true)[:3]).summary()["anchors_matched"] == 3


def test_no_time_that_a_rewritten_log_gives_itself_hides_it_from_the_anchors():
    true, rewritten = made(), MadeLog()
    rewritten.open("2026-11")
    rewritten.entry("site", "made.up", {})
    rewritten.fill(120, every=20)
    lines = rewritten.export()
    header = json.loads(lines[0]) | {"at": notes.parse(all_notes(true)[0]).at}
    backdated = closed([canonical.encode(header) + b"\n", *lines[1:-1]], rewritten.key)
    check(backdated, true)
    for anchored, found in ((all_notes(true), "anchored otherwise"), (all_notes(true)[1:3], "not in the export")):
        assert found in fault_of(backdated, true, anchored).what


def test_a_rewritten_log_of_another_month_is_found_against_the_anchors():
    true, rewritten = made(), MadeLog()
    rewritten.open("2026-12-again")
    rewritten.fill(120, every=20)
    check(rewritten.export(), true)
    assert "was anchored and is not in the export" in fault_of(rewritten.export(), true, all_notes(true)).what
    backwards = MadeLog()
    for name in ("2026-12", "2026-11"):
        backwards.open(name)
        backwards.fill(20)
    assert "does not come after" in fault_of(backwards.export(), backwards).what


def test_two_anchored_checkpoints_of_one_size_show_a_fork():
    log, fork = made(), MadeLog()
    fork.open("2026-11")
    fork.entry("site", "made.up", {})
    fork.fill(19, every=20)
    assert "two different checkpoints" in fault_of(log.export(), log, [*all_notes(log), *all_notes(fork)]).what


def test_anchors_of_other_months_and_of_later_are_counted():
    log = made()
    november = log.export(1, 1)
    at = len(log.months[0].checkpoints)
    export = check(november, log, all_notes(log))
    assert (export.summary()["anchors_matched"], export.summary()["anchors_elsewhere"]) == (at, 3)
    lines = log.export()
    header = json.loads(lines[0]) | {"at": notes.parse(all_notes(log)[-1]).at}
    early = closed([canonical.encode(header) + b"\n", *lines[1:-1]], log.key)
    log.fill(40, every=20)
    export = check(early, log, all_notes(log))
    assert (export.summary()["anchors_matched"], export.summary()["anchors_newer"]) == (len(all_notes(log)) - 2, 2)


def rotated_log(forge: str) -> MadeLog:
    """A log with one rotation that is not as it should be."""
    log = MadeLog()
    log.open("2026-11")
    log.fill(20)
    if forge == "the proof is another key's":
        log.key = key_of("second")
        proof = base64.b64encode(key_of("third").sign(b"anything")).decode()
        data = {"epoch": 2, "new": str(log.vkey), "old": log.first_vkey, "proof": proof}
        log.entry("log", "key.rotated", data)
        log._rotated_from, log.epoch, log._at = key_of("first"), 2, 0
    elif forge == "the old key is not the one in use":
        log.key = key_of("third")
        log.rotate("second")
        log._rotated_from = key_of("first")
    elif forge == "no rotation is in the log":
        log.key = key_of("second")
    else:
        log.rotate("second")
    if forge == "the old key did not sign":
        log._rotated_from = None
    elif forge == "the new key did not sign":
        log.key, log._rotated_from = key_of("first"), None
    elif forge == "somebody else signed for the old key":
        log._rotated_from = key_of("third")
    elif forge == "two rotations at once":
        log.rotate("third")
        log._rotated_from = key_of("first")
    elif forge == "the epoch is left out":
        log.epoch = 1
    log.checkpoint()
    if forge == "the old key signs later":
        log.key = key_of("first")
    elif forge == "the old key signs with the new one later":
        log._rotated_from, log._at = key_of("first"), 0
    log.fill(20)
    return log


@pytest.mark.parametrize(
    ("forge", "found"),
    [
        ("the proof is another key's", "did not sign its rotation"),
        ("the old key is not the one in use", "is in use"),
        ("no rotation is in the log", "due is"),
        ("the old key did not sign", "1 signatures, due are 2"),
        ("the new key did not sign", "1 signatures, due are 2"),
        ("somebody else signed for the old key", "due is"),
        ("two rotations at once", "two rotations"),
        ("the epoch is left out", "not the checkpoint of"),
        ("the old key signs later", "due is"),
        ("the old key signs with the new one later", "2 signatures, due are 1"),
    ],
)
def test_a_forged_rotation_is_refused(forge, found):
    log = rotated_log(forge)
    assert found in fault_of(log.export(), log).what


def test_a_sound_rotation_is_accepted():
    log = rotated_log("")
    check(log.export(), log)


def test_rotations_told_of_before_the_export_are_proven():
    log = made()
    lines = log.export(2)
    for field, value in (("index", "3"), ("path", []), ("checkpoint", all_notes(log)[0]), ("size", "0")):
        header = json.loads(lines[0])
        header["rotations"][0][field] = value
        forged = closed([canonical.encode(header) + b"\n", *lines[1:-1]], log.key)
        if field != "size":  # the size that counts is the signed one
            assert fault_of(forged, log).line == 1
    header = json.loads(lines[0])
    del header["rotations"]
    forged = closed([canonical.encode(header) + b"\n", *lines[1:-1]], log.key)
    assert "does not lead there" in fault_of(forged, log).what


@pytest.mark.parametrize(
    ("first", "change", "found"),
    [
        (1, {"to_log": "3"}, "the logs end with 2, not 3"),
        (1, {"to_log": "1"}, "the logs end with 2, not 1"),
        (1, {"from_log": "2"}, "does not say what was before it"),
        (2, {"from_log": "1"}, "does not say what was before it"),
        (1, {"instance": "0" * 16}, "not the instance's"),
        (1, {"format": "2"}, "not the beginning"),
        (2, {"previous_note": made("stranger").months[0].checkpoints[-1][1]}, "signed by"),
    ],
)
def test_what_the_header_says_is_checked_even_when_it_is_signed(first, change, found):
    log = made()
    lines = log.export(first)
    header = canonical.encode(json.loads(lines[0]) | change) + b"\n"
    assert found in fault_of(closed([header, *lines[1:-1]], log.key), log).what


def test_a_month_must_name_the_last_checkpoint_before():
    log = made(second=0)
    log.months.pop()
    log.seq = len(log.months[0].bodies)
    log._numbers["log"] -= 1
    log.months[0].checkpoints.append(log.months[0].checkpoints[0])
    log.open("2026-12")
    log.months[0].checkpoints.pop()
    log.fill(10)
    assert "is not opened with" in fault_of(log.export(), log).what


def test_entries_are_signed_once_and_batches_add_up():
    log = made()
    log.checkpoint()
    assert "two checkpoints for the same entries" in fault_of(log.export(), log).what
    log = made()
    log.entry("usage", "usage.settled", {"batches": [], "requests": 1})
    log.checkpoint()
    assert "have 0 requests, not 1" in fault_of(log.export(), log).what


# Pruning.


def test_pruned_months_and_usage_that_the_log_announces_are_accepted():
    log = made()
    log.entry("log", "audit.pruned", {"entries_through": 1, "usage_through": 2})
    log.checkpoint()
    kept = sum(b'"source":"log"' in body for body in log.months[0].bodies)
    summary = check(log.export(pruned=[1]), log, all_notes(log)).summary()
    assert summary["pruned_entries"] == len(log.months[0].bodies) - kept
    summary = check(log.export(usage_pruned=[1, 2]), log).summary()
    assert (summary["requests"], summary["pruned_requests"]) == (0, sum(len(batch[3]) for batch in log.batches))


def test_pruning_that_the_log_does_not_announce_is_a_fault():
    log = made()
    assert "no entry says that they were pruned" in fault_of(log.export(pruned=[1]), log).what
    assert "no entry says were pruned" in fault_of(log.export(usage_pruned=[2]), log).what
    log.entry("log", "audit.pruned", {"usage_through": 1})
    log.checkpoint()
    check(log.export(usage_pruned=[1]), log)
    assert "no entry says were pruned" in fault_of(log.export(usage_pruned=[2]), log).what


def thinned(log: MadeLog, number: int) -> None:
    """Leave only every third checkpoint of a month, those with two signatures and the last."""
    kept = log.months[number - 1].checkpoints
    kept[:] = [each for i, each in enumerate(kept) if i % 3 == 2 or each[1].count("\n— ") == 2 or each is kept[-1]]


def test_a_pruned_month_may_lack_checkpoints():
    log = made()
    anchored = all_notes(log)
    thinned(log, 1)
    assert "does not name the one before" in fault_of(log.export(), log).what
    log.entry("log", "audit.pruned", {"entries_through": 1})
    log.checkpoint()
    assert "does not name the one before" in fault_of(log.export(), log).what
    summary = check(log.export(pruned=[1]), log, anchored).summary()
    matched = len(all_notes(log)) - 1
    assert (summary["anchors_matched"], summary["anchors_elsewhere"]) == (matched, len(anchored) - matched)
    thinned(log, 2)
    assert "does not name the one before" in fault_of(log.export(pruned=[1]), log).what


def test_checkpoints_of_a_month_that_was_not_pruned_cannot_be_left_out():
    log = MadeLog()
    log.open("2026-11")
    log.checkpoint()
    log.entry("log", "subject.erased", {"subject": "s-1"})
    log.checkpoint()
    log.entry("log", "subject.erased", {"subject": "s-2"})
    log.checkpoint()
    log.open("2026-12")
    log.fill(10)
    del log.months[0].checkpoints[1]
    assert "checkpoints of log 1 are gone" in fault_of(log.export(), log).what
    log.entry("log", "audit.pruned", {"entries_through": 1})
    log.checkpoint()
    check(log.export(), log)


def test_a_single_entry_cannot_be_taken_for_pruned():
    log = made()
    log.entry("log", "audit.pruned", {"entries_through": 1})
    log.checkpoint()
    lines = log.export()[:-1]
    places = [i for i, line in enumerate(lines) if kind_of(line) == "entry" and 0 < seq_of(line) < 20]
    for place in (*places, next(i for i, line in enumerate(lines) if kind_of(line) == "entry")):
        leaf = {"kind": "leaf", "seq": str(seq_of(lines[place])), "hash": json.loads(lines[place])["leaf"]}
        hidden = [*lines[:place], canonical.encode(leaf) + b"\n", *lines[place + 1 :]]
        fault = fault_of(closed(hidden, log.key), log)
        assert "prun" in fault.what
        assert fault.seq in (seq_of(lines[place]), seq_of(lines[place]) + 1)
