"""The table of limits in mapped memory: several processes, their deaths, damage, reboots, and a table that is full."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.limits import slot_file
from gateway.limits.limiter import Limiter, Limits, Refusal, Ticket, group, name_of
from gateway.limits.slot_file import OWNERS, PAGE, SlotsError
from gateway.limits.slots import HELD, STRIPES, Slots, key_of, stripe_of
from gateway.limits.status import SlotStatus, read_status
from tests.children import spawn, stop
from tests.gateway import limit_processes

PROJECT = Path(__file__).resolve().parents[2]
SECOND = 10**9
ONE_BOOT, NEXT_BOOT = b"1" * 16, b"2" * 16
pytestmark = pytest.mark.processes


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self, now: int = 10**15) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits"


def small(path: Path, clock: Clock, boot: bytes = ONE_BOOT) -> Slots:
    """A table of 512 rows: 8 in each part."""
    return Slots(path, capacity=512, clock=clock, boot=boot)


def die(slots: Slots) -> None:
    """What the kernel does for a process that is killed: everything is closed, nothing is tidied up."""
    slots._file.close()


def shown(path: Path, clock: Clock, name: str = "key:1", boot: bytes = ONE_BOOT) -> SlotStatus:
    status = read_status(path, clock=clock, boot=boot)
    assert status is not None
    return next(slot for slot in status.slots if slot.name == name)


def start(log: Path, *args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.gateway.limit_processes", *map(str, args)]
    return spawn(command, log=log, cwd=PROJECT)


def run(tmp_path: Path, what: str, path: Path, *args: object, processes: int = 3) -> list[dict]:
    """The last line of each of them."""
    logs = [tmp_path / f"log{n}" for n in range(processes)]
    started = [start(log, what, path, processes, *args) for log in logs]
    try:
        for process in started:
            assert process.wait(60) == 0
    finally:
        for process in started:
            stop(process)
    return [json.loads(log.read_text().splitlines()[-1]) for log in logs]


def same_part(count: int, kind: str = "key") -> list[int]:
    """Ids whose rows stand in the first part of the table."""
    return [id for id in range(100_000) if stripe_of(key_of(name_of(kind, id))) == 0][:count]


# ------------------------------------------------------------------ several processes


def test_several_processes_together_get_exactly_the_rate_of_requests(tmp_path, path):
    rate = 20_000
    told = run(tmp_path, "requests", path, rate, 1)
    interval = -(-60 * SECOND // rate)
    total = sum(entry["count"] for entry in told)
    first = min(entry["first"] for entry in told if entry["first"])
    last = max(entry["last"] for entry in told if entry["last"])
    refused = max(entry["refused"] for entry in told)
    assert total <= rate + (last - first) // interval
    assert total >= rate + (refused - first) // interval
    assert refused > first, "nobody was refused: the machine was too slow to pass the limit"


def test_several_processes_together_use_no_more_tokens_than_the_rate_and_nearly_as_many(tmp_path, path):
    rate = 6_000_000
    told = run(tmp_path, "tokens", path, rate, 1.5)
    used = sum(entry["used"] for entry in told)
    first = min(entry["first"] for entry in told if entry["first"])
    last = max(entry["last"] for entry in told if entry["last"])
    allowed = rate + (last - first) * rate / (60 * SECOND)
    assert used <= allowed
    assert used >= 0.98 * allowed
    assert sum(entry["refused"] for entry in told) > 100


def test_several_processes_are_never_more_at_once_than_the_limit(tmp_path, path):
    limit, log = 7, tmp_path / "moves"
    told = run(tmp_path, "concurrent", path, limit, 1, log)
    inside = most = 0
    for move in log.read_bytes():
        inside += 1 if move == ord("+") else -1
        most = max(most, inside)
    assert most == limit
    assert sum(entry["refused"] for entry in told) > 0


def test_no_two_processes_get_the_same_turn(tmp_path, path):
    told = run(tmp_path, "turns", path, 5_000)
    turns = [turn for entry in told for turn in entry["turns"]]
    assert sorted(turns) == list(range(15_000))


def test_what_a_killed_process_held_is_free_again_for_whoever_is_refused(tmp_path, path):
    log = tmp_path / "log"
    process = start(log, "hold", path, 30)
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    assert json.loads(log.read_text()) == {"held": 30}
    slots = Slots(path)
    limiter, subjects = Limiter(slots), group(("key", 1, Limits(tokens_per_minute=10**6, concurrent=30)))
    refusal = limiter.admit(subjects)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.limit) == ("concurrent", 30)
    stop(process, how=signal.SIGKILL)
    limiter = Limiter(slots)
    assert isinstance(limiter.admit(subjects), Ticket)
    assert slots.in_flight(b"key:1") == 1
    slots.close()


def kill_at_random(tmp_path: Path, path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Replaces one of the two after the other."""
    chance = random.Random(7)
    for round in range(10):
        time.sleep(chance.uniform(0.1, 0.4))
        victim, log = processes.pop(0), tmp_path / f"log{round % 2}"
        assert victim.poll() is None, log.read_text()
        stop(victim, how=signal.SIGKILL)
        processes.append(start(log, "chaos", path))


