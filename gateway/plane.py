"""Where code of the control process finds the running control plane. Nothing here starts or owns anything.

`current` is set by the process that runs the plane and is None everywhere else (commands, workers, tests).
"""

from __future__ import annotations

from typing import Any, Protocol


class ControlPlane(Protocol):
    """What pages and API views may ask of the running control plane. Every method may be called from any thread."""

    @property
    def writer(self) -> Any:
        """The one ledger writer (`budgets.settle.Writer`)."""

    def wake(self, *, reimport: bool = False) -> None:
        """Look for changes now instead of at the next quarter of a second; also reread HOOSH_CONFIG on request."""

    def workers(self) -> list[dict[str, Any]]:
        """One entry per connected worker: index, owner, pid, version, status, status_age_s."""

    def recall(self, pool_id: int, unit: int, window_start: int) -> None:
        """Ask every worker to give back what it does not use of a purse."""

    def purge_caches(self, number: int) -> None:
        """Have every worker forget its kept answers; their status tells the `number` (`cache_purge`) once they have."""

    def explain(self, body: bytes) -> bytes:
        """Where a request would go, told by a worker: JSON, as from `POST /v1/route/explain`. Waits a little; raises
        `RuntimeError` when no worker answers."""


current: ControlPlane | None = None


def draining() -> frozenset[str]:
    """The owners of workers that drain. They wait for their connections: streams through them end, and come back by
    another worker."""
    control = current
    found = control.workers() if control is not None else []
    return frozenset(str(entry["owner"]) for entry in found if entry["status"].get("draining"))
