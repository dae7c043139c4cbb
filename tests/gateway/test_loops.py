"""Prompts that come again and again, as one worker counts them."""

from __future__ import annotations

import json
import time

from gateway.loops import HASHED, PROMPTS_MAX, TOLD_MAX, Loops, digest_of


def body(text="hi", **more):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def told(loops):
    items = []
    loops.tell(items.append)
    return items


def test_a_prompt_is_its_messages_and_nothing_else():
    assert digest_of(body()) == digest_of(body(temperature=1, stream=True)) != digest_of(body("ho"))
    assert len(digest_of(body())) == 8
    assert digest_of(b'{"input":"a"}') != digest_of(b'{"input":"b"}')
    assert digest_of(b"rubbish") != digest_of(b"")


def test_long_prompts_differ_by_beginning_end_and_length():
    long = "x" * (2 * HASHED)
    assert digest_of(body(long)) == digest_of(body(long))
    assert len({digest_of(body(text)) for text in (long, "y" + long, long + "y", long[1:])}) == 4
    started = time.process_time()
    digest_of(body("x" * 20_000_000))
    assert time.process_time() - started < 1.0


def test_counts_are_by_agent_and_minute():
    loops = Loops()
    assert [loops.count(1, body(), 5, 60.0 + each) for each in range(3)] == [1, 2, 3]
    assert loops.count(2, body(), 5, 61.0) == 1
    assert loops.count(1, body("ho"), 5, 61.0) == 1
    assert loops.count(1, body(), 5, 120.0) == 1


def test_what_changed_is_told_once_from_an_eighth_of_the_limit_on():
    loops = Loops()
    for _ in range(2):
        loops.count(1, body(), 16, 60.0)
    assert told(loops) == []
    loops.count(1, body(), 16, 61.0)
    assert told(loops) == [("loop", 60, 1, digest_of(body()).hex(), 3)]
    assert told(loops) == []
    for _ in range(2):
        loops.count(1, body(), 16, 62.0)
    assert told(loops)[0][-1] == 5


def test_a_prompt_that_came_once_is_told_only_where_once_is_the_limit():
    loops = Loops()
    loops.count(1, body(), 2, 60.0)
    assert told(loops) == []
    loops.count(2, body(), 1, 60.0)
    assert len(told(loops)) == 1


def test_memory_and_messages_are_bounded():
    loops = Loops(most=500)
    for number in range(2000):
        loops.count(1, body(str(number)), 1, 60.0)
    assert loops.count(1, body("0"), 1, 60.0) == 2
    assert loops.count(1, body("1999"), 1, 60.0) == 0
    items = told(loops)
    assert len(items) == TOLD_MAX
    assert items[0][-1] == 2, "the most frequent first"
    assert PROMPTS_MAX >= 500