def test_processes_killed_at_any_moment_leave_a_sound_table_and_nothing_in_flight(tmp_path, path):
    survivor_log = tmp_path / "survivor"
    survivor = start(survivor_log, "chaos", path)
    others = [start(tmp_path / f"log{n}", "chaos", path) for n in range(2)]
    try:
        kill_at_random(tmp_path, path, others)
        before = survivor_log.stat().st_size
        time.sleep(0.3)
        assert survivor.poll() is None
        assert survivor_log.stat().st_size > before, "the survivor stands still"
    finally:
        for process in [*others, survivor]:
            stop(process, how=signal.SIGKILL)
    assert all(len((tmp_path / name).read_text().splitlines()) > 20 for name in ("log0", "log1", "survivor"))
    slots = Slots(path)
    slots.tend()
    status = read_status(path)
    assert status is not None
    assert status.owners == (os.getpid(),)
    keys = [slot for slot in status.slots if slot.name.startswith("key:")]
    assert sorted(slot.name for slot in keys) == [f"key:{id}" for id in range(limit_processes.KEYS)]
    assert all((slot.in_flight, slot.tokens_reserved) == (0, 0) for slot in keys)
    assert set(slots.words[slots._file.cells : slots._file.cells + 8 * slots._file.capacity]) == {0}
    limiter = Limiter(slots)
    subjects = group(*(("key", id, Limits(concurrent=3)) for id in range(limit_processes.KEYS)))
    assert [isinstance(limiter.admit(subjects), Ticket) for _ in range(4)] == [True, True, True, False]
    slots.close()


# ------------------------------------------------------------------ deaths between two stores


@pytest.mark.parametrize("entering", [True, False])
def test_a_death_between_two_stores_neither_frees_nor_keeps_anything_else(path, entering):
    clock = Clock()
    living, dead = small(path, clock), small(path, clock)
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000, concurrent=9)))
    ticket = Limiter(living).admit(subjects, 100)
    assert isinstance(ticket, Ticket)
    torn = Limiter(dead).admit(subjects, 200)
    assert isinstance(torn, Ticket)
    _, row, cell, *_, held = torn.taken[0]
    dead.words[row + HELD] -= held  # as if the last store of `admit`, or all but the first two of `leave`, were missing
    if not entering:
        assert dead.words[cell] == held
    die(dead)
    assert living.tend() == 1
    after = shown(path, clock)
    assert (after.in_flight, after.tokens_reserved) == (1, 100)
    assert living.words[cell] == 0
    ticket.leave()
    assert shown(path, clock).tokens_remaining == 5_900, (
        "what was not quite taken, or given back already, is not charged"
    )
    living.close()


def test_what_a_dead_process_reserved_is_charged_and_comes_back_with_time(path):
    clock = Clock()
    living, dead = small(path, clock), small(path, clock)
    subjects = group(("key", 1, Limits(tokens_per_minute=6_000)))
    Limiter(dead).admit(subjects, 5_000)
    die(dead)
    assert living.tend() == 1
    assert living.tend() == 0
    limiter = Limiter(living)
    refusal = limiter.admit(subjects, 2_000)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == pytest.approx(10)
    clock.now += 10 * SECOND
    ticket = limiter.admit(subjects, 2_000)
    assert isinstance(ticket, Ticket)
    ticket.settle(0)
    ticket.leave()
    assert shown(path, clock).tokens_remaining == 2_000, "what the dead reserved counts as used 10 s ago"
    living.close()


