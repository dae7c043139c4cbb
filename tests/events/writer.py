"""A process of its own that emits events as told, as a command would: one line of JSON per batch on standard input."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Read `[first, last, name]`, emit one event per number in one transaction each, answer with a line."""
    import django

    django.setup()
    from events.emit import emit

    print("ready", flush=True)
    for line in sys.stdin:
        first, last, name = json.loads(line)
        for number in range(first, last):
            emit(name, {"n": number})
        print("done", flush=True)


if __name__ == "__main__":
    main()
