"""Which messages of a conversation go, and which never do."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context.compaction import kept, units_of
from gateway.endpoints import INFERENCE
from providers import estimates
from providers.adapters.anthropic_messages import conversation

Message = dict[str, Any]


def user(text: str = "u") -> Message:
    return {"role": "user", "content": text}


def answer(text: str = "a") -> Message:
    return {"role": "assistant", "content": text}


def calling(*ids: str) -> Message:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": '{"a":  1}'}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id: str) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": "r"}


SYSTEM: Message = {"role": "system", "content": "s"}
DEVELOPER: Message = {"role": "developer", "content": "d"}


def left(messages: list[Message], room: int, costs: list[int] | None = None) -> list[int] | None:
    return kept(messages, costs or [10] * len(messages), room)


def test_what_fits_is_left_alone() -> None:
    assert left([SYSTEM, user(), answer(), user()], 40) is None


def test_the_newest_turns_that_fit_stay_with_the_instructions_and_the_first_turn() -> None:
    talk = [SYSTEM, DEVELOPER, user("first"), *[answer(), user()] * 10]
    assert left(talk, 90) == [0, 1, 2, 17, 18, 19, 20, 21, 22]


def test_more_than_some_last_messages_stay_where_more_fit() -> None:
    talk = [user("first"), *[answer(), user()] * 100]
    assert len(left(talk, 1500) or []) == 149  # one more would be two turns of the user side by side


def test_one_huge_message_is_left_to_the_provider() -> None:
    assert left([user("huge")], 5) is None
    assert left([SYSTEM, user("huge")], 15, [10, 1000]) is None


def test_a_huge_last_turn_keeps_only_what_must_be_kept() -> None:
    talk = [SYSTEM, user("first"), answer(), user(), answer(), user("huge")]
    assert left(talk, 520, [10, 10, 10, 10, 10, 500]) == [0, 1, 5]
    assert left(talk, 519, [10, 10, 10, 10, 10, 500]) is None


def test_instructions_stay_wherever_they_stand() -> None:
    talk = [user("first"), answer(), SYSTEM, user(), answer(), user()]
    assert left(talk, 40) == [0, 2, 4, 5]


def test_a_call_and_its_results_go_together() -> None:
    talk = [user("first"), calling("a", "b"), result("a"), result("b"), calling("c"), result("c"), answer(), user()]
    assert left(talk, 79) == [0, 4, 5, 6, 7]
    assert left(talk, 49) == [0, 6, 7]


def test_results_are_found_by_their_ids_wherever_they_stand() -> None:
    talk = [user(), calling("a", "b"), result("b"), user("wait"), result("a"), answer(), user("last")]
    assert [unit.places for unit in units_of(talk)] == [[0], [1, 2, 4], [3], [5], [6]]
    assert left(talk, 69) == [0, 5, 6]
    waiting = [user(), answer(), user(), *talk[1:5]]  # the result that came last is what is answered
    assert left(waiting, 60) == [0, 3, 4, 5, 6]


def test_results_without_an_id_belong_to_the_latest_call() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    talk = [user(), old, {"role": "function", "name": "f", "content": "r"}, answer(), user()]
    assert [unit.places for unit in units_of(talk)] == [[0], [1, 2], [3], [4]]
    assert left(talk, 30) == [0, 3, 4]


def test_ids_that_come_again_belong_to_the_call_before_them() -> None:
    talk = [user(), calling("a"), result("a"), calling("a"), result("a"), user()]
    assert [unit.places for unit in units_of(talk)] == [[0], [1, 2], [3, 4], [5]]


def test_what_is_being_answered_stays_with_the_turn_it_belongs_to() -> None:
    """An agent at work: the last word is a tool's, and the task it works on was given long before."""
    work = list(itertools.chain.from_iterable([calling(f"c{n}"), result(f"c{n}")] for n in range(50)))
    talk = [SYSTEM, user("first"), answer(), user("task"), *work]
    assert left(talk, 69) == [0, 1, 2, 3, 102, 103]
    assert left(talk, 70) == [0, 1, 3, 100, 101, 102, 103]
    assert left(talk, 80) == [0, 1, 2, 3, 100, 101, 102, 103]
    assert left(talk, 59) == [0, 1, 3, 102, 103]
    assert left(talk, 49) is None


def test_a_turn_of_several_messages_stays_whole_at_the_start_and_at_the_end() -> None:
    talk = [user("a document"), user("and what to do"), *[answer(), user()] * 5, answer(), user("look:"), user("this")]
    assert left(talk, 70) == [0, 1, 10, 11, 12, 13, 14]
    assert left(talk, 60) == [0, 1, 12, 13, 14]
    assert left(talk, 40) == [0, 1, 13, 14]
    assert left(talk, 39) is None


def test_a_conversation_of_the_user_alone_keeps_its_first_and_newest_messages() -> None:
    assert left([user(str(n)) for n in range(300)], 100) == [0, *range(291, 300)]


def test_an_answer_that_was_begun_stays() -> None:
    talk = [user("first"), answer(), user(), answer("The answer is")]
    assert left(talk, 39) == [0, 2, 3]
    assert left([answer("x"), answer("y")], 10) == [1]


