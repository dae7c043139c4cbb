"""The answer cache of one worker: what may be kept, under which key, for how long, and how it is told again.

Everything here is in memory, pure but for the clock and the event loop, and belongs to one worker.
`gateway.cache.answers` puts the parts together; each of them can be used alone.
"""

from __future__ import annotations