def test_the_cells_of_a_dead_owner_are_tidied_by_whoever_gets_them_next(path):
    clock = Clock()
    dead = small(path, clock)
    subjects = group(("key", 1, Limits(concurrent=5)))
    for _ in range(3):
        Limiter(dead).admit(subjects)
    owner = dead.owner
    die(dead)
    successor = small(path, clock)
    assert successor.owner == owner
    assert shown(path, clock).in_flight == 0
    successor.close()


def test_closing_ends_what_was_in_flight_and_frees_the_place(path):
    clock = Clock()
    first, second = small(path, clock), small(path, clock)
    subjects = group(("key", 1, Limits(concurrent=5)))
    late = Limiter(first).admit(subjects)
    for _ in range(3):
        Limiter(second).admit(subjects).leave()
    Limiter(second).admit(subjects)
    assert second.in_flight(b"key:1") == 2
    first.close()
    late.leave()
    assert second.in_flight(b"key:1") == 1
    assert read_status(path, clock=clock, boot=ONE_BOOT).owners == (os.getpid(),)
    second.close()


def test_too_many_processes_are_told_so(path):
    clock = Clock()
    small(path, clock).close()
    with open(path, "r+b") as file:
        everyone = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, PAGE, OWNERS, 0)
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, everyone)
        with pytest.raises(SlotsError, match="512 processes"):
            small(path, clock)
    small(path, clock).close()


# ------------------------------------------------------------------ reboots, clocks, damage


def spend(slots: Slots) -> Limiter:
    """Leaves one key without requests and one without tokens."""
    limiter = Limiter(slots)
    assert isinstance(limiter.admit(ONE), Ticket)
    assert isinstance(limiter.admit(ONE), Refusal)
    assert isinstance(limiter.admit(OTHER, 1), Ticket)
    assert isinstance(limiter.admit(OTHER, 1), Refusal)
    return limiter


ONE = group(("key", 1, Limits(requests_per_minute=1)))
OTHER = group(("key", 2, Limits(tokens_per_minute=1)))


def test_limits_outlive_all_processes_of_one_boot(path):
    clock = Clock()
    spend(small(path, clock)).slots.close()
    clock.now += SECOND
    slots = small(path, clock)
    assert isinstance(Limiter(slots).admit(ONE), Refusal)
    slots.close()


def test_after_a_reboot_the_table_starts_anew(path):
    spend(small(path, Clock(10**15))).slots.close()
    slots = small(path, Clock(10**10), NEXT_BOOT)
    spend(slots)
    assert read_status(path, boot=ONE_BOOT) is None
    slots.close()


def test_without_a_boot_id_a_clock_before_the_last_opening_tells_a_reboot(path):
    spend(small(path, Clock(10**15), bytes(16))).slots.close()
    slots = small(path, Clock(10**15 - 1), bytes(16))
    spend(slots)
    slots.close()


@pytest.mark.parametrize(("back_s", "allowed"), [(30, False), (7_200, True)])
def test_a_clock_that_goes_back_blocks_for_no_longer_than_an_hour(path, back_s, allowed):
    clock = Clock()
    limiter = spend(small(path, clock))
    clock.now -= back_s * SECOND
    assert isinstance(limiter.admit(ONE), Ticket) is allowed
    assert isinstance(limiter.admit(OTHER, 1), Ticket) is allowed
    limiter.slots.close()


