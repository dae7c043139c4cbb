"""A provider kind that an installed package brings: in a process of its own, because the catalogue is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests" / "example_package"
LOOK = """
import json
from providers import adapters
from providers.canonical import Call, Target, UnsupportedParamError
from providers.catalog import CATALOG, KIND_CHOICES
kind = CATALOG["acme"]
adapter = adapters.get(kind.adapter)
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "user": "u"}).encode()
call = Call("chat", "m", body, frozenset(json.loads(body)), stream=True, wants_usage=True)
request = adapter.build(call, Target(kind, "m"), 5)
reader = adapter.open_stream(call, Target(kind, "m"))
out = reader.feed(b'{"word": "HI"}\\n{"took"') + reader.feed(b': [1, 1]}\\n')
print(json.dumps({"choices": ["acme", "Acme shouting server"] in [list(pair) for pair in KIND_CHOICES],
    "body": json.loads(request.body), "operation": request.operation, "dropped": request.dropped,
    "done": reader.done, "events": out.count(b"data: "), "header": kind.credential_header("s")}))
"""


def run(program: str, *, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)


def test_an_installed_package_brings_a_kind_and_its_adapter() -> None:
    done = run(LOOK, path=PACKAGE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "choices": True,
        "body": {"ask": "hi", "most": 5, "live": True},
        "operation": "say",
        "dropped": ["user"],
        "done": True,
        "events": 3,
        "header": ["x-acme-key", "s"],
    }


def test_a_kind_that_cannot_be_loaded_is_left_out(tmp_path: Path) -> None:
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[hoosh.kinds]\nbroken = no_such_module:KIND\nodd = json:dumps\n")
    done = run("from providers.catalog import CATALOG; print('openai' in CATALOG, 'broken' in CATALOG)", path=tmp_path)
    assert done.stdout.split() == ["True", "False"]
    assert "no_such_module" in done.stderr
