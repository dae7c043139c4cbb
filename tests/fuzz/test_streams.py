"""Event streams of any bytes: cutting them differently changes nothing, and nothing is raised."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from providers import adapters, sse
from providers.canonical import Call
from tests.fuzz.cases import cases

LINES = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"])
WORDS = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"event: error",
        b"id: 1",
        b":",
        b" ",
        b"x",
        b"[DONE]",
        "\u2028😀".encode(),
        b"\xff",
        b"{",
    ]
)
CHUNKS = st.builds(
    lambda fields: b"data: " + json.dumps(fields, ensure_ascii=False).encode(),
    st.fixed_dictionaries(
        {
            "choices": st.one_of(
                st.none(),
                st.just([]),
                st.lists(
                    st.builds(lambda text: {"index": 0, "delta": {"content": text}}, st.none() | st.text(max_size=4)),
                    max_size=2,
                ),
                st.just([{"delta": {"content": ["a", {"text": "b"}]}}]),
                st.just("odd"),
            )
        },
        optional={
            "usage": st.sampled_from(
                [None, {}, "x", {"prompt_tokens": 1, "completion_tokens": 2}, {"prompt_tokens": -1}]
            ),
            "error": st.sampled_from([None, "broken", {"code": 429}, {"code": None, "message": "x"}]),
            "x_groq": st.sampled_from([None, {}, {"usage": {"prompt_tokens": 4, "completion_tokens": 4}}]),
        },
    ),
)
RAW = st.lists(LINES | WORDS, max_size=30).map(b"".join)
STREAMS = st.lists(CHUNKS | WORDS | RAW, max_size=12).flatmap(
    lambda parts: st.lists(LINES, min_size=len(parts), max_size=len(parts)).map(
        lambda ends: b"".join(part + end for part, end in zip(parts, ends, strict=True))
    )
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """`stream` in pieces, cut at the given places."""
    marks = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(marks)]


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = sse.Splitter()
    return [*(event for piece in pieces for event in splitter.feed(piece)), splitter.rest()]


@cases(2000)
@given(RAW | st.binary(max_size=60))
def test_a_stream_split_at_every_byte_is_split_alike(stream: bytes) -> None:
    whole = split([stream])
    assert b"".join(whole) == stream
    assert split([stream[index : index + 1] for index in range(len(stream))]) == whole
    for place in range(1, len(stream)):
        assert split([stream[:place], stream[place:]]) == whole
    for event in whole:
        data, name = sse.data_of(event), sse.name_of(event)
        assert sse.fields(event) == (name, data)
        assert b"\r" not in name + (data or b"")
        assert sse.data_of(sse.without_comments(event)) == data


@cases(1000)
@given(STREAMS, st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=6), st.booleans())
def test_a_reader_delivers_the_same_however_the_stream_arrives(stream: bytes, places: list[int], wanted: bool) -> None:
    def read(pieces: list[bytes]) -> tuple[object, ...]:
        call = Call("chat", "m", b"{}", stream=True, wants_usage=wanted)
        reader = adapters.get("openai_compatible").open_stream(call)
        out = b"".join([*map(reader.feed, pieces), reader.finish()])
        assert reader.done == (reader.error is None)
        assert b"[DONE]" not in out or b"[DONE]" in stream.replace(b"data: [DONE]", b"")
        return out, reader.done, reader.error, reader.usage, reader.events, reader.delivered_bytes

    whole = read([stream])
    assert read(cut(stream, places)) == whole
    assert read([stream[index : index + 1] for index in range(len(stream))]) == whole
    delivered = whole[0]
    assert isinstance(delivered, bytes)
    delivered.decode()  # raises on what is not UTF-8
