"""The answer cache of a worker: similar questions, their vectors, and the model on this machine that makes them."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from gateway.cache.answers import AnswerCache, Place
from gateway.cache.control import PLAIN, control_of
from gateway.cache.embedder import TOKENS_MAX, EmbedderError, LocalEmbedder
from gateway.cache.key import key_of, tag_of
from gateway.cache.semantic import DIMENSION_MAX, QUESTION_MAX, SemanticIndex, question_of, size_of, unit_of
from gateway.cache.store import Entry
from gateway.dialects import anthropic, ollama, openai
from providers.canonical import Call
from tests.gateway.similar_world import write_tensors
from tests.servers import PROJECT_DIR

TEAM = b"team:1"
SYSTEM = {"role": "system", "content": "Be brief."}


def chat(*before: dict[str, Any], asks: Any = "How tall is Mont Blanc?", **fields: Any) -> Call:
    messages = [*before, {"role": "user", "content": asks}]
    return openai.parse_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def bucket(call: Call, tenant: bytes = TEAM, scope: bytes = b"") -> bytes:
    question = question_of(call, tenant, scope)
    assert question is not None
    return question.bucket


# --- questions --------------------------------------------------------------------------------------------------------


def test_questions_in_other_words_share_a_bucket_and_have_their_own_text() -> None:
    one, other = question_of(chat(), TEAM), question_of(chat(asks="What is Mont Blanc's height?"), TEAM)
    assert one is not None
    assert other is not None
    assert one.bucket == other.bucket
    assert one.bucket.startswith(tag_of(TEAM))
    assert (one.text, other.text) == ("How tall is Mont Blanc?", "What is Mont Blanc's height?")


@pytest.mark.parametrize(
    "call",
    [
        chat(stream=True),
        chat(user="u"),
        chat(tools=[]),
        chat(tools=None, response_format={"type": "text"}, tool_choice="none"),
        chat(asks=[{"type": "text", "text": "How tall is"}, {"type": "text", "text": "Mont Blanc?"}]),
    ],
)
def test_what_means_nothing_for_the_answer_keeps_the_bucket(call: Call) -> None:
    assert bucket(call) == bucket(chat(), TEAM)


def test_everything_else_about_a_request_makes_another_bucket() -> None:
    buckets = [
        bucket(chat()),
        bucket(chat(), b"team:2"),
        bucket(chat(), TEAM, b"scope"),
        bucket(chat(model="n")),
        bucket(chat(temperature=1)),
        bucket(chat(max_tokens=5)),
        bucket(chat(SYSTEM)),
        bucket(chat({**SYSTEM, "role": "developer"})),
        bucket(chat({**SYSTEM, "content": "Be rude."})),
        bucket(chat(SYSTEM, SYSTEM)),
        bucket(chat(asks="Is 1 more?")),
        bucket(chat(asks="Is 2 more?")),
        bucket(chat(asks="Are 1 and 2 more?")),
        bucket(chat(asks="Are 12 more?")),
    ]
    assert len(set(buckets)) == len(buckets)


def test_dialects_and_what_is_sent_beside_the_body_make_another_bucket() -> None:
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}).encode()
    exchange: Any = SimpleNamespace(headers=[(b"anthropic-beta", b"b")], path="", query=b"")
    calls = [anthropic.parse_messages(body), anthropic.parse_messages(body, exchange)]
    calls.append(openai.parse_chat(calls[0].body))
    assert len({bucket(call) for call in calls}) == 3


IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "call",
    [
        chat({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}),
        chat({"role": "assistant", "content": "Hello"}),
        openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"},{"role":"system","content":"y"}]}'),
        openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x","name":"Ann"}]}'),
        chat(asks=""),
        chat(asks="  \n"),
        chat(asks=[]),
        chat(asks=None),
        chat(asks="x" * (QUESTION_MAX + 1)),
        chat({**SYSTEM, "content": "x" * 70_000}),
        chat(asks=[{"type": "text", "text": "What is this?"}, IMAGE]),
        chat({**SYSTEM, "content": [IMAGE]}),
        chat(asks=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]),
        chat(tools=[TOOL]),
        chat(functions=[TOOL["function"]]),
        chat(tools=[{"type": "web_search"}]),
        chat(response_format={"type": "json_object"}),
        chat(guided_regex="x"),
        chat(logprobs=True),
        chat(logit_bias={"1": 5}),
        chat(n=2),
        chat(store=True),
        chat(modalities=["audio"], audio={"voice": "a", "format": "wav"}),
        openai.parse_completions(b'{"model":"m","prompt":"Hello?"}'),
        openai.parse_embeddings(b'{"model":"m","input":"Hello?"}'),
        anthropic.parse_messages(
            b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}],"some_new_field":1}'
        ),
        ollama.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"mirostat":1}}'),
        Call("chat", "m", b"{"),
        Call("chat", "m", b'{"messages":["x"]}'),
    ],
)
def test_only_a_single_plain_question_may_be_answered_by_another_ones_answer(call: Call) -> None:
    assert question_of(call, TEAM) is None


# --- the index --------------------------------------------------------------------------------------------------------


def at(degrees: float) -> list[float]:
    """A direction in the plane."""
    return [3 * math.cos(math.radians(degrees)), 3 * math.sin(math.radians(degrees))]


def nearest(index: SemanticIndex, bucket: bytes, vector: Any, threshold: float = 0.95) -> bytes | None:
    found = index.find(bucket, vector, threshold)
    return None if found is None else found[0]


def test_the_closest_vector_counts_from_the_threshold_on() -> None:
    index, edge = SemanticIndex(), math.cos(math.radians(20))
    assert nearest(index, b"b", at(0), edge) is None
    assert index.add(b"b", b"zero", at(0))
    assert index.add(b"b", b"thirty", at(30))
    assert nearest(index, b"b", at(14), edge) == b"zero"
    assert nearest(index, b"b", at(16), edge) == b"thirty"
    assert nearest(index, b"b", at(49), edge) == b"thirty"
    assert nearest(index, b"b", at(51), edge) is None
    assert nearest(index, b"b", at(180), edge) is None
    assert nearest(index, b"other", at(0), edge) is None


def test_the_edge_belongs_to_the_threshold_and_a_vector_is_as_close_to_itself_as_can_be() -> None:
    index = SemanticIndex()
    index.add(b"b", b"k", [0.1, 0.7, 0.3])
    found = index.find(b"b", [0.2, 1.4, 0.6], 1.0)
    assert found is not None
    assert found[1] == pytest.approx(1, abs=1e-6)
    assert found[1] <= 1
    index.add(b"c", b"k", [0.8, 0.6])
    assert nearest(index, b"c", [1, 0], 0.8) == b"k"
    assert nearest(index, b"c", [1, 0], 0.80001) is None


def test_dimensions_never_meet() -> None:
    index = SemanticIndex()
    index.add(b"b", b"two", [1, 0])
    index.add(b"b", b"three", [1, 0, 0])
    assert nearest(index, b"b", [1, 0]) == b"two"
    assert nearest(index, b"b", [1, 0, 0]) == b"three"
    assert nearest(index, b"b", [1, 0, 0, 0]) is None


@pytest.mark.parametrize(
    "vector",
    [[], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [[1.0, 0.0]], ["x"], [1.0] * (DIMENSION_MAX + 1), [10**400]],
)
def test_what_is_no_direction_is_neither_added_nor_found(vector: Any) -> None:
    index = SemanticIndex()
    assert not index.add(b"b", b"k", vector)
    index.add(b"b", b"k", [1.0, 0.0])
    assert nearest(index, b"b", vector) is None


def test_the_oldest_of_a_bucket_and_of_all_goes_first() -> None:
    index = SemanticIndex(bucket_max=2, max_bytes=3 * size_of(2))
    for number in range(3):
        index.add(b"a", b"a%d" % number, at(40 * number))
    assert nearest(index, b"a", at(0)) is None
    assert nearest(index, b"a", at(40)) == b"a1"
    index.add(b"b", b"b0", at(0))
    index.add(b"c", b"c0", at(0))
    assert (len(index), index.evicted) == (3, 2)
    assert nearest(index, b"a", at(40)) is None
    assert nearest(index, b"a", at(80)) == b"a2"


def test_a_bucket_of_one_has_its_newest() -> None:
    index = SemanticIndex(bucket_max=1)
    for number in range(3):
        index.add(b"a", b"%d" % number, at(90 * number))
        assert nearest(index, b"a", at(90 * number)) == b"%d" % number
    assert len(index) == 1


def test_vectors_that_are_gone_take_no_memory() -> None:
    index = SemanticIndex()
    for number in range(500):
        index.add(b"a", b"%d" % number, [float(number), 1.0, 2.0, 3.0])
    assert 500 * 16 <= index.nbytes <= 1000 * 16
    for number in range(499):
        index.forget(b"%d" % number)
    assert index.nbytes <= 32 * 16
    assert nearest(index, b"a", [499.0, 1.0, 2.0, 3.0]) == b"499"


def test_a_key_has_one_vector_wherever_it_was() -> None:
    index = SemanticIndex()
    index.add(b"a", b"k", at(0))
    index.add(b"b", b"k", at(90))
    assert nearest(index, b"a", at(0)) is None
    assert nearest(index, b"b", at(90)) == b"k"
    index.forget(b"k")
    index.forget(b"k")
    assert nearest(index, b"b", at(90)) is None
    index.add(b"a", b"k", at(0))
    assert (len(index), nearest(index, b"a", at(0))) == (1, b"k")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 40), st.integers(0, 359)), max_size=200),
    st.integers(1, 30),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_the_index_finds_what_a_plain_search_finds(steps: Any, bucket_max: int, vectors_max: int) -> None:
    index = SemanticIndex(bucket_max=bucket_max, max_bytes=vectors_max * size_of(2))
    held: dict[bytes, tuple[int, int]] = {}  # the oldest first
    for adds, place, number, degrees in steps:
        name = b"%d" % number
        held.pop(name, None)
        if not adds:
            index.forget(name)
        else:
            index.add(b"%d" % place, name, at(degrees))
            held[name] = (place, degrees)
            mine = [key for key, (other, _) in held.items() if other == place]
            if len(mine) > bucket_max:
                del held[mine[0]]
            if len(held) > vectors_max:
                del held[next(iter(held))]
        assert len(index) == len(held)
        assert index.bytes == len(held) * size_of(2)
        found = nearest(index, b"%d" % place, at(degrees + 1), 0.9)
        cosines = {
            key: math.cos(math.radians(angle - degrees - 1)) for key, (other, angle) in held.items() if other == place
        }
        best = max(cosines.values(), default=-1.0)
        if found is None:
            assert best < 0.9 + 1e-6
        else:
            assert cosines[found] > best - 1e-6


# --- with the answers -------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(cache: AnswerCache, call: Call, vector: list[float], ttl_s: float = 60, **fields: Any) -> bytes:
    """Keep an answer to a call; its key."""
    question, key = question_of(call, TEAM), key_of(call, TEAM)
    assert question is not None
    assert key is not None
    assert cache.keep(key, Entry(question.text.encode(), **fields), ttl_s, place=Place(question.bucket, vector))
    return key


def test_a_similar_question_gets_the_answer_while_there_is_one() -> None:
    clock = Clock()
    cache = AnswerCache(clock=clock)
    kept(cache, chat(asks="one"), at(0), 60)
    kept(cache, chat(asks="two"), at(5), 30)
    where = bucket(chat())
    found = cache.find_similar(Place(where, at(4)), 0.95, PLAIN, stream=True)
    assert found is not None
    assert found.body == b"two"
    assert (cache.counts()["hits"], cache.counts()["similar"], cache.counts()["vectors"]) == (1, 1, 2)
    clock.now = 31
    found = cache.find_similar(
        Place(where, at(4)), 0.95, PLAIN, stream=True
    )  # the closest is gone: the next one counts
    assert found is not None
    assert found.body == b"one"
    assert cache.counts()["vectors"] == 1
    assert cache.find_similar(Place(where, at(4)), 0.95, control_of(b"max-age=30"), stream=True) is None
    assert cache.find_similar(Place(where, at(4)), 0.95, control_of(b"no-cache"), stream=True) is None
    assert cache.find_similar(Place(bucket(chat(), b"team:2"), at(0)), 0.95, PLAIN, stream=True) is None
    clock.now = 61
    assert cache.find_similar(Place(where, at(0)), 0.95, PLAIN, stream=True) is None
    assert cache.counts()["vectors"] == 0


def test_vectors_go_with_answers_that_are_evicted_or_purged() -> None:
    cache = AnswerCache()
    keys = [kept(cache, chat(asks=word), at(30 * number)) for number, word in enumerate(("one", "two", "three"))]
    cache.store.resize(2 * (cache.store.bytes // 3 + 2))
    assert keys[0] not in cache.store
    assert cache.counts()["vectors"] == 2
    assert cache.purge(tenant=TEAM) == 2
    assert cache.counts()["vectors"] == 0


def test_a_providers_own_answer_is_no_stream_for_similar_questions_either() -> None:
    cache = AnswerCache()
    kept(cache, chat(), at(0), native="gemini")
    assert cache.find_similar(Place(bucket(chat()), at(0)), 0.95, PLAIN, stream=True) is None
    assert cache.find_similar(Place(bucket(chat()), at(0)), 0.95, PLAIN, stream=False) is not None


def test_an_answer_that_was_not_kept_has_no_vector() -> None:
    cache = AnswerCache(entry_max_bytes=2)
    assert not cache.keep(b"k", Entry(b"xxx"), 60, place=Place(b"b", at(0)))
    assert not cache.keep(b"k", Entry(b"x"), 0, place=Place(b"b", at(0)))
    assert cache.counts()["vectors"] == 0


def test_a_worker_without_similar_questions_does_not_load_numpy() -> None:
    code = "import sys, gateway.cache.answers, gateway.cache.embedder; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the model --------------------------------------------------------------------------------------------------------

WORDS = ["[UNK]", "how", "tall", "is", "mont", "blanc", "high", "a", "cat"]
ROWS = [[float((7 * row + 3 * column) % 5 - 2) + row / 10 for column in range(4)] for row in range(len(WORDS))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model: Any = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(single="cat $A", special_tokens=[("cat", 8)])  # type: ignore[assignment]
    tokenizer.enable_truncation(2)  # what a text's vector is must not depend on it
    tokenizer.enable_padding(length=9, pad_id=8, pad_token="cat")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"normalize": false}')
    write_tensors(tmp_path / "model.safetensors", embeddings=np.array(ROWS, "float32"))
    return tmp_path


def expected(ids: list[int], weights: list[float] | None = None) -> list[float]:
    """The mean of the rows, at unit length."""
    rows = [[value * (weights[id] if weights else 1) for value in ROWS[id]] for id in ids]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    length = math.sqrt(sum(value * value for value in mean))
    return [value / length for value in mean]


def test_a_text_is_the_mean_of_its_words(folder: Path) -> None:
    embedder = LocalEmbedder(folder)
    assert (embedder.dimension, embedder.name) == (4, folder.name)
    vector = embedder.embed("how tall is mont blanc")
    assert vector is not None
    assert vector == pytest.approx(expected([1, 2, 3, 4, 5]), abs=1e-6)
    assert str(vector.dtype) == "float32"
    same = embedder.embed("how tall, is mont blanc?!")  # what it does not know is left out
    assert same is not None
    assert same == pytest.approx(vector, abs=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "unheard of"])
def test_a_text_without_a_known_word_has_no_vector(folder: Path, text: str) -> None:
    assert LocalEmbedder(folder).embed(text) is None


def test_only_the_beginning_of_a_long_text_is_read(folder: Path) -> None:
    embedder = LocalEmbedder(folder)
    long = embedder.embed("a " * TOKENS_MAX + "cat " * 5000)
    assert long is not None
    assert long == pytest.approx(expected([7]), abs=1e-5)


def test_weights_and_mappings_of_newer_models_are_read(folder: Path) -> None:
    weights = [0.5 + number / 4 for number in range(len(WORDS))]
    order = [3, 1, 4, 0, 5, 8, 2, 6, 7]  # the row of each token
    shuffled = np.zeros((len(ROWS), 4), "float64")
    for token, row in enumerate(order):
        shuffled[row] = ROWS[token]
    arrays = {"weights": np.array(weights, "float64"), "mapping": np.array(order, "int64")}
    write_tensors(folder / "model.safetensors", embeddings=shuffled, **arrays)
    vector = LocalEmbedder(folder).embed("how high is a cat")
    assert vector is not None
    assert vector == pytest.approx(expected([1, 6, 3, 7, 8], weights), abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_numbers_are_read(folder: Path, dtype: str) -> None:
    rows = np.array([[row, 1, -row] for row in range(len(WORDS))], dtype)
    write_tensors(folder / "model.safetensors", **{"embedding.weight": rows})
    vector = LocalEmbedder(folder).embed("is mont")
    assert vector is not None
    assert vector == pytest.approx(np.array([3.5, 1, -3.5]) / math.sqrt(25.5), abs=1e-3)


def broken_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


def told_tensor(**fields: Any) -> bytes:
    return json.dumps({"embeddings": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **fields}}).encode()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "header"),
        (b"[]", "header"),
        (b'{"embeddings": 1}', "header"),
        (b"{}", "no tensor"),
        (told_tensor(dtype="BF16", data_offsets=[0, 8]), "type BF16"),
        (told_tensor(shape=[2, 3]), "outside"),
        (told_tensor(shape=[-2, -2]), "outside"),
        (told_tensor(data_offsets=[56, 72]), "outside"),
        (told_tensor(data_offsets=[-16, 0]), "outside"),
        (told_tensor(data_offsets=[16, 0]), "outside"),
        (told_tensor(shape=[4]), "not a table"),
        (told_tensor(shape=[0, 4], data_offsets=[0, 0]), "not a table"),
        (told_tensor(), "9 tokens and vectors for 2"),
    ],
)
def test_a_file_that_is_not_as_it_says_is_refused(folder: Path, header: bytes, message: str) -> None:
    broken_header(folder, header)
    with pytest.raises(EmbedderError, match=message):
        LocalEmbedder(folder)


@pytest.mark.parametrize("data", [b"", b"abc", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_file_that_is_cut_off_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(EmbedderError, match="safetensors"):
        LocalEmbedder(folder)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weights": np.ones(3, "float32")}, "weights"),
        ({"weights": np.ones((9, 2), "float32")}, "weights"),
        ({"mapping": np.zeros(3, "int64")}, "mapping"),
        ({"mapping": np.zeros(9, "float32")}, "mapping"),
        ({"mapping": np.full(9, 9, "int64")}, "not there"),
        ({"mapping": np.full(9, -1, "int64")}, "not there"),
    ],
)
def test_tensors_that_do_not_fit_the_tokens_are_refused(folder: Path, extra: Any, message: str) -> None:
    write_tensors(folder / "model.safetensors", embeddings=np.array(ROWS, "float32"), **extra)
    with pytest.raises(EmbedderError, match=message):
        LocalEmbedder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(EmbedderError, match=name):
        LocalEmbedder(folder)


def test_a_vector_is_brought_to_unit_length() -> None:
    unit = unit_of([3.0, 4.0])
    assert unit is not None
    assert unit.tolist() == pytest.approx([0.6, 0.8])
