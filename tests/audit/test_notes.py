from __future__ import annotations

import base64
from hashlib import sha256

import pytest

from audit import notes
from tests.audit.made_log import key_of
from tools import verify_audit

OLD, NEW = key_of("old"), key_of("new")
NAME = f"hoosh/{notes.instance_of(notes.public_bytes(OLD))}"
OLD_VKEY, NEW_VKEY = (notes.make_vkey(NAME, notes.public_bytes(key)) for key in (OLD, NEW))
AT = "2026-11-05T09:30:00.000000Z"
ROOT = sha256(b"root").digest()
TEXT = notes.checkpoint_text(f"{NAME}/2026-11", 1234, ROOT, at=AT, epoch=2, previous="ab" * 32)


def test_a_checkpoint_is_a_note_as_c2sp_has_it():
    note = notes.sign(TEXT, NAME, OLD)
    body, _, signature = note.partition("\n\n")
    assert body.split("\n")[:3] == [f"{NAME}/2026-11", "1234", base64.b64encode(ROOT).decode()]
    assert body.split("\n")[3:] == [f"time {AT}", "epoch 2", f"previous {'ab' * 32}"]
    assert signature.startswith(f"— {NAME} ")
    blob = base64.b64decode(signature.split(" ")[2])
    assert blob[:4] == sha256(NAME.encode() + b"\n\x01" + notes.public_bytes(OLD)).digest()[:4]
    OLD.public_key().verify(blob[4:], f"{body}\n".encode())


def test_published_keys_and_notes_verify():
    # The examples of golang.org/x/mod/sumdb/note, and the key of Go's checksum database.
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    blob = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    vkey = notes.parse_vkey("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert vkey.hash == blob[:4]
    assert notes.signed_by(vkey, blob[4:], text.encode())
    assert verify_audit.ed25519_in_python(vkey.public, blob[4:], text.encode())
    golang = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert str(notes.parse_vkey(golang)) == verify_audit.read_key(golang).vkey == golang


def test_keys_read_back_and_malformed_ones_are_refused():
    text = str(OLD_VKEY)
    assert notes.parse_vkey(text) == OLD_VKEY
    name, digest, blob = text.split("+", 2)
    for wrong in (
        "",
        name,
        f"{name}+{digest}",
        f"x{text}",
        f"{name}+00000000+{blob}",
        text[:-1],
        f"{text}\n",
        f"+{text}",
    ):
        with pytest.raises(notes.NoteError):
            notes.parse_vkey(wrong)
        with pytest.raises((verify_audit.Fault, *verify_audit.MALFORMED)):
            verify_audit.read_key(wrong)


def test_a_note_reads_back():
    checkpoint = notes.verify(notes.sign(TEXT, NAME, OLD, NEW), [OLD_VKEY, NEW_VKEY])
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (f"{NAME}/2026-11", 1234, ROOT)
    assert (checkpoint.at, checkpoint.epoch, checkpoint.previous) == (AT, 2, "ab" * 32)
    assert checkpoint.text == TEXT


def test_only_the_keys_that_are_due_make_a_note_valid():
    one, two = notes.sign(TEXT, NAME, OLD), notes.sign(TEXT, NAME, OLD, NEW)
    for note, keys in ((one, [NEW_VKEY]), (one, [OLD_VKEY, NEW_VKEY]), (two, [OLD_VKEY]), (two, [NEW_VKEY, OLD_VKEY])):
        with pytest.raises(notes.NoteError):
            notes.verify(note, keys)
    with pytest.raises(notes.NoteError):
        notes.verify(one, [])


def test_every_flipped_bit_of_a_note_is_found_by_module_and_verifier():
    note = notes.sign(TEXT, NAME, OLD).encode()
    key = verify_audit.read_key(str(OLD_VKEY))
    for bit in range(len(note) * 8):
        flipped = bytearray(note)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        try:
            text = flipped.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(notes.NoteError):
            notes.verify(text, [OLD_VKEY])
        with pytest.raises((verify_audit.Fault, *verify_audit.MALFORMED)):
            verify_audit.read_note(text, [key])


@pytest.mark.parametrize(
    "values",
    [
        {"origin": "with space"},
        {"origin": "two\nlines"},
        {"size": -1},
        {"root": b"short"},
        {"at": "2026-11-05 09:30"},
        {"epoch": 0},
        {"previous": ""},
    ],
)
def test_a_checkpoint_has_no_other_values(values):
    good = {"origin": "o/n", "size": 1, "root": ROOT, "at": AT, "epoch": 1, "previous": notes.NO_PREVIOUS}
    notes.checkpoint_text(**good)
    with pytest.raises(notes.NoteError):
        notes.checkpoint_text(**{**good, **values})


@pytest.mark.parametrize("wrong", ["", "text", TEXT, f"{TEXT}\n", f"{TEXT}\n— {NAME} AAAA\n", f"{TEXT}\n— {NAME}\n"])
def test_what_is_no_note_is_refused(wrong):
    with pytest.raises(notes.NoteError):
        notes.parse(wrong)
