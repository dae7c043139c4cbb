"""The journal of a worker and its reader, on real files."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import msgspec
import pytest

from budgets import journal
from budgets.journal import Journal, JournalError
from budgets.journal_reader import Batch, JournalReader, scan
from budgets.records import Basis
from tests.budgets.records import hold_record, money_of, new_rid, tokens_of, usage_record

SHAPE = b"s" * 16
DRAWS = (tokens_of(3, start=1_700_000_000), money_of(3, 10**15, start=1_700_000_000), tokens_of(7, 100), money_of(7))


def read_all(directory: Path, owner: str, position: tuple[int, int] | None = None) -> tuple[JournalReader, Batch]:
    reader = JournalReader(directory, owner, position)
    dead = reader.owner_is_dead()
    batch = reader.read(journal.list_segments(directory, owner), dead=dead, limit=10_000)
    assert batch.at_end
    return reader, batch


def segment(directory: Path, number: int = 1) -> Path:
    return journal.segment_path(directory, "w", number)


def write_requests(writer: Journal, count: int) -> list[bytes]:
    rids = [new_rid() for _ in range(count)]
    for rid in rids:
        writer.hold(hold_record(rid, 100, draws=DRAWS))
        writer.complete(usage_record(rid, 60, held=100, draws=DRAWS))
    return rids


def test_what_was_written_is_read(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    rid = new_rid()
    record = usage_record(rid, 60, held=100, shape=SHAPE, client_request_id="abc", input_audio_tokens=5, draws=DRAWS)
    writer.hold(hold_record(rid, 100))
    writer.shape(SHAPE, b"{}")
    writer.complete(record)
    reader, batch = read_all(tmp_path, "w")
    assert batch.usage == [record]
    assert batch.shapes == {SHAPE: b"{}"}
    assert reader.open_holds() == 0
    assert not reader.owner_is_dead()


def test_holds_without_an_end_are_charged_by_what_is_known(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    silent, events, text, released, ahead, beyond = (new_rid() for _ in range(6))
    for rid in (silent, events, text, released, ahead, beyond):
        writer.hold(hold_record(rid, 500, input_bound=100))
    writer.delivered(events, 0, 64, 120)
    writer.delivered(events, 0, 128, 240)
    writer.delivered(text, 0, 2, 301)
    writer.delivered(ahead, 0, 450, 100_000)
    writer.delivered(beyond, 0, 400, 100_000)
    writer.delivered(beyond, 0, 450, 100_000)
    writer.release(released, 0)
    writer.close()
    reader, batch = read_all(tmp_path, "w")
    assert batch.usage == []
    charged = {record.rid: record for record in reader.unfinished()}
    assert {rid: record.tokens for rid, record in charged.items()} == {
        silent: 500,
        events: 100 + 128,
        text: 100 + 101,
        ahead: 500,  # a mark runs ahead: nothing says that more came than was held for
        beyond: 100 + 450,  # the mark before had allowed all of that
    }
    assert charged[silent].basis == Basis.BOUND
    assert charged[events].basis == Basis.DELIVERED
    assert all(record.input_tokens + record.output_tokens == record.tokens for record in charged.values())


def test_a_hold_without_an_end_costs_what_its_tokens_cost_at_most(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    silent, streamed, free = (new_rid() for _ in range(3))
    prices = {"price_id": 4, "input_pico": 2_500_000, "output_pico": 10_000_000, "request_pico": 10**9}
    writer.hold(hold_record(silent, 500, input_bound=100, draws=DRAWS, **prices))
    writer.hold(hold_record(streamed, 500, input_bound=100, draws=DRAWS, **prices))
    writer.hold(hold_record(free, 500, input_bound=100, draws=DRAWS, price_id=-1))
    writer.delivered(streamed, 0, 3, 0)
    writer.close()
    reader, _batch = read_all(tmp_path, "w")
    charged = {record.rid: record for record in reader.unfinished()}
    assert charged[silent].cost_pico == 10**9 + 100 * 2_500_000 + 400 * 10_000_000
    assert charged[streamed].cost_pico == 10**9 + 100 * 2_500_000 + 3 * 10_000_000
    assert (charged[free].cost_pico, charged[free].price_id) == (0, -1)
    assert charged[silent].price_id == 4
    assert all(record.draws == DRAWS for record in charged.values())


def test_a_journal_cut_at_any_byte_is_read_up_to_there(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    ends: list[tuple[int, int, int]] = []  # where a record ends, usage records and open holds up to there
    for number in range(3):
        rid = new_rid()
        writer.hold(hold_record(rid, 100, draws=DRAWS))
        ends.append((segment(tmp_path).stat().st_size, number, 1))
        writer.delivered(rid, 0, 64, 100)
        ends.append((segment(tmp_path).stat().st_size, number, 1))
        writer.complete(usage_record(rid, 60, held=100, draws=DRAWS))
        ends.append((segment(tmp_path).stat().st_size, number + 1, 0))
    writer.close()
    whole, batch = read_all(tmp_path, "w")
    whole.close()
    honest = batch.usage
    data = segment(tmp_path).read_bytes()
    for cut in range(journal.HEADER.size, len(data) + 1):
        segment(tmp_path).write_bytes(data[:cut])
        reader, batch = read_all(tmp_path, "w")
        _end, usage, holds = max([(0, 0, 0), *(entry for entry in ends if entry[0] <= cut)])
        assert batch.usage == honest[:usage]
        assert [record.draws for record in reader.unfinished()] == [DRAWS] * holds
        assert not reader.damaged, f"a cut at {cut} is no damage"
        assert reader.torn == (cut not in (journal.HEADER.size, *(end for end, _usage, _holds in ends)))
        reader.close()


def test_records_of_before_there_were_draws_are_still_read(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    usage, hold = usage_record(new_rid(), 60), hold_record(new_rid(), 100)
    for kind, record, later in ((journal.COMPLETE, usage, "input_audio_tokens"), (journal.HOLD, hold, "draws")):
        fields: list[object] = list(msgspec.structs.astuple(record))
        older = fields[: type(record).__struct_fields__.index(later)]
        payload = journal.KEY.pack(record.rid, 0) + msgspec.msgpack.encode(older)
        body = journal.HEAD.pack(kind, len(payload)) + payload
        with segment(tmp_path).open("ab") as file:
            file.write(body + journal.CRC.pack(zlib.crc32(body)))
    writer.close()
    reader, batch = read_all(tmp_path, "w")
    assert batch.usage == [usage]
    [unfinished] = reader.unfinished()
    assert (unfinished.tokens, unfinished.draws, unfinished.cost_pico) == (100, (), 0)
    assert not reader.damaged


def test_the_position_is_the_oldest_open_hold(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    write_requests(writer, 3)
    rid = new_rid()
    writer.hold(hold_record(rid, 100))
    later = write_requests(writer, 3)
    reader, _batch = read_all(tmp_path, "w")
    writer.complete(usage_record(rid, 50))
    again, batch = read_all(tmp_path, "w", reader.position())
    assert [record.rid for record in batch.usage] == [*later, rid]
    assert again.open_holds() == 0


def test_a_read_stops_at_its_limit_and_goes_on_there(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    rids = write_requests(writer, 7)
    reader = JournalReader(tmp_path, "w")
    found = []
    for size in (3, 3, 1):
        batch = reader.read([1], dead=False, limit=3)
        assert len(batch.usage) == size
        found += [record.rid for record in batch.usage]
    assert found == rids


def test_a_torn_last_record_is_waited_for_in_a_live_file_and_dropped_in_a_dead_one(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    whole = write_requests(writer, 2)
    last = new_rid()
    writer.complete(usage_record(last, 9))
    data = segment(tmp_path).read_bytes()
    segment(tmp_path).write_bytes(data[:-3])
    reader, batch = read_all(tmp_path, "w")
    assert [record.rid for record in batch.usage] == whole
    segment(tmp_path).write_bytes(data)
    assert [record.rid for record in reader.read([1], dead=False, limit=10).usage] == [last]
    reader.close()
    segment(tmp_path).write_bytes(data[:-3])
    writer.close()
    reader, batch = read_all(tmp_path, "w")
    assert [record.rid for record in batch.usage] == whole
    assert (reader.torn, reader.damaged) == (1, "")


def test_zeros_behind_the_last_record_are_damage(tmp_path: Path) -> None:
    """A host that lost power leaves them where records were: nobody knows how many."""
    writer = Journal.open(tmp_path, "w")
    whole = write_requests(writer, 2)
    writer.close()
    with segment(tmp_path).open("ab") as file:
        file.write(bytes(4096))
    reader, batch = read_all(tmp_path, "w")
    assert [record.rid for record in batch.usage] == whole
    assert (bool(reader.damaged), reader.torn) == (True, 0)


def test_only_the_beginning_of_a_record_in_the_last_segment_is_torn(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", segment_bytes=1_000)
    write_requests(writer, 10)
    writer.close()
    numbers = journal.list_segments(tmp_path, "w")
    assert len(numbers) > 2
    for number in (numbers[0], numbers[-1]):
        data = segment(tmp_path, number).read_bytes()
        ends = [end for _kind, _payload, _start, end in scan(data, journal.HEADER.size)]
        cuts = {
            "cut in its length": data[: ends[-2] + 3],
            "cut in its payload": data[: ends[-2] + 20],
            "cut in its check sum": data[:-1],
        }
        others = {
            "wrong check sum": data[:-1] + bytes([data[-1] ^ 1]),
            "followed by more": data[:-1] + bytes([data[-1] ^ 1]) + b"R",
            "of no kind": data[: ends[-2]] + b"?",
            "too long": data[: ends[-2]] + journal.HEAD.pack(journal.HOLD, journal.RECORD_BYTES + 1),
        }
        for name, changed in {**cuts, **others}.items():
            segment(tmp_path, number).write_bytes(changed)
            reader, _batch = read_all(tmp_path, "w")
            forgiven = number == numbers[-1] and name in cuts
            assert (reader.torn, not reader.damaged) == (int(forgiven), forgiven), f"segment {number}: {name}"
            reader.close()
        segment(tmp_path, number).write_bytes(data)


@pytest.mark.parametrize("fault", ["bytes", "header", "missing", "unknown", "old"])
def test_the_position_stays_at_the_first_fault_and_reading_on_from_there_finds_it(tmp_path: Path, fault: str) -> None:
    writer = Journal.open(tmp_path, "w", segment_bytes=1_000)
    write_requests(writer, 5)
    start, number = segment(tmp_path, journal.list_segments(tmp_path, "w")[-1]).stat().st_size, writer._segment
    writer.complete(usage_record(new_rid(), 9, at_us=5_000_000))
    end = segment(tmp_path, number).stat().st_size
    last = write_requests(writer, 10)
    writer.close()
    path, known_from_s, at = segment(tmp_path, number), 0, (number, start)
    data = path.read_bytes()
    if fault == "bytes":
        path.write_bytes(data[: start + 9] + b"\xff" + data[start + 10 :])
    elif fault == "header":
        path.write_bytes(b"\xff" + data[1:])
        at = (number, 0)
    elif fault == "missing":
        path.unlink()
        at = (number, 0)
    elif fault == "unknown":
        body = data[start : start + 23] + bytes([0xC1]) + data[start + 24 : end - 4]
        path.write_bytes(data[:start] + body + journal.CRC.pack(zlib.crc32(body)) + data[end:])
    else:
        known_from_s = 6
    numbers = journal.list_segments(tmp_path, "w")
    reader = JournalReader(tmp_path, "w", known_from_s=known_from_s)
    reasons = []
    for _ in range(3):
        batch = reader.read(numbers, dead=True, limit=10_000)
        assert batch.at_end
        assert reader.damaged
        assert reader.position() == at
        assert last[-1] in [record.rid for record in batch.usage], "what can be read is read"
        reasons.append(reader.damaged)
        again = reader.position()
        reader.close()
        reader = JournalReader(tmp_path, "w", again, known_from_s=known_from_s)
    reader.close()
    assert len(set(reasons)) == 1


def test_an_open_hold_of_a_time_that_is_forgotten_is_damage(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    hold = hold_record(new_rid(), 10)
    hold.at_us = 5_000_000
    writer.hold(hold)
    writer.close()
    reader = JournalReader(tmp_path, "w", known_from_s=6)
    assert reader.read([1], dead=True, limit=10).at_end
    assert reader.unfinished() == []
    assert reader.damaged


def test_any_flipped_byte_is_noticed_and_nothing_false_is_read(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    write_requests(writer, 2)
    honest = read_all(tmp_path, "w")[1].usage
    tail_start = segment(tmp_path).stat().st_size
    writer.complete(usage_record(new_rid(), 9))
    honest = read_all(tmp_path, "w")[1].usage
    writer.close()
    data = segment(tmp_path).read_bytes()
    for at in range(len(data)):
        segment(tmp_path).write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        reader, batch = read_all(tmp_path, "w")
        assert all(record in honest for record in batch.usage)
        if at < tail_start or at >= tail_start + journal.HEAD.size:
            assert reader.damaged, f"a flip at {at} went unnoticed"
        else:  # in its head: it may look like the beginning of a longer record
            assert len(batch.usage) == 2
        reader.close()


def test_good_records_behind_damage_are_still_read(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    first = write_requests(writer, 1)
    start = segment(tmp_path).stat().st_size
    write_requests(writer, 1)
    end = segment(tmp_path).stat().st_size
    last = write_requests(writer, 1)
    writer.close()
    data = bytearray(segment(tmp_path).read_bytes())
    data[start + 10 : end] = bytes(end - start - 10)
    segment(tmp_path).write_bytes(data)
    reader, batch = read_all(tmp_path, "w")
    assert [record.rid for record in batch.usage] == [*first, *last]
    assert reader.damaged


def test_segments_follow_each_other_and_name_their_shapes(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", segment_bytes=500)
    rids = []
    for _ in range(20):
        rids.append(new_rid())
        writer.hold(hold_record(rids[-1], 10))
        writer.shape(SHAPE, b'{"why":"only one"}')
        writer.complete(usage_record(rids[-1], 10, shape=SHAPE))
    numbers = journal.list_segments(tmp_path, "w")
    assert len(numbers) > 3
    reader, batch = read_all(tmp_path, "w")
    assert [record.rid for record in batch.usage] == rids
    assert reader.position()[0] == numbers[-1]
    for number in numbers:
        alone = JournalReader(tmp_path, "w", (number, 0)).read([number], dead=False, limit=100)
        assert set(alone.shapes) == {SHAPE}


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", segment_bytes=1_000)
    write_requests(writer, 20)
    writer.close()
    segment(tmp_path, 2).unlink()
    reader, _batch = read_all(tmp_path, "w")
    assert "segment 2" in reader.damaged


def test_segments_before_the_stored_position_may_be_gone(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", segment_bytes=1_000)
    rids = write_requests(writer, 20)
    reader, _batch = read_all(tmp_path, "w")
    position = reader.position()
    journal.remove_segments(tmp_path, "w", below=position[0])
    rids = write_requests(writer, 20)
    again, batch = read_all(tmp_path, "w", position)
    assert [record.rid for record in batch.usage][-20:] == rids
    assert not again.damaged


@pytest.mark.parametrize("owner", ["", "a/b", "a.b", "..", "x" * 65])
def test_a_bad_owner_name_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        Journal.open(tmp_path, owner)


def test_an_owners_name_is_used_once(tmp_path: Path) -> None:
    Journal.open(tmp_path, "w").close()
    with pytest.raises(JournalError):
        Journal.open(tmp_path, "w")


def test_a_directory_that_cannot_be_made_is_a_journal_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError):
        Journal.open(tmp_path / "file" / "journal", "w")


def test_nothing_can_be_appended_after_close(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w")
    writer.close()
    assert not writer.writable
    with pytest.raises(JournalError):
        writer.hold(hold_record(new_rid(), 1))


def test_a_killed_owner_is_known_to_be_dead(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from budgets.journal import Journal; "
        "j = Journal.open(pathlib.Path(sys.argv[1]), 'w'); print('open', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    reader = JournalReader(tmp_path, "w")
    assert not reader.owner_is_dead()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert reader.owner_is_dead()
    child.stdout.close()


FULL_DISK = """
import pathlib, resource, signal, sys
from budgets import journal
from budgets.journal import Journal, JournalError
from tests.budgets.records import hold_record, new_rid, usage_record

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
now = [0.0]
writer = Journal.open(pathlib.Path(sys.argv[1]), "w", clock=lambda: now[0])
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
promised, refused = 0, None
while refused is None:
    record = usage_record(new_rid(), 10)
    try:
        writer.complete(record)
        promised += 1
    except JournalError:
        refused = record