def test_two_turns_of_the_user_are_kept_apart() -> None:
    talk = [user("first"), answer("first answer"), user("second"), answer(), user("third"), answer(), user("last")]
    costs = [10, 5, 10, 100, 10, 10, 10]
    assert left(talk, 45, costs) == [0, 1, 4, 5, 6]  # the first answer fits between them
    assert left(talk, 44, costs) == [0, 5, 6]  # and here it does not


def test_three_hundred_messages_over_the_limit() -> None:
    talk = [SYSTEM, *itertools.chain.from_iterable([user(str(n)), answer(str(n))] for n in range(150)), user("end")]
    places = left(talk, 1000) or []
    assert len(places) in (99, 100)
    assert places[:2] == [0, 1]
    assert places[-1] == 301
    assert places[2:] == list(range(places[2], 302))


# --- any conversation -----------------------------------------------------------------------------------------------

TURN = st.one_of(
    st.just("answer"), st.just("two answers"), st.tuples(st.just("tools"), st.lists(st.integers(1, 3), max_size=4))
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    ids = itertools.count()
    talk: list[Message] = draw(st.lists(st.sampled_from([SYSTEM, DEVELOPER]), max_size=2))
    for turn in draw(st.lists(TURN, min_size=1, max_size=8)):
        talk = [*talk, user()]
        if turn[0] == "tools":
            for count in turn[1]:
                names = [f"c{next(ids)}" for _ in range(count)]
                talk += [calling(*names), *map(result, names)]
            if not draw(st.booleans()):
                continue
        talk += [answer()] * (2 if turn == "two answers" else 1)
    return [*talk, user()] if draw(st.booleans()) else talk


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_goes_the_rest_is_a_conversation(data: st.DataObject) -> None:
    talk = data.draw(conversations())
    costs = data.draw(st.lists(st.integers(1, 50), min_size=len(talk), max_size=len(talk)))
    room = data.draw(st.integers(0, sum(costs) + 5))
    places = kept(talk, costs, room)
    if places is None:
        return
    assert places == sorted(set(places))
    assert len(places) < len(talk)
    assert sum(costs[place] for place in places) <= room
    rest = [talk[place] for place in places]
    assert [m for m in rest if m["role"] in ("system", "developer")] == [
        m for m in talk if m["role"] in ("system", "developer")
    ]
    users = [place for place, message in enumerate(talk) if message["role"] == "user"]
    assert {users[0], users[-1], len(talk) - 1} <= set(places)
    calls = [call["id"] for message in rest for call in message.get("tool_calls", ())]
    assert calls == [message["tool_call_id"] for message in rest if message["role"] == "tool"]
    told = conversation(rest)  # by the strictest of all APIs
    assert [turn["role"] for turn in told.turns] == [
        "user" if number % 2 == 0 else "assistant" for number in range(len(told.turns))
    ]


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.integers(1, 40))
def test_sides_take_turns_where_they_did(turns: int, room: int) -> None:
    talk = [user() if n % 2 == 0 else answer() for n in range(turns)]
    places = kept(talk, [1] * turns, room)
    if places is not None:
        roles = [talk[place]["role"] for place in places]
        doubled = [n for n in range(1, len(roles)) if roles[n] == roles[n - 1]]
        assert not doubled or places[:2] == [0, max(n for n in range(turns) if n % 2 == 0)]


# --- of other APIs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_pairs_are_whole_in_what_other_apis_are_translated_to(path: str) -> None:
    if path == "/v1/messages":
        turns: list[Message] = [user("first")]
        for n in range(20):
            uses = [{"type": "tool_use", "id": f"t{n}{x}", "name": "f", "input": {"x": x}} for x in "ab"]
            results = [{"type": "tool_result", "tool_use_id": f"t{n}{x}", "content": "r" * 50} for x in "ab"]
            turns += [
                {"role": "assistant", "content": [{"type": "text", "text": "let me see"}, *uses]},
                {"role": "user", "content": [*results, {"type": "text", "text": f"go on {n}"}]},
            ]
        tools = [{"name": "f", "input_schema": {"type": "object"}}]
        body: Message = {"model": "m", "max_tokens": 9, "system": "s", "messages": turns, "tools": tools}
    else:
        items: list[Message] = [{"role": "user", "content": "first"}]
        for n in range(20):
            items += [{"type": "function_call", "call_id": f"t{n}{x}", "name": "f", "arguments": "{}"} for x in "ab"]
            items += [{"type": "function_call_output", "call_id": f"t{n}{x}", "output": "r" * 50} for x in "ab"]
            items += [{"role": "user", "content": f"go on {n}"}]
        tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
        body = {"model": "m", "instructions": "s", "input": items, "tools": [tool]}
    call = INFERENCE[path].parse(msgspec.json.encode(body), None)
    talk = msgspec.json.decode(call.body)["messages"]
    costs = [estimates.message_tokens(message, estimates.OTHER) for message in talk]
    places = kept(talk, costs, sum(costs) // 3)
    assert places is not None
    rest = [talk[place] for place in places]
    assert [rest[0]["role"], rest[1]["role"], rest[1]["content"]] == ["system", "user", "first"]
    assert rest[-1]["content"] == "go on 19"
    calls = [each["id"] for message in rest for each in message.get("tool_calls") or ()]
    assert calls == [message["tool_call_id"] for message in rest if message["role"] == "tool"]
    assert 6 < len(calls) < 20
