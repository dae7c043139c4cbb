"""Cutting event streams: where events end, what is held, what is refused."""

from __future__ import annotations

import itertools
import time

import pytest

from providers import sse

STREAM = (
    b'data: {"a":1}\n\n: ping\n\nevent: error\ndata: {"b":2}\n\ndata: one\r\ndata: two\r\n\r\n'
    b"data: cr\r\rdata: \xe2\x80\xa8 \xf0\x9f\x98\x80\n\n\n\ndata: mixed\r\n\ndata: odd\n\r\ndata: [DONE]\n\n"
)


def unsplit(stream: bytes) -> list[bytes]:
    splitter = sse.Splitter()
    return [*splitter.feed(stream), splitter.rest()]


def test_events_keep_their_bytes_and_join_to_the_stream() -> None:
    events = unsplit(STREAM)
    assert b"".join(events) == STREAM
    assert [sse.data_of(event) for event in events if sse.data_of(event) is not None] == [
        b'{"a":1}',
        b'{"b":2}',
        b"one\ntwo",
        b"cr",
        b"\xe2\x80\xa8 \xf0\x9f\x98\x80",
        b"mixed",
        b"odd",
        b"[DONE]",
    ]


@pytest.mark.parametrize("tail", [b"", b"data: unfinished", b"data: x\n", b"data: x\r", b"data: x\n\r"])
def test_a_stream_cut_anywhere_gives_the_same_events(tail: bytes) -> None:
    stream = STREAM + tail
    expected = unsplit(stream)
    for cut in range(len(stream) + 1):
        splitter = sse.Splitter()
        assert [*splitter.feed(stream[:cut]), *splitter.feed(stream[cut:]), splitter.rest()] == expected
    splitter = sse.Splitter()
    single = [event for index in range(len(stream)) for event in splitter.feed(stream[index : index + 1])]
    assert [*single, splitter.rest()] == expected


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\n"])
def test_an_event_is_handed_out_with_its_last_byte(end: bytes) -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: x" + end[:-1]) == []
    assert not splitter.empty
    assert splitter.feed(end[-1:]) == [b"data: x" + end]
    assert splitter.empty


@pytest.mark.parametrize("start", [b"", b"data: ", b"event: a\ndata: ", b"event: a\r\ndata: ", b"event: "])
def test_every_row_of_line_ends_is_read_alike_at_once_and_byte_by_byte(start: bytes) -> None:
    for length in range(7):
        for row in itertools.product((b"x", b"\n", b"\r"), repeat=length):
            stream = start + b"".join(row)
            splitter = sse.Splitter()
            single = [event for index in range(len(stream)) for event in splitter.feed(stream[index : index + 1])]
            assert unsplit(stream) == [*single, splitter.rest()], stream
            assert sse.fields(stream) == (sse.name_of(stream), sse.data_of(stream)), stream


@pytest.mark.parametrize("end", [b"", b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("piece", [7, 1 << 30])
def test_an_event_over_the_limit_is_refused(end: bytes, piece: int) -> None:
    stream = b"data: ok\n\ndata: " + b"x" * 200 + end
    splitter = sse.Splitter(limit_bytes=100)
    pieces = [stream[index : index + piece] for index in range(0, len(stream), piece)]
    with pytest.raises(sse.EventTooLargeError, match="100 bytes"):
        list(map(splitter.feed, pieces))


def test_an_event_of_exactly_the_limit_passes() -> None:
    event = b"data: " + b"x" * 92 + b"\n\n"
    assert sse.Splitter(limit_bytes=100).feed(event) == [event]
    event = b"data: " + b"x" * 90 + b"\r\n\r\n"
    assert sse.Splitter(limit_bytes=100).feed(event) == [event]


def test_tiny_feeds_take_linear_time() -> None:
    def seconds(size: int) -> float:
        splitter = sse.Splitter()
        began = time.process_time()
        for _ in range(size):
            splitter.feed(b"\rx")
        return time.process_time() - began

    seconds(1_000)
    small = min(seconds(4_000) for _ in range(3))
    assert min(seconds(40_000) for _ in range(3)) < 30 * small


@pytest.mark.parametrize(
    ("event", "data", "name"),
    [
        (b"data: x\n\n", b"x", b""),
        (b"data:x\n\n", b"x", b""),
        (b"data:  x\n\n", b" x", b""),
        (b"data\n\n", b"", b""),
        (b": only a comment\n\n", None, b""),
        (b"event: error\r\ndata: {}\r\n\r\n", b"{}", b"error"),
        (b"event: a\nevent: b\ndata: 1\ndata: 2\n\n", b"1\n2", b"b"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x", b""),
        (b"database: no\n\n", None, b""),
        (b"\n\n", None, b""),
        (b"event: a\ndata: x\n\n", b"x", b"a"),
        (b"event: a\r\ndata: x\n\n", b"x", b"a"),
        (b"event:  a\ndata:  x\n\n", b" x", b" a"),
        (b"event: \ndata: \n\n", b"", b""),
        (b"data: x\r\n\r\n", b"x", b""),
        (b"data: x\rdata: y\n\n", b"x\ny", b""),
        (b"data: x\r\n\n", b"x", b""),
        (b"event: a\rdata: x\r\r", b"x", b"a"),
        (b"data: x\nevent: a\n\n", b"x", b"a"),
        (b"data: x", b"x", b""),
    ],
)
def test_fields_are_read_as_the_standard_says(event: bytes, data: bytes | None, name: bytes) -> None:
    assert sse.data_of(event) == data
    assert sse.name_of(event) == name
    assert sse.fields(event) == (name, data)


def test_comment_lines_are_taken_out_and_nothing_else() -> None:
    event = b": a\r\ndata: : b\r\n:c\ndata: d\n\n"
    assert sse.without_comments(event) == b"data: : b\r\ndata: d\n\n"
