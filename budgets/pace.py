"""How much a step of background work takes on, from how long the steps before it took. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable


class Chunk:
    """How many rows one step takes: `with chunk as rows`. Halved after a step that took too long, else grown again."""

    def __init__(self, most: int, *, least: int, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Between `least` and `most` rows, `most` at first; `longest_s` is how long a step may take."""
        self._rows = self._most = most
        self._least = least
        self._longest_s = longest_s
        self._clock = clock
        self._began = 0.0

    def __enter__(self) -> int:
        self._began = self._clock()
        return self._rows

    def __exit__(self, *exception: object) -> None:
        took_s = self._clock() - self._began
        if took_s > self._longest_s:
            self._rows = max(self._least, self._rows // 2)
        elif took_s < self._longest_s / 3:
            self._rows = min(self._most, self._rows * 2)
