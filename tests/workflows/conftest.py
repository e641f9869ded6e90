"""Fixtures of the tests of workflows."""

import pytest

from rsdmri.config import load_config


@pytest.fixture
def settings(tiny_settings, simulated):
    """``settings(*overrides)`` is the configuration of `finished_run` with some values changed."""
    return lambda *more: load_config(None, [*tiny_settings, "steps=6", f"data.path={simulated}", *more])
