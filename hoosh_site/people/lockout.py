"""Failed sign-ins are counted, and too many of them close the door for a while.

Counted are a name from an address, an address whatever the name, and a name whatever the address; the last two take
more failures, so that one person's mistakes lock out neither a whole office nor a colleague. An attempt is counted
before the password is looked at, so that guesses sent at once are no more than guesses sent in turn. Whether a name
exists plays no part.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from audit.record import record
from hoosh_site.people.models import SignInFailure

OF_ADDRESS = 5  # so many times the limit of a name from an address
OF_NAME = 10
_IPV6_NETWORK = 64  # a household or a machine has one of these, and as many addresses in it as it likes
_NAME_LIMIT = 150


@dataclass(slots=True)
class Attempt:
    """One sign-in under way: whether it may go on, and what it counted."""

    name: str
    address: str
    locked_until: datetime | None = None
    closes: list[SignInFailure] = field(default_factory=list)  # locks that its failure sets

    def succeeded(self) -> None:
        """The person is who they say: what they mistyped from here is forgotten. What others tried stays counted."""
        with transaction.atomic():
            pair = SignInFailure.objects.select_for_update().filter(name=self.name, address=self.address).first()
            if pair is None:
                return
            for row in SignInFailure.objects.select_for_update().filter(
                Q(name=self.name, address="") | Q(name="", address=self.address)
            ):
                if row.attempts <= pair.attempts:
                    row.delete()
                    continue
                row.attempts -= pair.attempts
                row.locked_until = None if row in self.closes else row.locked_until
                row.save(update_fields=["attempts", "locked_until"])
            pair.delete()

    def failed(self) -> None:
        """It was refused: a lock that this one set is recorded."""
        for row in self.closes:
            data = {"until": f"{row.locked_until:%Y-%m-%d %H:%M:%S} UTC"}
            # The name alone is the target, so that whoever erases it erases this as well.
            target, personal = row.name or row.address, {"address": row.address} if row.name and row.address else {}
            record("operator.locked_out", target=target, about=True, level="warning", data=data, personal=personal)


def begin(name: str, address: str) -> Attempt:
    """Count an attempt. With `locked_until` set it is refused, and counts no further."""
    attempt = Attempt(counted_name(name), _network(address))
    now, window = timezone.now(), timedelta(minutes=settings.HOOSH_SIGN_IN_LOCK_MINUTES)
    limit = settings.HOOSH_SIGN_IN_ATTEMPTS
    if not limit:
        return attempt
    subjects = {
        (attempt.name, attempt.address): limit,
        ("", attempt.address): limit * OF_ADDRESS,
        (attempt.name, ""): limit * OF_NAME,
    }
    subjects.pop(("", ""), None)
    with transaction.atomic():
        rows = [_row(*subject, now) for subject in sorted(subjects)]
        locks = [row.locked_until for row in rows if row.locked_until is not None and row.locked_until > now]
        if locks:
            attempt.locked_until = max(locks)
            return attempt
        for row in rows:
            if row.since + window <= now or row.locked_until is not None:
                row.attempts, row.since, row.locked_until = 0, now, None
            row.attempts += 1
            if row.attempts >= subjects[row.name, row.address]:
                row.locked_until = now + window
                attempt.closes.append(row)
            row.save(update_fields=["attempts", "since", "locked_until"])
        _throw_out(now)
    return attempt


def unlock(subject: str = "", *, actor: str) -> int:
    """Forget the failures of a name or an address, or all of them. How many rows there were."""
    rows = SignInFailure.objects.all()
    if subject:
        rows = rows.filter(Q(name=counted_name(subject)) | Q(address=_network(subject)))
    with transaction.atomic():
        count = rows.delete()[0]
        if count:
            record("operator.unlocked", actor=actor, target=subject[:200] or "everybody", about=bool(subject))
    return count


def forget(row: SignInFailure, *, actor: str) -> None:
    """Forget one count."""
    target, personal = row.name or row.address, {"address": row.address} if row.name and row.address else {}
    with transaction.atomic():
        record("operator.unlocked", actor=actor, target=target, about=True, personal=personal)
        row.delete()


def erase(name: str) -> int:
    """Forget what was counted of a name, from wherever, for somebody who is to be unknown here: nothing is recorded.
    How many rows there were. What an address alone counted stays."""
    return SignInFailure.objects.filter(name=counted_name(name)).exclude(name="").delete()[0]


def _row(name: str, address: str, now: datetime) -> SignInFailure:
    """The row of a subject, locked until the transaction ends."""
    while True:
        row, made = SignInFailure.objects.get_or_create(name=name, address=address, defaults={"since": now})
        locked = row if made else SignInFailure.objects.select_for_update().filter(pk=row.pk).first()
        if locked is not None:  # else another sign-in deleted it meanwhile
            return locked


def _throw_out(now: datetime) -> None:
    """Delete the rows that count no more, but for those that another sign-in is about to count in."""
    forgotten = now - timedelta(minutes=2 * settings.HOOSH_SIGN_IN_LOCK_MINUTES)
    stale = SignInFailure.objects.select_for_update(skip_locked=True).filter(since__lt=forgotten)
    if found := list(stale.values_list("pk", flat=True)):
        SignInFailure.objects.filter(pk__in=found).delete()


def counted_name(name: str) -> str:
    """A typed name as it is counted: bounded, printable, in small letters."""
    return "".join(char if char.isprintable() else "?" for char in name[:_NAME_LIMIT]).casefold()[:_NAME_LIMIT]


def _network(address: str) -> str:
    """What stands for an address: itself, or of IPv6 its network."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, _IPV6_NETWORK), strict=False))
    return str(ip)
