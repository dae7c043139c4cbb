"""`POST /v1/admin/reload`: load the configuration again, and say so only when every worker really runs it."""

from __future__ import annotations

import logging
import time

from django.conf import settings
from django.utils.module_loading import import_string

from gateway import plane
from gateway.api.errors import ReloadFailedError
from gateway.errors import GatewayUnavailableError
from providers.publish import PublishError, latest, publish, waits

log = logging.getLogger(__name__)

WAIT_S = 5.0  # workers tell their state once a second
_STEP_S = 0.05


def reload_configuration(actor: str, *, wait_s: float = WAIT_S) -> int:
    """The version every connected worker runs by now.

    Raises `ReloadFailedError` when the rows cannot be published (the version before stays in force) and
    `GatewayUnavailableError` when no worker is there or one does not follow in time.
    """
    control = plane.current
    if control is None:
        raise GatewayUnavailableError("This process does not control any worker.", code="no_control_plane")
    number = _publish(actor)
    control.wake()
    end = time.monotonic() + wait_s
    while True:
        behind = [entry for entry in control.workers() if _running(entry) < number]
        if not behind and control.workers():
            return number
        if time.monotonic() >= end:
            raise GatewayUnavailableError(_why(number, behind), code="reload_incomplete", retry_after_s=1)
        time.sleep(_STEP_S)


def _publish(actor: str) -> int:
    """Import HOOSH_CONFIG if it is set and has changed, publish the rows and return the version in force.

    Where changes wait the rows are a draft: somebody looks at it and publishes it, not a reload.
    """
    if settings.HOOSH_CONFIG:
        _import_file()
    if waits() and (found := latest()) is not None:
        return found[0]
    try:
        return publish(actor, "reload").number
    except PublishError as exc:
        raise ReloadFailedError(f"The configuration cannot be published: {exc}") from exc


def _import_file() -> None:
    # The importer is the site's: it spans applications that this one must not know.
    import_if_changed = import_string(settings.HOOSH_CONFIG_IMPORTER)
    try:
        import_if_changed(settings.HOOSH_CONFIG)
    except Exception as exc:
        log.warning("reload.import_failed", exc_info=exc)
        raise ReloadFailedError(f"HOOSH_CONFIG was not imported: {exc}") from exc


def _running(entry: dict[str, object]) -> int:
    status = entry.get("status")
    version = status.get("config_version") if isinstance(status, dict) else None
    return version if isinstance(version, int) else 0


def _why(number: int, behind: list[dict[str, object]]) -> str:
    if not behind:
        return "No worker is connected to control; they are probably restarting."
    told = "; ".join(
        f"worker {entry.get('index')} runs version {_running(entry)}{_error(entry)}" for entry in behind[:8]
    )
    return f"Version {number} is published, but {told}."


def _error(entry: dict[str, object]) -> str:
    status = entry.get("status")
    error = status.get("build_error") if isinstance(status, dict) else ""
    return f" ({error})" if error else ""
