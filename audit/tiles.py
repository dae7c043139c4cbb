"""How the hashes of a Merkle tree lie in tiles of 256 (C2SP tlog-tiles, height 8).

Tile (level L, index i) has the hashes 256 * i .. 256 * i + 255 of tree level 8 * L: leaf hashes for L = 0, roots of
whole tiles of the level below for L > 0. A tile is written once, when its last hash is there. Pure: imports nothing of
Django.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from audit.merkle import HASH_BYTES, root_of

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
_ROOTS_KEPT = 1 << 16

ReadTiles = Callable[[int, int, int], Mapping[int, bytes]]


@dataclass(frozen=True, slots=True)
class Tile:
    """One complete tile."""

    level: int
    index: int
    hashes: bytes  # TILE_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Where the root of a complete subtree is found: the root over `count` hashes from `offset` on in a tile."""

    tile_level: int
    tile_index: int
    offset: int
    count: int


def place_of(level: int, index: int) -> Place:
    """Which part of which tile has the subtree `index` of tree level `level` (2^level leaves)."""
    tile_level, height = divmod(level, TILE_HEIGHT)
    first = index << height
    return Place(tile_level, first >> TILE_HEIGHT, first & (TILE_WIDTH - 1), 1 << height)


def hashes_of(data: bytes) -> list[bytes]:
    """The single hashes of a tile, or of any run of hashes written one behind the other."""
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


class TileReader:
    """A reader for `audit.merkle` over stored tiles.

    `read_tiles(level, first, count)` gives the tiles first .. first + count - 1 of a level by index, as far as they are
    there; for level 0 it also gives the last, shorter one with the leaves there are. What a higher level does not have
    yet is computed from the tiles below, asked for in one call, and remembered (at most 65,536 hashes; hashes never
    change). Raises LookupError for a subtree that is not complete.
    """

    def __init__(self, read_tiles: ReadTiles) -> None:
        """Read through `read_tiles`."""
        self._read_tiles = read_tiles
        self._roots: dict[tuple[int, int], bytes] = {}

    def hash_at(self, level: int, index: int) -> bytes:
        """The root of the complete subtree `index` of tree level `level`."""
        place = place_of(level, index)
        return root_of(self.hashes(place.tile_level, (place.tile_index << TILE_HEIGHT) + place.offset, place.count))

    def hashes(self, tile_level: int, first: int, count: int) -> list[bytes]:
        """The hashes first .. first + count - 1 of tree level 8 * `tile_level`, all of one tile."""
        if tile_level and (known := [self._roots.get((tile_level, first + i)) for i in range(count)]) and all(known):
            return [root for root in known if root]
        tile_index, offset = divmod(first, TILE_WIDTH)
        tile = self._read_tiles(tile_level, tile_index, 1).get(tile_index, b"")
        found = hashes_of(tile[offset * HASH_BYTES : (offset + count) * HASH_BYTES])
        if len(found) == count:
            return found
        if tile_level == 0:
            raise LookupError(f"leaf {first + len(found)} is not there")
        return [self._tile_root(tile_level, first + i, count - i) for i in range(count)]

    def _tile_root(self, level: int, index: int, ahead: int) -> bytes:
        """The root of the whole tile (level - 1, index); where it is not known, `ahead` tiles are read at once."""
        if root := self._roots.get((level, index)):
            return root
        if len(self._roots) > _ROOTS_KEPT:
            self._roots.clear()
        tiles = self._read_tiles(level - 1, index, ahead)
        for at in range(index, index + ahead):
            tile = tiles.get(at, b"")
            if len(tile) == TILE_BYTES:
                self._roots[level, at] = root_of(hashes_of(tile))
            elif level > 1:
                self._roots[level, at] = root_of(self.hashes(level - 1, at << TILE_HEIGHT, TILE_WIDTH))
            else:
                raise LookupError(f"tile {level - 1}/{at} is not complete")
        return self._roots[level, index]


class TileBuilder:
    """Collects leaf hashes into tiles as a log grows."""

    def __init__(self, size: int = 0, reader: TileReader | None = None) -> None:
        """Continue a log of `size` leaves, whose stored hashes `reader` reads; no reader is needed for an empty one."""
        self._size = size
        self._open: list[list[bytes]] = [[]]
        if size and reader is None:
            raise ValueError("a log that has leaves is continued with a reader")
        level = 0
        while reader and (total := size >> (TILE_HEIGHT * level)):
            rest = total % TILE_WIDTH
            hashes = reader.hashes(level, total - rest, rest) if rest else []
            self._open[level:] = [hashes]
            level += 1

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._size

    def append(self, leaf: bytes) -> list[Tile]:
        """Add one leaf hash; the tiles it completes, lowest first (mostly none)."""
        self._size += 1
        self._open[0].append(leaf)
        if len(self._open[0]) < TILE_WIDTH:
            return []
        done = []
        level = 0
        while len(self._open[level]) == TILE_WIDTH:
            full = self._open[level]
            self._open[level] = []
            done.append(Tile(level, (self._size >> (TILE_HEIGHT * (level + 1))) - 1, b"".join(full)))
            level += 1
            if level == len(self._open):
                self._open.append([])
            self._open[level].append(root_of(full))
        return done

    def open_leaves(self) -> bytes:
        """The leaf hashes behind the last complete tile of level 0: the shorter tile that is kept on pruning."""
        return b"".join(self._open[0])