def test_this_host_tells_its_boot():
    assert slot_file.boot_id() == slot_file.boot_id()
    assert len(slot_file.boot_id()) == 16


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:100], id="cut"),
        pytest.param(lambda data: data[:-1], id="one byte short"),
        pytest.param(lambda data: data + b"x", id="one byte long"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: b"\xff" + data[1:], id="another magic"),
        pytest.param(lambda data: data[:8] + b"\x02" + data[9:], id="another format"),
        pytest.param(lambda data: data[:13] + b"\x99" + data[14:], id="another capacity"),
        pytest.param(lambda data: random.Random(1).randbytes(len(data)), id="garbage"),
    ],
)
def test_a_damaged_file_is_made_again(path, damage):
    clock = Clock()
    spend(small(path, clock)).slots.close()
    path.write_bytes(damage(path.read_bytes()))
    slots = small(path, clock)
    spend(slots)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    slots.close()


def test_a_file_that_is_removed_while_in_use_is_followed_by_all(path):
    clock = Clock()
    first, second = small(path, clock), small(path, clock)
    limiter, subjects = Limiter(first), group(("key", 1, Limits(concurrent=2)))
    old = limiter.admit(subjects)
    path.unlink()
    first.tend()
    second.tend()
    assert first.generation == second.generation == 1
    assert isinstance(limiter.admit(subjects), Ticket)
    assert second.in_flight(b"key:1") == 1
    old.leave()
    assert second.in_flight(b"key:1") == 1, "a ticket for the old file says nothing about the new one"
    first.close()
    second.close()


def test_a_file_of_another_format_in_its_place_is_left_to_those_who_made_it(path):
    clock = Clock()
    slots = small(path, clock)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:8] + b"\x02" + data[9:])
    slots.tend()
    assert slots.generation == 0
    spend(slots)
    slots.close()


def test_a_path_that_cannot_be_used_any_more_leaves_the_old_file_in_use(path, caplog):
    clock = Clock()
    first, second = small(path, clock), small(path, clock)
    path.unlink()
    path.mkdir()
    die(second)
    with caplog.at_level("ERROR", logger="hoosh.limits"):
        assert first.tend() == 1
        assert first.tend() == 0
    assert [record.message for record in caplog.records] == ["limits_file_unusable"]
    spend(first)
    first.close()


