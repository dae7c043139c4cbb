"""What a session says about how it was opened. Pure."""

from __future__ import annotations

FACTOR = "hoosh_factor"  # the id of the second factor it was opened with, or
EXTERNAL = "external"  # an identity provider vouched
