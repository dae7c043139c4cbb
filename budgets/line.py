"""What the desk says to control: asks for more of a purse, and what was given back. Both calls may be lost.

Somebody else connects the two callables; amounts are in the purse's unit, totals are absolute, so that a message that
is lost or repeated does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from budgets.chain import Account, PurseKey
from budgets.wallet import ASK_AGAIN_S, Wallet

WANT_MAX = 2**62

SendAsk = Callable[[str, int, int, int, int, int, int], object]
SendReturn = Callable[[str, int, int, int, int], object]


class Line:
    """One worker's line to control, for all its purses."""

    __slots__ = ("owner", "send_ask", "send_return", "up")

    def __init__(self, owner: str, send_ask: SendAsk | None, send_return: SendReturn | None) -> None:
        self.owner = owner
        self.send_ask = send_ask
        self.send_return = send_return
        self.up = True

    def ask(self, account: Account, need: int, *, ahead: int = 0) -> None:
        """Ask for what keeps the purse going; `need` is what its first waiter lacks, `ahead` what others will want."""
        if self.send_ask is None or not self.up:
            return
        wallet = account.wallet
        account.need = max(account.need, need) if account.unanswered else need
        account.unanswered += 1
        account.checking = False
        wallet.asking()
        waiting = ahead + sum(waiter.needs.get(account, 0) for waiter in account.waiters)
        want = min(WANT_MAX, max(wallet.block(), waiting) - min(0, wallet.free))
        self.send_ask(self.owner, *account.key, wallet.total, want, need)

    def ask_total(self, account: Account) -> None:
        """Ask only what was granted in all, wanting nothing: an answer may have been lost with the line. The answer
        also says that control has read everything that was said of the purse before."""
        if self.send_ask is None or not self.up:
            return
        account.unanswered += 1
        account.need = 0
        account.checking = True
        self.send_ask(self.owner, *account.key, account.wallet.total, 0, 0)

    def ask_ahead(self, account: Account) -> None:
        """Ask before anybody must wait, unless an answer is due already."""
        if account.wallet.wants() is not None:
            self.ask(account, 0)

    def ask_for_first(self, account: Account) -> None:
        """Ask for what the first in the queue lacks, now if that makes sense, and again as long as somebody waits."""
        if not account.waiters:
            return
        if account.wallet.may_ask():
            self.ask(account, max(0, account.waiters[0].needs.get(account, 0) - account.wallet.free))
        self.ask_later(account)

    def ask_later(self, account: Account) -> None:
        """Ask after a pause, if somebody waits then."""
        if account.timer is None:
            account.timer = asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask_again, account)

    def _ask_again(self, account: Account) -> None:
        account.timer = None
        account.wallet.forget_ask()
        self.ask_for_first(account)

    def give_back(self, account: Account, *, keep: int = 0) -> None:
        """Return what is free but `keep`."""
        if account.wallet.give_back(keep):
            self.say_returned(account.key, account.wallet)

    def say_returned(self, key: PurseKey, wallet: Wallet) -> None:
        """Tell what was given back in all, if the line is up."""
        if self.send_return is not None and self.up:
            self.send_return(self.owner, *key, wallet.returned)
