"""Tells this process that an event was committed. What listens looks at the table anyway, only later. Pure."""

from __future__ import annotations

import threading
from collections.abc import Callable

_lock = threading.Lock()
_listeners: list[Callable[[], object]] = []


def listen(callback: Callable[[], object]) -> Callable[[], None]:
    """Have `callback` called, in whatever thread commits, after each event; call what is returned to end that.

    It must not block and not raise.
    """
    with _lock:
        _listeners.append(callback)

    def end() -> None:
        with _lock:
            if callback in _listeners:
                _listeners.remove(callback)

    return end


def wake() -> None:
    """Call every listener."""
    with _lock:
        called = list(_listeners)
    for callback in called:
        callback()
