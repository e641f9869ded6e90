"""The poison test: training uses acquired samples and nothing else, whatever a file holds elsewhere.

Everything that was not acquired is overwritten on disk (NaN in k-space, garbage in reference images and attributes) and
the real training is run again: coil maps, scales, noise levels and weights must not change by a single bit.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from rsdmri.config import Config, load_config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.plan import open_slices
from rsdmri.workflows.train import train

Edit = Callable[[np.ndarray, np.ndarray], None]  # of one slice (coil, y, x) in place, given its mask (1 or y, x)


def settings(tiny: tuple[str, ...], data: Path, *more: str) -> Config:
    return load_config(None, [*tiny, "steps=6", f"data.path={data}", *more])


def edited_copy(config: Config, source: Path, target: Path, edit: Edit, *, garbage: bool) -> None:
    """Copy the folder of scans and change every slice by ``edit``; the masks are those that training would use."""
    shutil.copytree(source, target)
    for ref in open_slices(config, source).slices:
        with h5py.File(target / ref.path.name, "r+") as file:
            block = file["kspace"][ref.index]
            edit(block, ref.mask.numpy())
            file["kspace"][ref.index] = block
    for path in target.glob("*.h5") if garbage else ():
        with h5py.File(path, "r+") as file:
            if "reconstruction_rss" in file:
                file["reconstruction_rss"][...] = np.float32(1e30)
            file.attrs["max"], file.attrs["norm"], file.attrs["patient_id"] = np.nan, -1e30, "someone else"


def poison(block: np.ndarray, mask: np.ndarray) -> None:
    block[:, ~np.broadcast_to(mask, block.shape[1:])] = np.nan


def run(config: Config, out: Path, stage: str = "all") -> Path:
    return train(config, out, stage=stage, device="cpu", say=lambda line: None)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "model.safetensors")[0]


def different(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    assert left.keys() == right.keys()
    return [key for key in left if not torch.equal(left[key], right[key])]


def assert_same_slices(left: TrainingSlices, right: TrainingSlices) -> None:
    assert len(left) == len(right) > 0
    for i in range(len(left)):
        a, b = left[i], right[i]
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.maps, b.maps)
        assert torch.equal(a.kspace, b.kspace)
        assert torch.equal(a.intensity, b.intensity)
        assert (a.scale, a.sigma_y) == (b.scale, b.sigma_y)
        assert float(a.maps.abs().max()) > 0
        assert 0 < a.sigma_y < 1
    assert left.sigma_data() == right.sigma_data()


def test_what_was_not_acquired_cannot_change_a_training(tmp_path, simulated, finished_run, tiny_settings):
    poisoned = tmp_path / "poisoned"
    clean_config, config = (settings(tiny_settings, path) for path in (simulated, poisoned))
    edited_copy(clean_config, simulated, poisoned, poison, garbage=True)
    spoilt = 0
    for path in poisoned.glob("*.h5"):
        with h5py.File(path) as file:
            spoilt += int(np.isnan(file["kspace"][()]).sum())
    assert spoilt > 0.7 * 2 * 2 * 4 * 32 * 32  # of the 2 training scans, R = 4: nearly four fifths are gone

    assert_same_slices(open_slices(clean_config, simulated), open_slices(config, poisoned))
    run(config, tmp_path / "run")
    for stage in ("teacher", "prior"):
        assert different(weights(finished_run / stage), weights(tmp_path / "run" / stage)) == []
    moved = weights(finished_run / "prior")
    assert not torch.equal(moved["generator.network.conv_out.weight"], moved["denoiser.network.conv_out.weight"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.objective=fourier-ambient", "teacher.consistency=0.1"],
        ["teacher.objective=edm"],
        ["teacher.objective=edm", "teacher.images=l1-wavelet"],
    ],
    ids=["fourier-ambient", "zero-filled", "L1-EDM"],
)
def test_what_was_not_acquired_changes_no_other_objective(tmp_path, simulated, tiny_settings, overrides):
    paths = {"clean": simulated, "poisoned": tmp_path / "poisoned", "louder": tmp_path / "louder"}
    configs = {name: settings(tiny_settings, path, "steps=2", *overrides) for name, path in paths.items()}

    def louder(block: np.ndarray, mask: np.ndarray) -> None:
        block[..., np.flatnonzero(mask[0])[0]] *= 1.01

    edited_copy(configs["clean"], simulated, paths["poisoned"], poison, garbage=True)
    edited_copy(configs["clean"], simulated, paths["louder"], louder, garbage=False)
    clean, poisoned, other = (weights(run(configs[n], tmp_path / f"run-{n}", "teacher") / "teacher") for n in paths)
    assert different(clean, poisoned) == []
    assert different(clean, other) != []


def test_the_test_can_fail_one_acquired_line_changes_the_weights(tmp_path, simulated, finished_run, tiny_settings):
    def louder(block: np.ndarray, mask: np.ndarray) -> None:
        block[..., np.flatnonzero(mask[0])[0]] *= 1.01

    edited_copy(settings(tiny_settings, simulated), simulated, tmp_path / "louder", louder, garbage=False)
    run(settings(tiny_settings, tmp_path / "louder"), tmp_path / "run", "teacher")
    assert different(weights(finished_run / "teacher"), weights(tmp_path / "run" / "teacher")) != []


def test_the_test_can_fail_one_acquired_nan_is_refused(tmp_path, simulated, tiny_settings):
    def spoil(block: np.ndarray, mask: np.ndarray) -> None:
        block[1, 3, np.flatnonzero(mask[0])[0]] = np.nan

    edited_copy(settings(tiny_settings, simulated), simulated, tmp_path / "spoilt", spoil, garbage=False)
    with pytest.raises(InputError, match=r"sim\d+\.h5: 1 acquired samples of slice \d are NaN"):
        run(settings(tiny_settings, tmp_path / "spoilt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def prospective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of 33 x 33 with masks of their own, zero where nothing was acquired."""
    folder = tmp_path_factory.mktemp("prospective")
    for number in range(6):
        scan = simulate_scan(number, slices=1, size=33, coils=3, noise=0.02, seed=5)
        mask = numpy_generator("prospective", number // 2).uniform(size=33) < 0.5
        mask = ~mask if number % 2 else mask  # every line is acquired in some scan
        mask[13:20] = True
        attrs = {"acquisition": "AXT2", "max": 1.0, "norm": 1.0, "patient_id": "x"}
        write_scan(folder / f"scan{number}.h5", np.where(mask, scan.kspace, 0), mask=mask, attrs=attrs)
    return folder


def test_a_prospective_scan_is_never_read_where_its_mask_is_not_set(tmp_path, prospective, tiny_settings):
    poisoned = tmp_path / "poisoned"
    few = "steps=2"
    clean_config, config = (settings(tiny_settings, path, few) for path in (prospective, poisoned))
    edited_copy(clean_config, prospective, poisoned, poison, garbage=True)
    slices = open_slices(config, poisoned)
    assert all(ref.file.prospective for ref in slices.slices)
    assert_same_slices(open_slices(clean_config, prospective), slices)
    runs = [run(clean_config, tmp_path / "clean"), run(config, tmp_path / "run")]
    for stage in ("teacher", "prior"):
        assert different(*(weights(folder / stage) for folder in runs)) == []


def test_masks_are_fixed_by_file_and_slice(simulated, tiny_settings):
    """A slice under a new mask every epoch would be seen whole in the end."""
    first, again, other = (
        open_slices(settings(tiny_settings, simulated, f"seed={seed}"), simulated) for seed in (0, 0, 1)
    )
    masks = [ref.mask for ref in first.slices]
    assert all(torch.equal(a, b.mask) for a, b in zip(masks, again.slices, strict=True))
    assert not all(torch.equal(a, b.mask) for a, b in zip(masks, other.slices, strict=True))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks)
    used = {i for step in range(200) for i in first.draw_items(3, 0, "teacher", step)}
    assert used == set(range(len(first)))
    assert all(torch.equal(a, first[i].mask) for i, a in enumerate(masks))
