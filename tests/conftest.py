"""Fixtures shared by the rooms: a tiny simulated set and a tiny finished run, made once per test process."""

import os
from pathlib import Path

import pytest

# Two processes of one thread each beat two that fight for both cores; read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RSDMRI_SECRET"] = "of the tests"  # no file in the home of whoever runs them

TINY = (
    "network.channels=[8,16]",
    "teacher.batch=4",
    "teacher.learning_rate=1e-3",
    "teacher.warmup=2",
    "prior.batch=4",
    "prior.learning_rate=1e-4",
    "prior.fake_learning_rate=1e-4",
    "workers=2",  # fixes how a batch is divided and how many threads each share gets
    "checkpoint_every=3",
    "logging.tensorboard=off",
    "logging.grid_every=0",
    "prior.validation_images=16",
    "posterior.share=0",  # tests that need the posterior network train it
)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a manifest and 4 simulated scans of 2 slices, 32 x 32, 4 coils; 2 of them are training data."""
    from rsdmri.data.simulate_files import write_simulated

    folder = tmp_path_factory.mktemp("simulated")
    write_simulated(folder, scans=4, slices=2, size=32, coils=4, noise=0.02, seed=3)
    return folder


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """Overrides (``key=value``) that make a training take seconds."""
    return TINY


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, simulated: Path) -> Path:
    """Run folder of a real training of both stages, 6 steps each, on `simulated`."""
    from rsdmri.config import load_config
    from rsdmri.workflows.train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = load_config(None, [*TINY, "steps=6", f"data.path={simulated}"])
    return train(config, folder, device="cpu", say=lambda line: None)


@pytest.fixture(autouse=True)
def _same_threads():
    """Give every test the thread count that it started with: sharded training changes it for the process."""
    import sys

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if before is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)
