"""`tools/verify_audit.py` on its own: its Ed25519, proof files, its command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit import canonical, merkle, notes
from tests.audit.made_log import MadeLog, closed, key_of
from tests.audit.verifying import all_notes, changed_entry, fault_of, made
from tools import verify_audit
from tools.verify_audit import Fault, read_key

VERIFIER = Path(verify_audit.__file__)


# Ed25519 in Python.


def by_cryptography(public: bytes, signature: bytes, message: bytes) -> bool:
    """What the library says."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_ed25519_in_python_agrees_with_the_library():
    chosen = random.Random(8032)
    verdicts = []
    order = verify_audit.ORDER
    for _ in range(60):
        key = Ed25519PrivateKey.from_private_bytes(chosen.randbytes(32))
        public, message = notes.public_bytes(key), chosen.randbytes(chosen.randrange(200))
        signature = key.sign(message)
        s = int.from_bytes(signature[32:], "little")
        bit = 1 << chosen.randrange(256)
        cases = [
            (public, signature, message),
            (public, signature, message + b"x"),
            (public, (int.from_bytes(signature, "little") ^ bit).to_bytes(64, "little"), message),
            (public, (int.from_bytes(signature, "little") ^ bit << 256).to_bytes(64, "little"), message),
            ((int.from_bytes(public, "little") ^ bit).to_bytes(32, "little"), signature, message),
            (public, signature[:32] + (s + order).to_bytes(32, "little"), message),
            (public, chosen.randbytes(64), message),
            (chosen.randbytes(32), signature, message),
            (public, signature[:-1], message),
            (public, signature + b"\0", message),
            (public[:-1], signature, message),
            (public, bytes(64), message),
        ]
        for case in cases:
            verdict = verify_audit.ed25519_in_python(*case)
            assert verdict == by_cryptography(*case), case
            verdicts.append(verdict)
    assert verdicts.count(True) == 60


def test_ed25519_in_python_verifies_the_vectors_of_rfc_8032():
    vectors = [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ]
    for public, message, signature in vectors:
        case = [bytes.fromhex(item) for item in (public, signature, message)]
        assert verify_audit.ed25519_in_python(*case)
        assert not verify_audit.ed25519_in_python(case[0], case[1], case[2] + b"x")


# Proof files.


def proof_of(log: MadeLog, seq: int, **more: object) -> dict[str, object]:
    """The proof that an entry is below the last checkpoint of its month."""
    month = max((m for m in log.months if m.first_seq <= seq), key=lambda m: m.first_seq)
    size, note = month.checkpoints[-1]
    path = merkle.inclusion_proof(merkle.reader_of(month.leaves), seq - month.first_seq, size)
    return {
        "kind": "proof", "format": "1", "entry": month.bodies[seq - month.first_seq].decode(), "size": size,
        "index": seq - month.first_seq, "path": [item.hex() for item in path], "checkpoint": note,
        "rotations": log.rotations, **more,
    }  # fmt: skip


def request_proof(log: MadeLog, at: int) -> dict[str, object]:
    """The proof of the last usage record of a batch."""
    seq, owner, number, records = log.batches[at]
    index = len(records) - 1
    path = merkle.inclusion_proof(merkle.reader_of([*map(merkle.leaf_hash, records)]), index, len(records))
    batch = {
        "owner": owner, "number": number, "count": len(records), "index": index, "path": [item.hex() for item in path]
    }  # fmt: skip
    return proof_of(log, seq, usage=records[index].decode(), batch=batch)


def check_proof(proof: dict[str, object], log: MadeLog, anchored: Sequence[str] = ()) -> dict[str, object]:
    """Verify a proof."""
    data = canonical.encode(proof) + b"\n"
    return verify_audit.read_proof(data, read_key(log.first_vkey), verify_audit.Anchors(anchored))


def test_proofs_of_entries_and_requests_verify():
    log = made()
    for seq in (0, 33, 60, 61, 100, log.seq - 1):
        found = check_proof(proof_of(log, seq), log, all_notes(log))
        assert (found["entry"]["seq"], found["anchors_matched"]) == (str(seq), 1)
    for at in (0, 5, len(log.batches) - 1):
        found = check_proof(request_proof(log, at), log)
        assert found["usage"] == json.loads(log.batches[at][3][-1])


@pytest.mark.parametrize(
    "change",
    [
        {"entry": lambda log: log.months[0].bodies[5].decode()},
        {"index": lambda log: "1"},
        {"size": lambda log: "7"},
        {"path": lambda log: []},
        {"checkpoint": lambda log: log.months[0].checkpoints[1][1]},
        {"checkpoint": lambda log: made("other").months[0].checkpoints[-1][1]},
        {"usage": lambda log: log.batches[7][3][0].decode()},
        {"rotations": lambda log: None},
        {"batch": lambda log: {**request_proof(log, 4)["batch"], "owner": "w9"}},
        {"batch": lambda log: {**request_proof(log, 4)["batch"], "index": 0}},
        {"kind": lambda log: "other"},
    ],
)
def test_a_forged_proof_proves_nothing(change):
    log = made()
    proof = request_proof(log, 4)
    check_proof(proof, log)
    with pytest.raises((Fault, *verify_audit.MALFORMED)):
        check_proof({**proof, **{name: value(log) for name, value in change.items()}}, log)
    with pytest.raises(Fault):
        check_proof(proof, made("other"))


