"""Training on strips of slices."""

import pytest
import torch

from rsdmri.config import load_config
from rsdmri.errors import InputError
from rsdmri.priors import load_prior
from rsdmri.workflows.plan import open_slices, plan_training
from rsdmri.workflows.sources import open_source
from rsdmri.workflows.train import train

CPU = torch.device("cpu")


def opened(simulated, *more):
    config = load_config(None, [f"data.path={simulated}", *more])
    slices = open_slices(config, simulated)
    return config, slices, open_source(config, slices, CPU)


def test_batches_are_rows_of_the_same_slices_drawn_anew_and_the_same_for_every_share(simulated):
    _, _, whole = opened(simulated)
    config, slices, source = opened(simulated, "data.strip=12")
    batch, complete = source.batches(4, "teacher", 0), whole.batches(4, "teacher", 0)
    assert batch.measured.shape[-2:] == (12, 32)
    assert torch.equal(batch.further_mask, complete.further_mask)
    found = []
    for part, full in zip(batch.maps, complete.maps, strict=True):
        starts = [row for row in range(21) if torch.equal(full[:, row : row + 12], part)]
        assert len(starts) == 1
        found += starts
    assert len(set(found)) > 1
    again = source.batches(4, "teacher", 0, positions=[3, 1])
    assert torch.equal(again.measured, batch.measured[[3, 1]])
    assert not torch.equal(source.batches(4, "teacher", 1).measured, batch.measured)
    size = plan_training(config, slices, "here", CPU).size
    assert (size.height, size.width) == (12, 32)
    assert source.bank(2).maps.shape[-2:] == (32, 32)


def test_a_strip_of_all_rows_is_the_slice(simulated):
    _, _, whole = opened(simulated)
    _, _, source = opened(simulated, "data.strip=40")
    assert torch.equal(source.batches(2, "teacher", 0).measured, whole.batches(2, "teacher", 0).measured)


def test_a_prior_trained_on_strips_samples_whole_images(simulated, tmp_path, tiny_settings):
    config = load_config(None, [*tiny_settings, f"data.path={simulated}", "data.strip=16", "steps=3"])
    train(config, tmp_path / "run", device="cpu", say=lambda line: None)
    assert load_prior(tmp_path / "run", "cpu").sample(2, seed=0).shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("teacher.equivariance=1",), "motions of teacher.equivariance"),
        (("teacher.objective=edm",), "is for training on k-space"),
    ],
)
def test_what_strips_do_not_go_with_is_refused(simulated, tmp_path, settings, word):
    config = load_config(None, [f"data.path={simulated}", "data.strip=8", *settings])
    with pytest.raises(InputError, match=word):
        train(config, tmp_path / "run", device="cpu", say=lambda line: None)


def test_masks_of_points_are_refused(simulated, monkeypatch):
    config, slices, _ = opened(simulated, "data.strip=8")
    monkeypatch.setattr(
        slices,
        "slices",
        [
            slices.slices[0].__class__(
                slices.slices[0].file, slices.slices[0].path, 0, torch.ones(32, 32, dtype=torch.bool)
            )
        ],
    )
    with pytest.raises(InputError, match="masks of points"):
        open_source(config, slices, CPU)
