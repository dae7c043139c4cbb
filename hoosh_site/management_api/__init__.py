"""The management API below /api/v1/: everything the admin pages can do, for programs.

Every write goes through the services the pages use, with the same permissions; nothing here writes a row by itself
but accounts of people, which Django's own pages write as well.
"""

from __future__ import annotations
