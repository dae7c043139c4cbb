"""White space in prompts: what goes, and what is never touched."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context.compression import compressed, is_worth_it, steps

PROSE = [
    ("a  b   c", "a b c"),
    ("a \t b\t\tc", "a b c"),
    ("a\tb", "a\tb"),  # a single one says something
    ("a   \nb\t\nc", "a\nb\nc"),
    ("a\n\n\n\n\nb", "a\n\nb"),
    ("a\n \n\t\n  \nb", "a\n\nb"),
    ("a\n\n\n\n", "a\n\n"),
    ("\n\n\n\na", "\n\na"),
    ("a  b\r\nc  d  \r\n\r\n\r\n\r\ne", "a b\r\nc d\r\n\r\ne"),
    ("  in a   bit", "  in a bit"),
    ("- one   item\n  -   two   items\n 1.  three   items", "- one item\n  -   two items\n 1.  three items"),
    ("schön   wäre,   日本   語", "schön wäre, 日本 語"),
    ("no\u00a0\u00a0break", "no\u00a0\u00a0break"),
    ("use   `a  b`   now   ``c ` d``   x", "use `a  b` now ``c ` d`` x"),
    ("say   ```a   b```   to it", "say ```a   b``` to it"),
]


@pytest.mark.parametrize(("text", "told"), PROSE)
def test_prose_is_compressed(text: str, told: str) -> None:
    assert compressed(text) == told
    assert compressed(told) == told


CODE = [
    "```python\nx   =  1   \n\n\n\ny\t\t= 2\n```",
    "~~~\nx   =  1   \n\n\n\ny\n~~~",
    "````md\n```\na   b\n```\nc   d   \n````",
    "```\nnever   closed   \n\n\n\nx   y",
    "```\na\n   ```\n",
    "- ```sh\n  ls   -l\n  ```",
    "> ```\n> a   b\n> ```",
    "1. ~~~\n   a   b   \n\n\n   ~~~",
    "    x   = 1   \n\n\n\n    y   = 2",
    "\tx   = 1",
    "text\n\n    x   =  1",
    "```\n~~~\na   b\n~~~\nc   d\n```",
    "```\na   b\n- ```\nc   d\n```",  # no end: the marker makes it a line of code
    "```\na   b\n```not an end\nc   d",
    "```\na   b\n        ```\nc   d",
    "```\na   b }```\nc   d",
    "look: ```python\nx   =  1\n\n\n\ny   = 2\n```\nz   = 3",
    "a ` span\nof   two   ` lines   ",
    "an \\` escaped   ` one   ` here   ",
    "- a ` b\n- c   ` d   ` e",
    "<pre>\na   b\n\n\n\nc   d\n</pre>",
    '<file path="a.py">\nx   = 1\n\n\n\ny = 2\n</file>',
    "<CODE>a   b\nc   d</CODE>",
    "<code>a   b",
    "diff --git a/x b/x\n-a   b\n+a  b   \n\n\n\n x",
    "@@ -1 +1 @@\n a   b   ",
    "| a    | b  |\n|------|----|\n| c    | d  |",
    "a    | b\n-----|---\nc    | d",
    "> said   he   ",
    '{"a":   1,\n\n\n\n  "b":  "x  y"}',
    "[1,   2,\n\n\n 3]",
    'Here it is: {"a":  "b   c"}',
    '  "name":   "x   y",',
    "<?xml version='1.0'?>\n<a>x   y</a>",
    "   \n\n\n\n  ",
    "",
]


@pytest.mark.parametrize("text", CODE)
def test_code_and_data_are_left_to_the_byte(text: str) -> None:
    assert compressed(text) == text


def test_what_stands_around_code_is_compressed() -> None:
    text = "Look   at:\n\n\n\n```\nx   = 1\n\n\n\n```   \n\n\n\nand   so\n<pre>a   b</pre>\nsay   so   "
    told = "Look at:\n\n```\nx   = 1\n\n\n\n```   \n\nand so\n<pre>a   b</pre>\nsay so"
    assert compressed(text) == told


def test_the_end_of_a_part_does_not_stick_to_the_next() -> None:
    assert compressed("one   two   ", whole=False) == "one two "
    assert compressed("one   two ", whole=False) == "one two "
    assert compressed("one   `two`\t ", whole=False) == "one `two` "
    assert compressed("one   two\n", whole=False) == "one two\n"


def test_what_has_nothing_to_spare_is_not_even_read() -> None:
    assert not is_worth_it("plain words,\nand more\n\nof them")
    assert is_worth_it("two  blanks")


def test_a_long_text_is_worked_on_in_slices() -> None:
    text = "some   words   of   prose\n" * 40_000
    work = steps(text)
    assert sum(1 for _ in work) > 100
    assert compressed(text) == "some words of prose\n" * 40_000


PIECES = st.sampled_from(
    [
        *(
            "word",
            "Wort",
            "日本",
            " ",
            "  ",
            "   ",
            "\t",
            "\n",
            "\n\n",
            "\n\n\n\n",
            "\r\n",
            "`",
            "``",
            "```",
            "\n```\n",
        ),
        *("\n~~~\n", "~~~", "    ", "\n    code  x", "> ", "| ", "- ", "1. ", '{"a":  1}', "<pre>", "</pre>", "<file>"),
        *("</file>", "\n```py\n", "\\`", "diff --git a", "\n@@ -1", "[", "]"),
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join), st.booleans())
def test_compressing_again_changes_nothing_and_only_white_space_goes(text: str, whole: bool) -> None:
    told = compressed(text, whole=whole)
    assert compressed(told, whole=whole) == told
    assert re.sub(r"[ \t\r\n]+", "", told) == re.sub(r"[ \t\r\n]+", "", text)
    assert len(told) <= len(text)
    assert bool(told.strip()) == bool(text.strip())


LINE = st.sampled_from(["x   = 1   ", "\ty\t\t= 2", "", "   ", "if  a:", "    b   ", "- c   d", "# e   f", "~~", "``"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["some   prose  ", "more   of   it", "", "- an   item"]), max_size=5),
    st.sampled_from(["```", "~~~", "````", "```python", "  ```", "~~~~ text"]),
    st.lists(LINE, max_size=12),
    st.booleans(),
)
def test_a_fenced_block_comes_out_as_it_went_in(before: list[str], fence: str, code: list[str], closed: bool) -> None:
    end = [re.match(r"[`~]+", fence.strip())[0], "", "", "", "and   then  "] if closed else []  # type: ignore[index]
    block = "\n".join([fence, *code, *end[:1]])
    told = compressed("\n".join([*before, block, *end[1:]]))
    assert block in told
    assert told.endswith("\n\nand then" if closed else block)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.text(" ab\n", max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_json_is_never_touched(value: object) -> None:
    text = json.dumps({"key  with   blanks": value}, indent=4)
    assert compressed(text) == text


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000 + "x",
        "a" + " \t" * 500_000 + "b",
        "a  " * 330_000,
        "`a  " * 250_000,
        "".join("`" * n + " " for n in range(1, 1400)),
        "<file>  " * 120_000 + "</file>",
        "".join(f"<x{n}file>  " for n in range(80_000)),
        "<" + "a-" * 500_000 + "  x",
        "- " * 500_000 + "`  x",
        "\n".join(["a  b `"] * 120_000),
        "\n  \n" * 250_000 + "x",
        "> " * 400_000 + "```",
    ],
    ids=lambda text: repr(text[:8]),
)
def test_a_megabyte_of_anything_is_done_in_little_time(text: str) -> None:
    begun = time.process_time()
    compressed(text)
    assert time.process_time() - begun < 0.6
