"""A checkpoint that was written, as it is told to those who take it elsewhere. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """The log `log` had `size` entries and this root; `note` is the signed text."""

    log: str
    size: int
    root: bytes
    at: dt.datetime
    note: str