def test_one_checkpoint_is_shown_to_continue_another():
    log = made()
    month = log.months[0]
    reader = merkle.reader_of(month.leaves)
    second_size, second = month.checkpoints[-1]
    for size, first in month.checkpoints:
        path = [item.hex() for item in merkle.consistency_proof(reader, size, second_size)]
        proof = {"kind": "consistency", "format": "1", "first": first, "second": second, "path": path}
        proof["rotations"] = log.rotations
        assert check_proof(proof, log)["continues_size"] == size
        with pytest.raises(Fault):
            check_proof({**proof, "path": [*path, "00" * 32]}, log)
        with pytest.raises(Fault):
            check_proof({**proof, "second": log.months[1].checkpoints[-1][1]}, log)


# The command line.


def run(*arguments: str | Path, flags: Sequence[str] = ("-I",)) -> subprocess.CompletedProcess[str]:
    """Run the verifier as an auditor would."""
    command = [sys.executable, *flags, VERIFIER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture
def files(tmp_path):
    """A good export, a bad one, a proof and anchors in a file with syslog lines."""
    log = made()
    lines = log.export()
    (tmp_path / "good").write_bytes(b"".join(lines))
    (tmp_path / "bad").write_bytes(b"".join(changed_entry(lines, 27)))
    (tmp_path / "proof").write_bytes(canonical.encode(request_proof(log, 4)))
    (tmp_path / "bad proof").write_bytes(canonical.encode(request_proof(log, 4) | {"index": 2}))
    anchors = [f"<134>1 host hoosh - {json.dumps({'note': note}, ensure_ascii=False)}\n" for note in all_notes(log)]
    (tmp_path / "anchors").write_text("another line\n" + "".join(anchors))
    (tmp_path / "not anchors").write_text('{"note": "something"}\n')
    return log, tmp_path


def test_the_command_says_what_it_found_by_its_exit_status(files):
    log, path = files
    key = ("--key", log.first_vkey)
    good = run(path / "good", *key, "--anchors", path / "anchors")
    assert good.returncode == 0, good.stderr
    assert "OK: everything fits." in good.stdout
    assert "WARNING" not in good.stdout
    assert f"anchors matched   {len(all_notes(log))}" in good.stdout
    (path / "empty").write_text("another line\n")
    unused = run(path / "good", *key, "--anchors", path / "empty")
    assert "WARNING: the anchor files hold no checkpoint" in unused.stdout
    bodies = [{"type": "audit.checkpoint", "id": 7, "data": {"size": 1, "note": note}} for note in all_notes(log)]
    (path / "webhook").write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    called = run(path / "good", *key, "--anchors", path / "webhook")
    assert f"anchors matched   {len(all_notes(log))}" in called.stdout
    bad = run(path / "bad", *key)
    assert bad.returncode == 1
    assert "FAULT at line 45, entry 21: entries 21 to 40 are not those that were signed" in bad.stdout
    assert "OK:" not in bad.stdout.replace("NOT OK:", "")
    unpinned = run(path / "good")
    assert unpinned.returncode == 0
    assert "WARNING: no --key" in unpinned.stdout
    assert run("--proof", path / "proof", *key).returncode == 0
    assert run("--proof", path / "bad proof", *key).returncode == 1


def test_nothing_in_the_input_writes_beyond_its_line_or_fails_for_a_charset(files):
    log, path = files
    lines = (path / "good").read_bytes().splitlines(keepends=True)
    header = canonical.encode(json.loads(lines[0]) | {"at": "\x1b[2J é\nOK: everything fits."}) + b"\n"
    (path / "hostile").write_bytes(b"".join(closed([header, *lines[1:-1]], key_of("other"))))
    command = [sys.executable, VERIFIER, path / "hostile", "--key", log.first_vkey]
    latin = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=latin)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\nOK:" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.endswith("NOT OK.\n")


def test_the_command_gives_json(files):
    log, path = files
    bad = json.loads(run(path / "bad", "--key", log.first_vkey, "--json").stdout)
    assert (bad["ok"], bad["fault"]["seq"], bad["summary"]["entries"]) == (False, 21, 41)
    good = json.loads(run(path / "good", "--key", log.first_vkey, "--json").stdout)
    assert (good["ok"], good["fault"], good["warnings"]) == (True, None, [])
    assert good["summary"]["entries"] == log.seq


def test_the_command_cannot_use_what_is_not_there_or_no_key(files):
    log, path = files
    for arguments in (
        [path / "missing"],
        [path / "good", "--key", "nonsense"],
        [path / "good", "--key", log.first_vkey + "x"],
        [path / "good", "--anchors", path / "not anchors"],
        ["--proof", path / "proof"],
        [],
    ):
        assert run(*arguments).returncode == 2, arguments


def test_it_needs_nothing_but_the_standard_library(files):
    log, path = files
    alone = ("-I", "-S")  # without installed packages: signatures are verified in Python
    assert run(path / "good", "--key", log.first_vkey, flags=alone).returncode == 0
    assert run(path / "bad", "--key", log.first_vkey, flags=alone).returncode == 1
    lines = closed((path / "good").read_bytes().splitlines(keepends=True)[:-1], key_of("other"))
    (path / "forged").write_bytes(b"".join(lines))
    forged = run(path / "forged", "--key", log.first_vkey, flags=alone)
    assert (forged.returncode, "signature is wrong" in forged.stdout) == (1, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b'{"kind":"export"}\n',
        b"not an export",
        b"\xff\xfe\n",
        b'{"kind":["export"]}\n',
        b"[" * 100_000 + b"\n",
        b'{"kind":"entry"}\n',
        b'{"kind":"take_export"}\n',
    ],
)
def test_anything_else_is_a_fault_in_the_first_line(content):
    assert fault_of([content], None).line == 1
