"""What an auditor does with a running gateway: reads, exports, verifies elsewhere, proves requests, finds changes."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import children, environment
from tests.servers import PROJECT_DIR, Gateway, ProviderEntry, UpstreamProcess, request_id

pytestmark = pytest.mark.processes

MESSAGES: list[Any] = [{"role": "user", "content": "say a few words"}]
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamProcess]:
    running = UpstreamProcess(environment.session_dir() / "audit-upstream").start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(upstream: UpstreamProcess) -> Iterator[Gateway]:
    directory = environment.session_dir() / "audit-live"
    anchors = {"HOOSH_AUDIT_ANCHOR_FILE": str(directory / "anchors.jsonl"), "HOOSH_AUDIT_ANCHOR_S": "1"}
    providers = [ProviderEntry(upstream.base_url, models=["ok"])]
    with Gateway(directory, providers=providers, env=anchors) as running:
        yield running


class Operator:
    """Signed in to admin over HTTP."""

    def __init__(self, gateway: Gateway) -> None:
        self._client = httpx.Client(base_url=gateway.base_url, follow_redirects=False, timeout=60)
        told = re.search(r"password:\s*(\S+)", (gateway.data_dir / "first-run.txt").read_text())
        assert told is not None
        assert self.post("/admin/login/", username="admin", password="wrong").status_code == 200
        assert self.post("/admin/login/", username="admin", password=told[1]).status_code == 302

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def post(self, path: str, **form: str) -> httpx.Response:
        token = TOKEN.search(self._client.get(path).text)
        assert token is not None, path
        headers = {"Referer": str(self._client.base_url)}
        return self._client.post(path, data={"csrfmiddlewaretoken": token[1], **form}, headers=headers)


def entries(gateway: Gateway, **query: str) -> dict[str, Any]:
    answer = httpx.get(f"{gateway.base_url}/v1/audit", params=query, headers=gateway.auth, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_for_entry(gateway: Gateway, **query: str) -> dict[str, Any]:
    found = children.wait_for(lambda: entries(gateway, **query)["entries"], f"an entry {query}")
    entry: dict[str, Any] = found[0]
    return entry


def verify(directory: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a copy of the verifier where there is nothing of ours."""
    shutil.copy(PROJECT_DIR / "tools" / "verify_audit.py", directory / "verify_audit.py")
    command = [sys.executable, "-I", "verify_audit.py", *arguments, "--json"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, env={})
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def first_key(operator: Operator) -> str:
    found = re.search(r'id="vkey">([^<]+)<', operator.get("/admin/audit/auditentry/verification/").text)
    assert found is not None
    return found[1].replace("&#x2B;", "+")


def test_from_the_first_sign_in_to_an_export_that_shows_what_was_changed(gateway: Gateway, tmp_path: Path) -> None:
    operator = Operator(gateway)
    assert operator.post("/admin/budgets/team/add/", name="red", enabled="on").status_code == 302
    assert operator.post("/admin/budgets/team/add/", name="red", enabled="on").status_code == 200  # there is one
    text = gateway.create_key("audited", "--team", "red")
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=text, max_retries=0, timeout=30) as client:
        raws = [client.chat.completions.with_raw_response.create(model="ok", messages=MESSAGES) for _ in range(5)]
    stranger = openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key="hk-wrong", max_retries=0, timeout=30)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="ok", messages=MESSAGES)
    rids = [request_id(raw.headers) for raw in raws]

    # Read: everything is there, and verified.
    assert wait_for_entry(gateway, action="operator.signed_in")["actor"] == "admin"
    assert wait_for_entry(gateway, action="operator.sign_in_refused")["level"] == "warning"
    assert wait_for_entry(gateway, action="team.created", target="red")["actor"] == "admin"
    assert wait_for_entry(gateway, action="key.created")
    assert wait_for_entry(gateway, action="request.refused")["data"]["code"] == "invalid_api_key"
    for rid in rids:
        wait_for_entry(gateway, q=rid)
    told = entries(gateway, limit="1000")
    assert (told["chain_valid"], told["total"]) == (True, len(told["entries"]))
    assert text not in json.dumps(told)

    # Prove: anybody verifies a request's proof with the verifier and the first key.
    key = first_key(operator)
    for rid in rids:
        proof = children.wait_for(lambda rid=rid: _proof(gateway, text, rid), f"the proof of {rid}")
        (tmp_path / "proof.json").write_bytes(proof)
        status, found = verify(tmp_path, "--proof", "proof.json", "--key", key)
        assert (status, found["summary"]["usage"]["id"]) == (0, rid), found
    (tmp_path / "proof.json").write_bytes(proof.replace(b"200", b"201"))
    assert verify(tmp_path, "--proof", "proof.json", "--key", key)[0] == 1

    # Export and verify with anchors, without anything of ours.
    gateway.manage("audit_export", "--out", str(tmp_path / "export.jsonl"))
    anchors = gateway.directory / "anchors.jsonl"
    children.wait_for(lambda: anchors.exists() and anchors.read_text(), "an anchor")
    status, found = verify(tmp_path, "export.jsonl", "--key", key, "--anchors", str(anchors))
    assert status == 0, found
    assert found["summary"]["requests"] >= 5

    # Change an entry behind the gateway's back.
    seq = wait_for_entry(gateway, action="team.created", target="red")["seq"]
    with closing(sqlite3.connect(gateway.data_dir / "ledger.sqlite3", timeout=60)) as connection, connection:
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute("UPDATE audit_entry SET body = replace(body, 'red', 'rad') WHERE seq = ?", (seq,))
        connection.execute("DROP TRIGGER audit_entry_update")
        connection.execute("UPDATE audit_entry SET body = replace(body, 'red', 'rad') WHERE seq = ?", (seq,))
    assert entries(gateway, limit="1000")["chain_valid"] is False
    with pytest.raises(children.ChildError, match=f"entry {seq}"):
        gateway.manage("audit_verify", "--key", key)
    children.wait_for(lambda: not entries(gateway, limit="1")["chain_valid"], "the round to find it", timeout_s=90)
    told = entries(gateway, limit="1")
    assert told["verified"]["fault"]["seq"] == seq
    assert wait_for_entry(gateway, action="audit.broken")["level"] == "critical"
    page = operator.get("/admin/audit/auditentry/verification/").text
    assert "The log is not what was signed" in page


def _proof(gateway: Gateway, key: str, rid: str) -> bytes | None:
    answer = httpx.get(
        f"{gateway.base_url}/v1/audit/proof/inclusion",
        params={"request_id": rid},
        headers={"authorization": f"Bearer {key}"},
        timeout=20,
    )
    return answer.content if answer.status_code == 200 else None
