"""A value that is read from the databases at most every few seconds, however many pages show it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

FRESH_S = 5.0
_T = TypeVar("_T")


class Kept(Generic[_T]):
    """One value, made anew when it is older than `FRESH_S`."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._value: tuple[float, _T] | None = None

    def get(self) -> _T:
        """The value; whoever comes while it is made waits for it."""
        with self._lock:
            now = time.monotonic()
            if self._value is None or now - self._value[0] > FRESH_S:
                self._value = now, self._make()
            return self._value[1]

    def forget(self) -> None:
        """Make it anew the next time."""
        with self._lock:
            self._value = None
