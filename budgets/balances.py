"""Reading pool balances from the ledger for pages and reports. Never writes, never locks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from budgets.models import PoolWindow

LIFETIME = 0  # the window every pool has


@dataclass(frozen=True, slots=True)
class Balance:
    """One pool's tokens as the ledger has them. `available` was promised to nobody yet."""

    capacity: int
    committed: int = 0
    leased: int = 0
    overrun: int = 0

    @property
    def available(self) -> int:
        """Tokens a grant could still give; never negative."""
        return max(0, self.capacity - self.committed - self.leased)

    @property
    def left(self) -> int:
        """Tokens not charged yet; leased ones count, because workers give back what they do not spend."""
        return max(0, self.capacity - self.committed)

    @property
    def is_full(self) -> bool:
        """Whether everything is charged."""
        return self.committed >= self.capacity

    @property
    def committed_share(self) -> str:
        """The charged part of the bar, in percent of its length."""
        return self._share(self.committed)

    @property
    def leased_share(self) -> str:
        """The leased part of the bar, in percent of its length."""
        return self._share(self.leased)

    @property
    def used_permille(self) -> int:
        """Charged and leased tokens in thousandths of the capacity, for ordering."""
        return (self.committed + self.leased) * 1000 // max(1, self.capacity)

    @property
    def label(self) -> str:
        """The bar in words."""
        used = f"{self.committed:,} spent, {self.leased:,} leased"
        return f"{used}, {self.available:,} available of {self.capacity:,} tokens"

    def _share(self, part: int) -> str:
        whole = max(1, self.capacity, self.committed + self.leased)
        return f"{part * 10_000 // whole / 100:.2f}"


def balances(pool_ids: Iterable[int]) -> dict[int, Balance]:
    """Balances by pool id, one query; a pool nothing was drawn from yet has none."""
    rows = PoolWindow.objects.filter(pool_id__in=list(pool_ids), window_start=LIFETIME)
    return {
        row.pool_id: Balance(row.capacity, committed=row.committed, leased=row.leased, overrun=row.overrun)
        for row in rows
    }