def test_a_full_disk_is_told_and_leaves_nothing_half_made(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Slots(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    slots = Slots(path)
    spend(slots)
    slots.close()


def test_a_table_that_is_there_keeps_its_capacity(path):
    clock = Clock()
    first = small(path, clock)
    second = Slots(path, capacity=4096, clock=clock, boot=ONE_BOOT)
    assert read_status(path, clock=clock, boot=ONE_BOOT).capacity == 512
    assert (first.turn(b"a"), second.turn(b"a"), first.turn(b"a")) == (0, 1, 2)
    first.close()
    second.close()


@pytest.mark.parametrize("capacity", [0, 256, 1000])
def test_a_capacity_that_does_not_fit_pages_is_refused(path, capacity):
    with pytest.raises(ValueError, match="power of two"):
        Slots(path, capacity=capacity)


def test_the_file_takes_little_space(path):
    slots = Slots(path)
    assert path.stat().st_blocks * 512 < 12_000_000
    slots.close()


# ------------------------------------------------------------------ a table that is full


def test_a_new_name_takes_the_row_that_was_idle_for_longest(path):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    ids = same_part(9)
    for id in ids[:8]:
        clock.now += SECOND
        limiter.admit(group(("key", id, Limits(requests_per_minute=60 if id == ids[0] else 6_000))))
    clock.now += SECOND // 2
    limiter.admit(group(("key", ids[1], Limits(requests_per_minute=6_000))))
    clock.now += SECOND // 2
    limiter.admit(group(("key", ids[8], Limits(requests_per_minute=6_000))))
    names = {slot.name for slot in read_status(path, clock=clock, boot=ONE_BOOT).slots}
    assert names == {f"key:{id}" for id in ids} - {f"key:{ids[0]}"}, "the oldest of those idle by then"
    assert slots.overflows == 0
    slots.close()


def test_a_row_with_something_to_remember_is_never_given_away(path):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    busy, spent, *others, last = same_part(9)
    limiter.admit(group(("key", busy, Limits(concurrent=1))))
    limiter.admit(group(("key", spent, Limits(requests_per_minute=1))))
    for id in [*others, last]:
        clock.now += SECOND
        limiter.admit(group(("key", id, Limits(requests_per_minute=60_000))))
    assert isinstance(limiter.admit(group(("key", busy, Limits(concurrent=1)))), Refusal)
    assert isinstance(limiter.admit(group(("key", spent, Limits(requests_per_minute=1)))), Refusal)
    slots.close()


def test_where_every_row_is_busy_requests_go_on_without_a_limit_and_it_is_told_once_a_minute(path, caplog):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    *ids, last = same_part(9)
    tickets = [limiter.admit(group(("key", id, Limits(concurrent=1)))) for id in ids]
    subjects = group(("key", last, Limits(1, 1, 1)))
    with caplog.at_level("ERROR", logger="hoosh.limits"):
        for _ in range(3):
            ticket = limiter.admit(subjects, 1)
            assert isinstance(ticket, Ticket)
            ticket.leave()
            assert ticket.headers() == []
    assert slots.overflows == 3
    assert [record.message for record in caplog.records] == ["limits_table_full"]
    assert caplog.records[0].name_without_limit == f"key:{last}"
    tickets[0].leave()
    clock.now += 1
    assert isinstance(limiter.admit(subjects, 1), Ticket)
    assert isinstance(limiter.admit(subjects, 1), Refusal)
    slots.close()


@pytest.mark.parametrize("known", [False, True])
def test_two_names_of_one_request_never_get_the_same_row(path, known):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    *ids, first, second = same_part(9)
    for id in ids:
        limiter.admit(group(("key", id, Limits(concurrent=1))))
    if known:
        limiter.admit(group(("key", first, Limits(concurrent=1)))).leave()
    clock.now += 1
    ticket = limiter.admit(group(("key", first, Limits(concurrent=1)), ("key", second, Limits(concurrent=1))))
    assert isinstance(ticket, Ticket)
    assert [taken[0].id for taken in ticket.taken] == [first], "there is one row for the two of them"
    slots.close()


def test_turns_go_on_without_a_row(path):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    for id in same_part(8):
        limiter.admit(group(("key", id, Limits(concurrent=1))))
    name = name_of("turn", same_part(1, "turn")[0])
    assert len({slots.turn(name) for _ in range(5)}) == 5
    assert slots.in_flight(name) == 0
    slots.close()


# ------------------------------------------------------------------ turns and pages


def test_turns_are_shared_and_counted_from_zero(path):
    clock = Clock()
    first, second = small(path, clock), small(path, clock)
    assert [slots.turn(b"route:1") for slots in (first, second, second, first)] == [0, 1, 2, 3]
    assert first.turn(b"route:2") == 0
    first.close()
    second.close()


def test_keys_spread_over_the_parts_and_mean_nothing_else():
    keys = {key_of(b"key:%d" % id) for id in range(5_000)}
    assert len(keys) == 5_000
    assert not keys & {0, -1}
    assert {stripe_of(key) for key in keys} == set(range(STRIPES))


def test_a_page_shows_what_stands_in_the_table(path):
    clock = Clock()
    slots = small(path, clock)
    limiter = Limiter(slots)
    limiter.admit(group(("key", 1, Limits(60, 6_000, 5))), 1_000)
    slots.turn(b"a name of more than forty bytes, which is cut where it is shown")
    clock.now += 2 * SECOND
    limiter.admit(group(("provider", 3, Limits(), True)))
    status = read_status(path, clock=clock, boot=ONE_BOOT)
    assert status is not None
    assert (status.capacity, status.owners) == (512, (os.getpid(),))
    provider, turns, key = sorted(status.slots, key=lambda slot: (slot.idle_s, slot.turns == 0))
    assert provider == SlotStatus("provider:3", None, None, None, None, None, 1, 0, 0, 0.0)
    assert turns == SlotStatus("a name of more than forty bytes, which i", *[None] * 5, 0, 0, 1, 2.0)
    assert key == SlotStatus("key:1", 60, 60, 6_000, 5_200, 5, 1, 1_000, 0, 2.0)
    slots.close()


def test_a_page_without_a_table_shows_nothing(path):
    assert read_status(path) is None
    path.write_bytes(b"no table")
    assert read_status(path) is None
