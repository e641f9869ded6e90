"""The whole line on a CUDA device: train both stages, sample, reconstruct."""

from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_train_sample_and_reconstruct_on_cuda(simulated: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> None:
    from rsdmri.config import load_config
    from rsdmri.priors import load_prior
    from rsdmri.workflows.reconstruct import reconstruct
    from rsdmri.workflows.train import train

    config = load_config(None, [*tiny_settings, "steps=6", f"data.path={simulated}"])
    run = train(config, tmp_path / "run", device="auto", say=lambda line: None)
    prior = load_prior(run, "auto")
    assert prior.device.type == "cuda"
    for teacher in (False, True):
        images = prior.sample(3, teacher=teacher, steps=4)
        assert images.shape == (3, 32, 32)
        assert bool(torch.isfinite(images.abs()).all())
    scan = next(simulated.glob("*.h5"))
    for method in ("zero-filled", "sense", "l1-wavelet", "tv", "ambient-one-step", "rsd"):
        on_cuda = reconstruct(scan, method=method, prior=prior, acceleration=2, samples=2)
        on_cpu = reconstruct(scan, method=method, prior=load_prior(run, "cpu"), acceleration=2, samples=2, device="cpu")
        assert on_cuda.scores is not None
        assert on_cpu.scores is not None
        if method in ("zero-filled", "sense"):
            assert on_cuda.scores["nmse"] == pytest.approx(on_cpu.scores["nmse"], rel=1e-3)
