from __future__ import annotations

import pytest

from audit import merkle
from audit.tiles import TILE_BYTES, Place, Tile, TileBuilder, TileReader, hashes_of, place_of

SIZE = 140_000
LEAVES = [merkle.leaf_hash(b"%d" % i) for i in range(SIZE)]
EDGES = (1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 131_072, 131_329, SIZE)


class Stored:
    """Tiles as a database would have them, and how often it was asked."""

    def __init__(self, size: int) -> None:
        builder = TileBuilder()
        self.tiles: dict[tuple[int, int], bytes] = {}
        for leaf in LEAVES[:size]:
            for tile in builder.append(leaf):
                assert (tile.level, tile.index) not in self.tiles
                self.tiles[tile.level, tile.index] = tile.hashes
        self.size = size
        self.asked = 0

    def read(self, level: int, first: int, count: int) -> dict[int, bytes]:
        self.asked += 1
        found = {i: self.tiles[level, i] for i in range(first, first + count) if (level, i) in self.tiles}
        last = self.size // 256
        if level == 0 and first <= last < first + count and self.size % 256:
            found[last] = b"".join(LEAVES[last * 256 : self.size])
        return found


@pytest.fixture(scope="module")
def stored() -> Stored:
    return Stored(SIZE)


@pytest.mark.parametrize(
    ("level", "index", "place"),
    [
        (0, 0, Place(0, 0, 0, 1)),
        (0, 257, Place(0, 1, 1, 1)),
        (3, 33, Place(0, 1, 8, 8)),
        (7, 3, Place(0, 1, 128, 128)),
        (8, 300, Place(1, 1, 44, 1)),
        (17, 1, Place(2, 0, 2, 2)),
    ],
)
def test_a_subtree_is_a_run_of_hashes_in_one_tile(level, index, place):
    assert place_of(level, index) == place


def test_tiles_are_complete_and_each_is_made_once(stored):
    assert sorted(index for level, index in stored.tiles if level == 0) == list(range(SIZE // 256))
    assert sorted(index for level, index in stored.tiles if level == 1) == list(range(SIZE // 65_536))
    assert {len(hashes) for hashes in stored.tiles.values()} == {TILE_BYTES}
    first = hashes_of(stored.tiles[1, 0])
    assert first[3] == merkle.root_of(LEAVES[768:1024])


def test_proofs_over_tiles_are_those_over_leaves(stored):
    reader = TileReader(stored.read)
    plain = merkle.reader_of(LEAVES)
    for size in EDGES:
        assert merkle.root_at(reader.hash_at, size) == merkle.root_at(plain, size)
        for index in {0, size // 3, size - 1}:
            proof = merkle.inclusion_proof(plain, index, size)
            assert merkle.inclusion_proof(reader.hash_at, index, size) == proof
        for first in {1, size // 2 + 1, size}:
            proof = merkle.consistency_proof(plain, first, size)
            assert merkle.consistency_proof(reader.hash_at, first, size) == proof


def test_a_proof_needs_few_reads(stored):
    reader = TileReader(stored.read)
    for most in (40, 30):  # the second time, roots of tiles are known
        stored.asked = 0
        merkle.inclusion_proof(reader.hash_at, 70_000 + most, SIZE)
        assert stored.asked <= most


def test_what_is_not_complete_is_not_given(stored):
    reader = TileReader(stored.read)
    with pytest.raises(LookupError):
        reader.hash_at(0, SIZE)
    with pytest.raises(LookupError):
        reader.hash_at(8, SIZE // 256)
    with pytest.raises(LookupError):
        reader.hash_at(16, SIZE // 65_536)


@pytest.mark.parametrize("size", EDGES)
def test_a_builder_goes_on_where_another_one_ended(size):
    short = Stored(size)
    went_on = TileBuilder(size, TileReader(short.read))
    without_end = TileBuilder()
    expected: list[Tile] = []
    for i, leaf in enumerate(LEAVES[: min(size + 600, SIZE)]):
        tiles = without_end.append(leaf)
        expected += tiles if i >= size else []
    made = [tile for leaf in LEAVES[size : size + 600] for tile in went_on.append(leaf)]
    assert made == expected
    assert went_on.size == without_end.size
    assert went_on.open_leaves() == without_end.open_leaves()


def test_a_log_with_leaves_needs_a_reader_to_go_on():
    with pytest.raises(ValueError, match="reader"):
        TileBuilder(3)
