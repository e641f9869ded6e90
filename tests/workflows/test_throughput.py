"""The numbers that the observer logs follow from steps, seconds and operations; the peak is measured once."""

from types import SimpleNamespace

import pytest
import torch

from rsdmri.config import load_config
from rsdmri.runtime import free_memory
from rsdmri.training.loop import StepReport
from rsdmri.workflows import throughput
from rsdmri.workflows.cost import Operations, SliceSize
from rsdmri.workflows.throughput import PEAK_AFTER, WINDOW, Throughput, made_up, matrix_peak

CPU = torch.device("cpu")
STAGE = SimpleNamespace(name="teacher", batch=4)


def report(step: int, elapsed: float) -> StepReport:
    return StepReport(step, elapsed, 0.0, {})


def observer() -> Throughput:
    return Throughput({"teacher": Operations(2.5e9, 0.5e9)}, CPU)


def test_speeds_are_those_of_the_last_steps():
    watching = observer()
    watching.start(STAGE, report(100, 7.0))
    first = watching.after_step(STAGE, report(101, 7.5))
    assert first == pytest.approx({"images_per_s": 8.0, "gflops_per_s": 24.0})
    second = watching.after_step(STAGE, report(102, 8.0 + 1.5))
    assert second == pytest.approx({"images_per_s": 8 / 2.5, "gflops_per_s": 9.6})
    for step in range(WINDOW):
        found = watching.after_step(STAGE, report(103 + step, 9.5 + 0.1 * (step + 1)))
    assert found["images_per_s"] == pytest.approx(40.0)


def test_a_clock_that_stands_still_gives_no_speed():
    watching = observer()
    watching.start(STAGE, report(0, 0.0))
    assert watching.after_step(STAGE, report(1, 0.0)) == {}


def test_the_share_comes_when_a_run_is_not_tiny(monkeypatch):
    asked = []
    monkeypatch.setattr(throughput, "matrix_peak", lambda *of: asked.append(of) or 96e9)
    watching = observer()
    watching.start(STAGE, report(0, 1000.0))
    assert "peak_share" not in watching.after_step(STAGE, report(1, 1000.0 + PEAK_AFTER / 2))
    assert asked == []
    found = watching.after_step(STAGE, report(20, 1000.0 + PEAK_AFTER))
    assert found["images_per_s"] == pytest.approx(8.0)
    assert found["peak_share"] == pytest.approx(24 / 96)
    assert asked == [(CPU, torch.float32)]


def test_the_peak_is_measured_once(monkeypatch):
    value = matrix_peak(CPU, torch.float32, 0.01)
    monkeypatch.setattr(torch, "mm", None)
    assert matrix_peak(CPU, torch.float32, 0.01) == value > 0


@pytest.mark.parametrize(
    ("size", "settings", "shape"),
    [
        (SliceSize(3, 8, 10), [], (5, 3, 8, 10)),
        (SliceSize(3, 8, 10, lines=False), [], (5, 3, 8, 10)),
        (SliceSize(0, 8, 10), ["teacher.objective=edm"], (5, 8, 10)),
        (SliceSize(0, 8, 10), ["corruption.kind=denoising"], (5, 8, 10)),
    ],
    ids=["lines", "points", "images", "magnitudes"],
)
def test_made_up_slices_are_like_those_of_training(size, settings, shape):
    batch = made_up(load_config(None, ["teacher.batch=5", *settings]), size, CPU)
    assert batch.measured.shape == shape
    assert batch.measured.is_complex() == ("corruption.kind=denoising" not in settings)
    again = batch.operator.forward(batch.operator.adjoint(batch.measured))
    assert again.shape == batch.measured.shape
    if not size.coils:
        assert torch.equal(again, batch.measured)


@pytest.mark.cuda
def test_free_memory_of_a_device_shrinks_by_what_is_taken():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    before = free_memory(device)
    held = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    assert before - free_memory(device) in range(-(8 << 20), 80 << 20)
    assert matrix_peak(device, torch.bfloat16) > matrix_peak(device, torch.float32)
    del held
