from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import merkle
from tools import verify_audit

# Leaves, roots and proofs of the reference tests of Certificate Transparency.
REFERENCE_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
REFERENCE_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
N01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
N23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
N03 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
N45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
N67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
N47 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
L1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
L4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"


def leaves_of(count: int) -> list[bytes]:
    return [merkle.leaf_hash(b"%d" % i) for i in range(count)]


LEAVES = leaves_of(300)
READER = merkle.reader_of(LEAVES)


def verifier_includes(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> bool:
    """What the verifier, which shares no code, says to a proof."""
    return verify_audit.climb(proof, index, size - 1, leaf) == [root]


def plain_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + plain_root(leaves[:split]) + plain_root(leaves[split:])).digest()


def test_roots_are_those_of_the_reference():
    hashes = [merkle.leaf_hash(leaf) for leaf in REFERENCE_LEAVES]
    assert [merkle.root_of(hashes[:count]).hex() for count in range(9)] == REFERENCE_ROOTS


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [(0, 1, []), (0, 8, [L1, N23, N47]), (5, 8, [L4, N67, N03]), (1, 5, [None, N23, L4]), (4, 5, [N03])],
)
def test_inclusion_proofs_are_those_of_the_reference(index, size, path):
    hashes = [merkle.leaf_hash(leaf) for leaf in REFERENCE_LEAVES]
    expected = [hashes[0].hex() if item is None else item for item in path]
    proof = merkle.inclusion_proof(merkle.reader_of(hashes), index, size)
    assert [item.hex() for item in proof] == expected
    assert merkle.verify_inclusion(hashes[index], index, size, proof, bytes.fromhex(REFERENCE_ROOTS[size]))


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [(1, 1, []), (1, 8, [L1, N23, N47]), (6, 8, [N45, N67, N03]), (2, 5, [N23, L4])],
)
def test_consistency_proofs_are_those_of_the_reference(first, second, path):
    hashes = [merkle.leaf_hash(leaf) for leaf in REFERENCE_LEAVES]
    proof = merkle.consistency_proof(merkle.reader_of(hashes), first, second)
    assert [item.hex() for item in proof] == path
    roots = [bytes.fromhex(REFERENCE_ROOTS[size]) for size in (first, second)]
    assert merkle.verify_consistency(first, second, *roots, proof)


def test_growing_reading_and_the_definition_give_one_root():
    tree = merkle.Frontier()
    for size in range(301):
        assert tree.root() == merkle.root_at(READER, size)
        if size % 13 == 0 or size < 40:
            assert tree.root() == plain_root(LEAVES[:size])
        again = merkle.Frontier(size, merkle.frontier_at(READER, size).hashes)
        assert again.root() == tree.root()
        if size < 300:
            tree.append(LEAVES[size])


def test_a_frontier_copy_grows_on_its_own():
    tree = merkle.frontier_at(READER, 5)
    tree.copy().append(LEAVES[5])
    assert (tree.size, tree.root()) == (5, merkle.root_at(READER, 5))
    with pytest.raises(ValueError, match="complete subtrees"):
        merkle.Frontier(5, LEAVES[:3])


def test_every_leaf_of_every_size_up_to_300_is_proven():
    for size in range(1, 301):
        root = merkle.root_at(READER, size)
        for index in range(size):
            proof = merkle.inclusion_proof(READER, index, size)
            assert merkle.verify_inclusion(LEAVES[index], index, size, proof, root)
            if index % 7 == size % 7:
                assert verifier_includes(LEAVES[index], index, size, proof, root)
                assert not merkle.verify_inclusion(LEAVES[index - 1], index, size, proof, root) or size == 1


def test_every_size_up_to_300_continues_every_smaller_one():
    roots = [merkle.root_at(READER, size) for size in range(301)]
    for second in range(1, 301):
        for first in range(1, second + 1):
            proof = merkle.consistency_proof(READER, first, second)
            assert merkle.verify_consistency(first, second, roots[first], roots[second], proof)
            if first % 7 == second % 7:
                assert verify_audit.consistent(first, second, roots[first], roots[second], proof)
                if first < second:
                    assert not merkle.verify_consistency(first, second, roots[first - 1], roots[second], proof)


def test_wrong_proofs_prove_nothing():
    for size in range(1, 34):
        root = merkle.root_at(READER, size)
        for index in range(size):
            proof = merkle.inclusion_proof(READER, index, size)
            for wrong in altered(proof):
                for check in (merkle.verify_inclusion, verifier_includes):
                    assert not check(LEAVES[index], index, size, wrong, root)
            for other in {index - 1, index + 1, size, index + 2 * size} - {index}:
                assert not merkle.verify_inclusion(LEAVES[index], other, size, proof, root)
        for first in range(1, size + 1):
            proof = merkle.consistency_proof(READER, first, size)
            for wrong in altered(proof):
                for check in (merkle.verify_consistency, verify_audit.consistent):
                    assert not check(first, size, merkle.root_at(READER, first), root, wrong)
            assert not merkle.verify_consistency(size + 1, size, root, root, proof)
            assert not merkle.verify_consistency(0, size, merkle.EMPTY_ROOT, root, proof)


def altered(proof: list[bytes]) -> list[list[bytes]]:
    """Proofs with a hash changed, dropped, doubled, added or swapped."""
    wrong = [[*proof, LEAVES[0]], [LEAVES[299], *proof]]
    for place in range(len(proof)):
        wrong.append([*proof[:place], sha256(proof[place]).digest(), *proof[place + 1 :]])
        wrong.append(proof[:place] + proof[place + 1 :])
        wrong.append([*proof[: place + 1], *proof[place:]])
    if len(proof) > 1:
        wrong.append(proof[::-1])
    return wrong


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_proofs_of_big_trees_verify(data):
    leaves = leaves_of(data.draw(st.integers(301, 5000)))
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size))
    reader = merkle.reader_of(leaves)
    root = merkle.root_of(leaves[:size])
    proof = merkle.inclusion_proof(reader, index, size)
    assert len(proof) <= size.bit_length()
    assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
    assert not merkle.verify_inclusion(leaves[index][::-1], index, size, proof, root)
    proof = merkle.consistency_proof(reader, first, size)
    assert merkle.verify_consistency(first, size, merkle.root_of(leaves[:first]), root, proof)


def test_there_is_no_proof_for_what_is_not_there():
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="not in a tree"):
            merkle.inclusion_proof(READER, index, size)
    for first, second in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="no proof"):
            merkle.consistency_proof(READER, first, second)
