"""Log lines: JSON, complete, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from gateway.logs import AccessEntry, AccessLog, JsonFormatter, redact

KEY = "hk-AbCdEfGh0123456789AbCdEfGh0123456789AbCdEfGh01"
OPENAI_KEY = "sk-proj-0123456789abcdefABCDEF0123456789"


def line(message="hello", *args, exc_info=None, **extra) -> dict:
    record = logging.makeLogRecord(
        {"name": "gateway.test", "levelno": 20, "levelname": "INFO", "msg": message, "args": args, **extra}
    )
    record.exc_info = exc_info
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def entry(number: int = 1, **fields) -> AccessEntry:
    return AccessEntry(time=1_763_675_000_123_456, request_id=f"r{number}", endpoint="chat", status=200, **fields)


def read(path) -> list[dict]:
    return [json.loads(row) for row in path.read_bytes().splitlines()]


def test_a_record_becomes_one_json_object_with_its_extra_fields():
    told = line("settled %d rows", 7, request_id="r1", lag_s=0.25)
    assert told["message"] == "settled 7 rows"
    assert (told["level"], told["logger"], told["request_id"], told["lag_s"]) == ("info", "gateway.test", "r1", 0.25)
    assert told["time"].endswith("Z")


def test_an_exception_is_kept_as_text():
    try:
        raise ValueError("no such\nthing")
    except ValueError:
        told = line("failed", exc_info=sys.exc_info())
    assert "ValueError: no such" in told["exception"]
    assert "Traceback" in told["exception"]


def test_a_forged_host_header_is_one_line_without_a_traceback():
    try:
        raise ValueError("Invalid HTTP_HOST header")
    except ValueError:
        assert "exception" not in line("refused", exc_info=sys.exc_info(), name="django.security.DisallowedHost")


def test_a_wrong_format_string_does_not_lose_the_event():
    assert "10 things" in line("10 things %d", "x")["message"]


def test_objects_are_left_out_because_their_repr_may_quote_a_request():
    class Request:
        def __repr__(self) -> str:
            return "<Request /x?prompt=secret>"

    told = line(request=Request(), status_code=500, items=[Request()])
    assert "request" not in told
    assert told["status_code"] == 500
    assert told["items"] == ["Request"]


def test_control_characters_and_lone_surrogates_stay_inside_the_line():
    assert line("a\r\nb\u2028\ud800")["message"] == "a\r\nb\u2028\ud800"


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} refused",
        f"Authorization: Bearer {OPENAI_KEY}",
        "Authorization: Bearer eyJhbGciOi.J9abc.def-ghi",
        f"upstream said: invalid key {OPENAI_KEY}.",
        "gsk_0123456789abcdefABCDEF",
        "xai-0123456789abcdefABCDEF",
        "AIzaSyA0123456789abcdefABCDEF0123456",
        "postgres://hoosh:hunter2hunter2@db/hoosh",
        "GET /v1beta/models?key=abcdef123456&alt=sse",
    ],
)
def test_what_looks_like_a_secret_is_masked(text):
    shown = redact(text)
    assert "[redacted]" in shown
    for secret in (KEY, OPENAI_KEY, "eyJhbGciOi", "0123456789abcdef", "hunter2", "abcdef123456"):
        assert secret not in shown


def test_the_visible_start_of_a_key_stays_so_that_its_owner_can_be_found():
    assert redact(KEY) == f"{KEY[:11]}[redacted]"


@pytest.mark.parametrize(
    "text", ["hk-AbCdEfGh", "task-oriented-dialogue-systems", "model gpt-4o-mini-2024-07-18", "sk-short", "tokens 12"]
)
def test_ordinary_words_are_not_masked(text):
    assert redact(text) == text


def test_secrets_are_masked_in_messages_extras_nested_values_and_tracebacks():
    try:
        raise ValueError(f"bad {KEY}")
    except ValueError:
        told = line(
            f"a {KEY}",
            exc_info=sys.exc_info(),
            note=[{"deep": OPENAI_KEY}],
            password="plain words",
            headers={"Authorization": "opaque"},
        )
    text = json.dumps(told)
    for secret in (KEY, OPENAI_KEY, "plain words", "opaque"):
        assert secret not in text


def test_the_access_log_writes_one_line_per_request_and_leaves_empty_fields_out(tmp_path):
    path = tmp_path / "log" / "access.jsonl"
    log = AccessLog(path)
    log.add(entry(1, model="gpt-4o", input_tokens=3, cost_usd=0.5))
    log.add(entry(2))
    assert path.read_bytes() == b""
    log.flush()
    rows = read(path)
    assert [row["request_id"] for row in rows] == ["r1", "r2"]
    assert rows[0]["time"] == "2025-11-20T21:43:20.123456Z"
    assert rows[0]["model"] == "gpt-4o"
    assert "model" not in rows[1]
    assert path.stat().st_mode & 0o077 == 0
    log.close()


def test_a_key_sent_in_a_wrong_field_does_not_reach_the_access_log(tmp_path):
    log = AccessLog(tmp_path / "a")
    log.add(entry(1, model=KEY, client_request_id=f"Bearer {OPENAI_KEY}"))
    log.close()
    text = (tmp_path / "a").read_text()
    assert KEY not in text
    assert OPENAI_KEY not in text


def test_off_writes_nothing_and_keeps_nothing(tmp_path):
    log = AccessLog("off")
    log.add(entry())
    log.flush()
    log.close()
    assert log.dropped == 0


def test_a_full_file_is_rotated_and_three_old_ones_are_kept(tmp_path):
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, rotate_bytes=50)
    for number in range(7):
        log.add(entry(number))
        log.flush()
    log.close()
    assert sorted(file.name for file in tmp_path.glob("access.jsonl*") if not file.name.endswith(".lock")) == [
        "access.jsonl",
        "access.jsonl.1",
        "access.jsonl.2",
        "access.jsonl.3",
    ]
    assert [row["request_id"] for row in read(path)] == ["r6"]
    assert [row["request_id"] for row in read(tmp_path / "access.jsonl.3")] == ["r3"]


def test_two_processes_that_share_a_file_lose_no_line_when_it_is_rotated(tmp_path):
    path = tmp_path / "access.jsonl"
    first, second = AccessLog(path, rotate_bytes=2000, keep=99), AccessLog(path, rotate_bytes=2000, keep=99)
    for number in range(100):
        for log in (first, second):
            log.add(entry(number))
            log.flush()
    first.close()
    second.close()
    rows = [row for file in tmp_path.glob("access.jsonl*") if file.suffix != ".lock" for row in read(file)]
    assert len(rows) == 200
    assert len(list(tmp_path.glob("access.jsonl*"))) > 3


def test_a_file_moved_away_by_someone_else_is_made_anew(tmp_path):
    path = tmp_path / "a"
    log = AccessLog(path)
    log.add(entry(1))
    log.flush()
    path.rename(tmp_path / "b")
    log.add(entry(2))
    log.close()
    assert [row["request_id"] for row in read(path)] == ["r2"]


def test_a_full_disk_drops_lines_and_counts_them():
    log = AccessLog("/dev/full")
    log.add(entry(1))
    log.add(entry(2))
    log.flush()
    assert log.dropped == 2
    log.close()


def test_more_than_the_buffer_holds_is_counted_as_dropped(tmp_path):
    log = AccessLog(tmp_path / "a", buffer_entries=2)
    for number in range(5):
        log.add(entry(number))
    log.close()
    assert len(read(tmp_path / "a")) == 2
    assert log.dropped == 3


STALLED = """
import sys
from gateway.logs import AccessEntry, AccessLog
log = AccessLog("-")
for _ in range(40):
    for number in range(1000):
        log.add(AccessEntry(time=1, request_id="r" * 200, endpoint="chat", status=200))
    log.flush()
print(log.dropped, file=sys.stderr)
"""


def test_a_stalled_reader_of_standard_output_never_blocks():
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", STALLED], stdout=writer, stderr=subprocess.PIPE, timeout=120, check=True
        )
        os.close(writer)
        writer = -1
        with open(reader, "rb", closefd=False) as pipe:
            rows = pipe.read().splitlines()
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    assert int(done.stderr) > 0
    assert rows
    assert all(json.loads(row)["endpoint"] == "chat" for row in rows)
