"""The queue before limits on requests at once: of routes and providers, on the request path.

fair     who is next: classes, and keys within a class. Pure.
room     everybody who waits in this worker, at which limits, and what is done when a place comes free. No event loop.
waiting  the same on the event loop: futures, the poll, counters for metrics.
stats    what workers report, added up for pages and `GET /v1/queue/status`. Pure.
"""