size = journal.segment_path(pathlib.Path(sys.argv[1]), "w", 1).stat().st_size
assert size == writer.bytes_written, "the torn record was not cut off"
assert not writer.writable
now[0] += 10
assert not writer.writable, "the disk is still full"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert not writer.writable, "no attempt before the pause is over"
now[0] += 10
assert writer.writable
writer.complete(refused)
print(promised + 1)
"""


def test_a_full_disk_refuses_promises_and_recovers(tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk: a short write first, then an error."""
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert result.returncode == 0, result.stderr
    reader, batch = read_all(tmp_path, "w")
    assert len(batch.usage) == int(result.stdout)
    assert not reader.damaged


def test_durable_returns_after_the_sync_and_is_shared(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", "host")

    async def many() -> None:
        write_requests(writer, 3)
        await asyncio.gather(*(writer.durable() for _ in range(50)))
        write_requests(writer, 1)
        await asyncio.wait_for(writer.durable(), 5)

    asyncio.run(many())
    writer.close()


def test_a_segment_is_found_again_after_the_host_went_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[list[str]] = []
    fsync = os.fsync

    def seen(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            listed.append(sorted(path.name for path in tmp_path.glob("*.j")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", seen)
    writer = Journal.open(tmp_path, "w", "host", segment_bytes=100)
    write_requests(writer, 2)
    writer.close()
    assert listed == [["w.00000001.j"], ["w.00000001.j", "w.00000002.j"]]
    Journal.open(tmp_path, "x").close()
    assert len(listed) == 2, "only where that is promised"


def test_durable_fails_when_the_journal_is_closed(tmp_path: Path) -> None:
    writer = Journal.open(tmp_path, "w", "host")
    writer.close()
    with pytest.raises(JournalError):
        asyncio.run(writer.durable())


def test_process_mode_waits_for_nothing(tmp_path: Path) -> None:
    asyncio.run(Journal.open(tmp_path, "w").durable())


def test_a_sync_does_not_wait_for_what_else_runs_in_threads(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Journal.open(tmp_path, "w", "host")
        release = threading.Event()
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, release.wait, 5) for _ in range(100)]
        begin = time.monotonic()
        write_requests(writer, 3)
        await writer.durable()
        took_s = time.monotonic() - begin
        release.set()
        await asyncio.gather(*busy)
        writer.close()
        assert took_s < 2

    asyncio.run(story())


def test_a_closed_journal_leaves_no_thread_behind(tmp_path: Path) -> None:
    async def story() -> None:
        writer = Journal.open(tmp_path, "w", "host")
        await writer.durable()
        writer.close()

    asyncio.run(story())
    ends_at = time.monotonic() + 2
    while any(thread.name.startswith("journal-sync") for thread in threading.enumerate()):
        assert time.monotonic() < ends_at
        time.sleep(0.01)
