"""What callers call the fields of the canonical form: refusals and headers name the field the caller has written.

Adapters know the canonical form only. Every parser of another API writes into `Call.names` what became of which of its
fields: by the field of the canonical form (a dot before each field inside of it, no indices) the caller's own. What
stands inside of a field that is not named itself is told as that field: the insides of a translated field are not the
caller's. A name that ends with `[]` keeps the index that the field has in the canonical form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.errors import BadRequestError
from providers.canonical import UnsupportedParamError

_INDEX = re.compile(r"\[\d+\]")
_KEPT = "[]"


def told(names: Mapping[str, str], place: str) -> str:
    """The caller's name of a field of the canonical form, or of the field that holds this place."""
    plain = _INDEX.sub("", place)
    name = names.get(plain) or names.get(plain.partition(".")[0])
    if name is None:
        return place
    if not name.endswith(_KEPT):
        return name
    index = _INDEX.search(place)
    return name.removesuffix(_KEPT) + (index[0] if index is not None else "")


def renamed(names: Mapping[str, str], message: str, place: str) -> tuple[str, str]:
    """A message that quotes this place, and the place, both in the caller's names."""
    name = told(names, place)
    return message.replace(f"'{place}'", f"'{name}'", 1), name


def refusal(names: Mapping[str, str], error: UnsupportedParamError) -> BadRequestError:
    """The 400 of a request that asks for what the provider cannot do."""
    message, param = renamed(names, error.message, error.param)
    return BadRequestError(message, param=param, code="unsupported_parameter")
