"""`POST /v1/admin/reload`: load the configuration again, and say so only when every worker really runs it."""

from __future__ import annotations

import time

from django.conf import settings
from django.core.exceptions import ValidationError

from gateway import plane
from gateway.api.errors import ReloadFailedError
from gateway.errors import GatewayUnavailableError
from providers.publish import PublishError, publish

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
    """Import HOOSH_CONFIG if it is set and has changed, publish the rows and return the version in force."""
    try:
        if settings.HOOSH_CONFIG:
            from providers.importing import import_if_changed  # only where a file is used

            import_if_changed(settings.HOOSH_CONFIG)
        return int(publish(actor, "reload").number)
    except PublishError as exc:
        raise ReloadFailedError(f"The configuration cannot be published: {exc}") from exc
    except ValidationError as exc:
        raise ReloadFailedError(f"HOOSH_CONFIG cannot be imported: {' '.join(exc.messages)}") from exc
    except (OSError, ValueError) as exc:
        raise ReloadFailedError(f"HOOSH_CONFIG cannot be imported: {exc}") from exc


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
