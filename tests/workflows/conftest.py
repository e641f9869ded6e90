"""Fixtures of the tests of workflows."""

import pytest

from rsdmri.config import load_config
from rsdmri.data.simulate_files import write_simulated


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Folder of 4 clean scans of 4 slices, of other heads than `simulated`."""
    folder = tmp_path_factory.mktemp("reference")
    write_simulated(folder, scans=4, slices=4, size=32, coils=4, noise=0.02, seed=9)
    return folder


@pytest.fixture
def settings(tiny_settings, simulated):
    """``settings(*overrides)`` is the configuration of `finished_run` with some values changed."""
    return lambda *more: load_config(None, [*tiny_settings, "steps=6", f"data.path={simulated}", *more])
