"""Which kinds of providers were proven to work, by which tests: how that is recorded, and the page that tells it.

A test that is decorated with `proves` is one cell of the table of docs/compatibility.md for each kind it is run with.
It is recorded when it has passed; `page` writes what was recorded and nothing else. The clients' table is a list of
tests elsewhere: `missing_tests` says which of them do not exist.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from providers.catalog import _ROWS

KINDS = {kind.name: kind.label for kind in _ROWS}  # without those of packages that happen to be installed
PROJECT_DIR = Path(__file__).resolve().parent.parent
PAGE = PROJECT_DIR / "docs" / "compatibility.md"
OPTION = "--write-compatibility"
COMMAND = f"python -m pytest tests/gateway/test_compatibility.py {OPTION}"

COLUMNS = ("chat", "stream", "tools", "usage", "errors", "completions", "embeddings")
# How something was proven, the strongest first.
REAL, GOLDEN, IN_PROCESS = "real llama.cpp", "golden exchanges", "in process"
PASSES, FAILS, NONE = "✓", "✗", "\u2013"


@dataclass(frozen=True)
class Cell:
    """One proof of one field of the table."""

    kind: str
    column: str
    proof: str


@dataclass(frozen=True)
class Proof:
    """A test that has a part in the proof of a cell."""

    test: str
    cell: Cell


@dataclass
class Record:
    """What is to be proven by the tests of a module, and what has been."""

    planned: set[Proof] = field(default_factory=set)
    passed: set[Proof] = field(default_factory=set)

    def proves(self, column: str, kinds: Iterable[str], proof: str = GOLDEN) -> Callable[[Any], Any]:
        """Run a test with each of the kinds (its argument `kind`). What all tests of a cell passed with is proven."""
        names = list(kinds)
        assert column in COLUMNS

        def decorated(test: Callable[..., None]) -> Any:
            def proof_of(kind: str) -> Proof:
                return Proof(test.__name__, Cell(kind, column, proof))

            @functools.wraps(test)
            def recorded(*arguments: Any, **named: Any) -> None:
                test(*arguments, **named)
                self.passed.add(proof_of(named["kind"]))

            self.planned |= set(map(proof_of, names))
            recorded.proof_of = proof_of  # type: ignore[attr-defined]
            return pytest.mark.parametrize("kind", names)(recorded)

        return decorated

    def selected(self, items: Iterable[pytest.Item]) -> set[Proof]:
        """Those whose tests are among these."""
        found = set()
        for item in items:
            proof_of = getattr(getattr(item, "function", None), "proof_of", None)
            if proof_of is not None:
                found.add(proof_of(item.callspec.params["kind"]))  # type: ignore[attr-defined]
        return found & self.planned

    @property
    def failed(self) -> set[Proof]:
        """What did not pass."""
        return self.planned - self.passed


# --- clients ----------------------------------------------------------------------------------------------------------

_SDKS, _OPENAI = "tests/e2e/test_sdk_clients.py", "tests/e2e/test_openai_sdk.py"
_NODE, _CLIS = "tests/e2e/test_node_clients.py", "tests/e2e/test_cli_clients.py"
CLIENTS: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "openai (Python)",
        "chat, completions, embeddings, models, Responses, tools, structured answers, errors",
        (
            (
                _OPENAI,
                (
                    "test_python_chat_is_answered_and_booked",
                    "test_python_stream_delivers_the_text_and_usage_only_when_asked",
                    "test_python_completions_with_the_older_endpoint",
                    "test_python_embeddings_are_the_same_as_base64_and_as_floats",
                ),
            ),
            (_SDKS, ("test_openai_chat_calls_tools", "test_openai_responses_stream_ends_with_the_whole_answer")),
        ),
    ),
    (
        "openai (Node)",
        "chat, embeddings, Responses, tools, errors",
        (
            (_OPENAI, ("test_node_client_chats_streams_and_embeds",)),
            (_NODE, ("test_openai_client_calls_tools_and_speaks_the_responses_api",)),
        ),
    ),
    (
        "anthropic (Python)",
        "messages, tools, structured answers, token counts, models, errors",
        (
            (
                _SDKS,
                (
                    "test_anthropic_messages_are_answered_and_booked",
                    "test_anthropic_stream_builds_the_final_message",
                    "test_anthropic_calls_tools_and_takes_their_results",
                ),
            ),
        ),
    ),
    (
        "google-genai (Python)",
        "contents, functions, structured answers, embeddings, token counts, models, errors",
        (
            (
                _SDKS,
                (
                    "test_gemini_contents_are_answered_and_booked",
                    "test_gemini_stream_ends_with_a_reason_and_usage",
                    "test_gemini_calls_functions_and_takes_their_results",
                ),
            ),
        ),
    ),
    (
        "ollama (Python)",
        "chat, tools, structured answers, embeddings, models, errors",
        (
            (
                _SDKS,
                (
                    "test_ollama_chats_and_is_booked",
                    "test_ollama_streams_by_lines",
                    "test_ollama_calls_tools_and_takes_their_results",
                ),
            ),
        ),
    ),
    (
        "groq (Python)",
        "chat, tools, models, errors",
        ((_SDKS, ("test_groq_chats_streams_and_is_booked", "test_groq_calls_tools")),),
    ),
    (
        "mistralai (Python)",
        "chat, tools, embeddings, models, errors",
        (
            (
                _SDKS,
                (
                    "test_mistral_chats_and_is_booked",
                    "test_mistral_streams_and_calls_tools",
                    "test_mistral_embeds",
                    "test_mistral_lists_models",
                ),
            ),
        ),
    ),
    (
        "langchain-openai",
        "chat, Responses, tools, embeddings, errors",
        (
            (
                _SDKS,
                (
                    "test_langchain_is_answered_streams_and_calls_tools",
                    "test_langchain_is_booked_and_embeds",
                ),
            ),
        ),
    ),
    (
        "AI SDK (Node)",
        "its OpenAI (chat, Responses), Anthropic and compatible providers",
        ((_NODE, ("test_ai_sdk_speaks_with_every_provider",)),),
    ),
    ("codex CLI", "one prompt", ((_CLIS, ("test_codex_answers_a_prompt",)),)),
    ("claude CLI", "one prompt", ((_CLIS, ("test_claude_answers_a_prompt",)),)),
)


def missing_tests(root: Path = PROJECT_DIR) -> list[str]:
    """The tests named in the clients' table that do not exist."""
    missing = []
    for _, _, proofs in CLIENTS:
        for module, names in proofs:
            path = root / module
            tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            missing += [f"{module}::{name}" for name in names if name not in there]
    return missing


