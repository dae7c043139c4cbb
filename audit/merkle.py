"""Merkle trees as in RFC 6962 and RFC 9162 section 2.1, over SHA-256: roots, inclusion proofs, consistency proofs.

Proofs are made over a reader `hash_at(level, index)`, which gives the root of the complete subtree over the leaves
index * 2^level .. (index + 1) * 2^level - 1 (level 0: a leaf hash), so that a proof in a tree of n leaves needs
O(log n) reads. Pure: imports nothing of Django.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

HashAt = Callable[[int, int], bytes]

EMPTY_ROOT = sha256(b"").digest()
HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """SHA-256 of 0x00 and the data."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of 0x01 and both children."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """A tree that grows at its right edge and keeps no more than one hash per level.

    `hashes` are the roots of the complete subtrees that make up the tree, largest (leftmost) first: one for each bit
    set in `size`. Appending is O(1) amortised, `root` O(log size).
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """Continue a tree of `size` leaves; `hashes` as `frontier_at` gives them. ValueError if they do not fit."""
        self.size = size
        self.hashes = list(hashes)
        if size < 0 or len(self.hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves does not have {len(self.hashes)} complete subtrees")

    def append(self, leaf: bytes) -> None:
        """Add one leaf by its hash."""
        hashes = self.hashes
        size = self.size
        while size & 1:
            leaf = sha256(b"\1" + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            root = sha256(b"\1" + left + root).digest()
        return root

    def copy(self) -> Frontier:
        """A tree that grows on its own."""
        return Frontier(self.size, self.hashes)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes."""
    tree = Frontier()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def reader_of(leaves: Sequence[bytes]) -> HashAt:
    """A reader over leaf hashes in memory; it hashes the whole tree once."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])

    def hash_at(level: int, index: int) -> bytes:
        return levels[level][index]

    return hash_at


def frontier_at(hash_at: HashAt, size: int) -> Frontier:
    """The frontier of the tree's first `size` leaves."""
    hashes = []
    start = 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            hashes.append(hash_at(level, start >> level))
            start += 1 << level
    return Frontier(size, hashes)


def root_at(hash_at: HashAt, size: int) -> bytes:
    """The root over the tree's first `size` leaves."""
    return frontier_at(hash_at, size).root()


def inclusion_proof(hash_at: HashAt, index: int, size: int) -> list[bytes]:
    """The path from leaf `index` to the root of the first `size` leaves, lowest first (RFC 9162 2.1.3.1).

    Raises ValueError where there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(hash_at, middle, end))
            end = middle
        else:
            path.append(_range_root(hash_at, start, middle))
            start = middle
    path.reverse()
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` leads from the leaf hash at `index` to `root` of a tree of `size` leaves (RFC 9162 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    result = leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            result = node_hash(result, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and result == root


def consistency_proof(hash_at: HashAt, first: int, second: int) -> list[bytes]:
    """Hashes that show that the tree of `second` leaves continues the one of `first` (RFC 9162 2.1.4.1).

    Empty for equal sizes. Raises ValueError unless 0 < first <= second.
    """
    if not 0 < first <= second:
        raise ValueError(f"no proof from {first} to {second} leaves")
    path = []
    start, end = 0, second
    whole = True  # whether the part looked at is, so far, all of the first tree
    while end != first:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(_range_root(hash_at, middle, end))
            end = middle
        else:
            path.append(_range_root(hash_at, start, middle))
            start = middle
            whole = False
    if not whole:
        path.append(_range_root(hash_at, start, end))
    path.reverse()
    return path


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the second tree continues the first (RFC 9162 2.1.4.2)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    hashes = list(proof) if first & (first - 1) else [first_root, *proof]
    if not hashes:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    first_result = second_result = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first_result = node_hash(sibling, first_result)
            second_result = node_hash(sibling, second_result)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            second_result = node_hash(second_result, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and first_result == first_root and second_result == second_root


def _split(count: int) -> int:
    """The largest power of two below `count` (> 1): how many leaves the left child has."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_root(hash_at: HashAt, start: int, end: int) -> bytes:
    """The root over the leaves start..end-1, where `start` is aligned as in a node of the tree."""
    parts = []
    while start < end:
        level = (end - start).bit_length() - 1
        parts.append(hash_at(level, start >> level))
        start += 1 << level
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root
