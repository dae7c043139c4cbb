"""The settings of events."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.site.test_settings import Load, load

__all__ = ["load"]


def test_the_share_of_calls_that_become_events_is_a_number_from_0_to_1(load: Load) -> None:
    assert load()["HOOSH_EVENTS_SAMPLE"] == 0
    assert load(HOOSH_EVENTS_SAMPLE="0.05")["HOOSH_EVENTS_SAMPLE"] == 0.05
    for text in ("1.01", "-0.1", "nan", "inf", "half"):
        with pytest.raises(ImproperlyConfigured, match="HOOSH_EVENTS_SAMPLE"):
            load(HOOSH_EVENTS_SAMPLE=text)