# --- the page ---------------------------------------------------------------------------------------------------------

_HEAD = f"""# What was proven to work

Written from tests that passed, and not by hand: a test fails when this page says anything else. To write it anew:

    {COMMAND}

## Providers

Every kind of provider of the catalogue, behind a worker of the gateway, on real sockets. {PASSES}: all its tests pass.
{FAILS}: one does not. {NONE}: the provider has no such thing. *Proven by* says against what:

- **golden exchanges**: a server of our own that imitates this provider, written from its documented formats and from
  recorded answers: its paths, its credential header, what it refuses, and what it tells differently. **The provider's
  own service was never asked**, and may have changed since. Where neither says anything (of Synapse, nearly
  everywhere), it does as OpenAI's API does.
- **real llama.cpp**: the real llama.cpp server, with a model of 0.65 MB. What it cannot be made to do at will
  (429, 500, a failure in the middle of a stream) its imitation alone has shown.
- **in process**: the gateway's own demo model.

What each column means:

- *chat*: text, model and finish reason; the output limit under either name, sampling parameters and the seed arrive as
  the provider knows them; a history with another provider's reasoning is taken; the same over the Responses API, with
  reasoning.
- *stream*: every piece in order, and one end; the same over the Responses API.
- *tools*: call and result, one and two at once, whole and streamed; a call that must be made; one that another provider
  made.
- *usage*: client and books get exactly what the provider says, cached and reasoning tokens included, whether the client
  asks or not.
- *errors*: 429 with `Retry-After`, 500, a refused credential, a refused request, cut connections and errors in band,
  each in OpenAI's shape; parameters the provider refuses do not reach it, under the name that each caller has for them.
- *completions*: legacy completions, whole and streamed, their usage and errors; by a chat where the provider has none.
- *embeddings*: several texts, as numbers and as base64, and their usage.
"""

_CLIENTS_HEAD = """
## Clients

Real programs that run in the test suite, through all of the gateway's processes to real llama.cpp servers. What each
API answers, and with which providers: [dialects](dialects.md).

| client | what it does there | tests |
| --- | --- | --- |
"""


def page(record: Record) -> str:
    """The page for what was proven. A cell is proven when every test of it has passed."""
    lines = [f"| provider | kind | {' | '.join(COLUMNS)} | proven by |", "| --- " * (len(COLUMNS) + 3) + "|"]
    failed = {proof.cell for proof in record.failed}
    for kind, label in KINDS.items():
        planned = {proof.cell for proof in record.planned if proof.cell.kind == kind}
        marks = " | ".join(_mark({cell for cell in planned if cell.column == column}, failed) for column in COLUMNS)
        lines.append(f"| {label} | `{kind}` | {marks} | {_proofs(planned - failed)} |")
    text = _HEAD + "\n" + "\n".join(lines) + "\n" + _CLIENTS_HEAD
    for client, what, proofs in CLIENTS:
        modules = ", ".join(f"[{Path(module).stem}](../{module})" for module, _ in proofs)
        text += f"| {client} | {what} | {modules} |\n"
    return text


def _mark(cells: set[Cell], failed: set[Cell]) -> str:
    return FAILS if cells & failed else PASSES if cells else NONE


def _proofs(cells: set[Cell]) -> str:
    """How the cells of one row were proven; which of them, where not all were."""
    columns = {cell.column for cell in cells}
    told = []
    for proof in (REAL, GOLDEN, IN_PROCESS):
        by = {cell.column for cell in cells if cell.proof == proof}
        if by:
            some = "" if by == columns else f" ({', '.join(column for column in COLUMNS if column in by)})"
            told.append(proof + some)
    return ", ".join(told)
