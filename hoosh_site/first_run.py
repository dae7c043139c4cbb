"""First start: the first operator and the first API key, made once and shown once.

On a terminal they are printed. Without one (a service, a container) they go to a file only the owner may read, and
only its name is printed, because logs are kept and copied. Later starts find both and show nothing.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction

from audit.changes import object_of
from audit.record import record
from budgets import access, keys
from budgets.models import ApiKey
from providers.models import Route

ACTOR = "first-run"
OPERATOR = "admin"
TEAM = AGENT = "default"
_PASSWORD_BYTES = 15  # 20 characters


@dataclass(frozen=True, slots=True)
class Made:
    """What this start made; "" where there was something already. Never printed by accident."""

    password: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.password or self.key)

    def lines(self) -> list[str]:
        """What the operator has to keep."""
        shown = []
        if self.password:
            shown.append(f"Operator:  {OPERATOR}   password: {self.password}")
        if self.key:
            shown.append(f"API key:   {self.key}")
        return shown


def ensure(*, terminal: bool, file: Path | None = None) -> list[str]:
    """Make what is missing and return the lines to print: the secrets on a terminal, else the name of their file.

    Returns an empty list when nothing was missing. Raises `OSError` when the file cannot be written; nothing is made
    then, so the next start tries again.
    """
    target = file or settings.HOOSH_FIRST_RUN_FILE
    try:
        with transaction.atomic():
            made = _make()
            if made and not terminal:
                _write(target, made.lines())  # before the commit: a secret nobody could read would be lost
    except IntegrityError:
        return []  # another process was first
    if not made:
        return []
    if terminal:
        return [*made.lines(), "These are shown once. Keep them."]
    return [f"The first operator's password and the first API key are in {target}. Read it, then delete it."]


def _make() -> Made:
    users = get_user_model()._default_manager
    password = key = ""
    if not users.filter(is_superuser=True).exists() and not users.filter(username=OPERATOR).exists():
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        user = users.create_superuser(OPERATOR, "", password)
        record("operator.created", actor=ACTOR, target=OPERATOR, about=True, data={"object": object_of(user)})
    if not ApiKey.objects.exists():
        agent = access.agent_named(TEAM, AGENT, actor=ACTOR)
        pool = access.default_pool(ACTOR)
        _, key = keys.create_key(agent, pool, "first key", ("inference", "operator"), actor=ACTOR)
    return Made(password, key)


def _write(target: Path, lines: list[str]) -> None:
    """Write the file whole or not at all, readable by its owner alone from the first byte."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write("\n".join(lines) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def describe(port: int) -> list[str]:
    """Where the gateway is and how to ask it something."""
    base = settings.HOOSH_PUBLIC_URL or f"http://{_host()}:{port}"
    body = json.dumps({"model": example_model(), "messages": [{"role": "user", "content": "Hello"}]})
    return [
        f"API:    {base}/v1",
        f"Admin:  {base}/admin/",
        "Try:    curl -sS "
        f'{base}/v1/chat/completions -H "Authorization: Bearer $HOOSH_API_KEY" '
        f"-H 'Content-Type: application/json' -d '{body}'",
    ]


def _host() -> str:
    bind = settings.HOOSH_BIND
    if bind in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{bind}]" if ":" in bind else str(bind)


def example_model() -> str:
    """A model that is certainly served: a route without a wildcard, the most preferred one."""
    routes = Route.objects.filter(enabled=True, provider__enabled=True)
    patterns = routes.order_by("priority", "id").values_list("pattern", flat=True)[:200]
    plain = (pattern for pattern in patterns if "*" not in pattern and "'" not in pattern and '"' not in pattern)
    return next(plain, "MODEL")
