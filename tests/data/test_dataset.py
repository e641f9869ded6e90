"""Training data: the same slices bit for bit with and without disk cache and worker threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsdmri.config import load_config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.manifest import read_manifest
from rsdmri.data.slice_cache import SliceCache
from rsdmri.errors import InputError
from rsdmri.physics.prepare import PreparedSlice
from rsdmri.training.checkpoint import load_tensors
from rsdmri.workflows.plan import mask_law, open_slices
from rsdmri.workflows.train import train


@pytest.fixture
def settings(simulated, tiny_settings):
    return lambda *more: load_config(None, [*tiny_settings, f"data.path={simulated}", *more])


def entries(folder):
    return [entry for entry in read_manifest(folder) if entry.split == "train"]


def same(left: PreparedSlice, right: PreparedSlice):
    tensors = all(torch.equal(getattr(left, k), getattr(right, k)) for k in ("kspace", "mask", "maps", "intensity"))
    return tensors and (left.scale, left.sigma_y) == (right.scale, right.sigma_y)


def test_slices_from_the_disk_cache_are_those_prepared(tmp_path, simulated, settings, monkeypatch):
    plain = open_slices(settings(), simulated)
    config = settings(f"data.cache_dir={tmp_path / 'cache'}")
    first = open_slices(config, simulated)
    assert all(same(first[i], plain[i]) for i in range(len(plain)))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == len(plain)

    def never(*_args, **_options):
        raise AssertionError("prepared again")

    monkeypatch.setattr("rsdmri.data.dataset.prepare_slice", never)
    second = open_slices(config, simulated)
    assert all(same(second[i], plain[i]) for i in range(len(plain)))
    other = open_slices(settings(f"data.cache_dir={tmp_path / 'cache'}", "acquisition.acceleration=3"), simulated)
    with pytest.raises(AssertionError, match="prepared again"):  # other masks, other values
        other[0]


def test_the_scale_of_the_images_needs_no_coil_maps(simulated, settings, monkeypatch):
    kept, none = open_slices(settings(), simulated), open_slices(settings("data.cache_gb=0"), simulated)
    kept.prepare()
    monkeypatch.setattr("rsdmri.data.dataset.prepare_slice", None)
    assert kept.sigma_data() == none.sigma_data() > 0


def test_a_damaged_cache_changes_nothing(tmp_path, simulated, settings):
    plain, config = open_slices(settings(), simulated), settings(f"data.cache_dir={tmp_path / 'cache'}")
    open_slices(config, simulated).prepare()
    for number, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        data = bytearray(path.read_bytes())
        data[-40 if number % 2 else 200] ^= 4
        path.write_bytes(data if number % 3 else data[:50])
    again = open_slices(config, simulated)
    assert all(same(again[i], plain[i]) for i in range(len(plain)))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == len(plain)


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_threads_change_no_slice(simulated, settings, workers):
    plain = open_slices(settings(), simulated)
    ahead = open_slices(settings(f"data.workers={workers}", "data.cache_gb=0"), simulated)
    items = list(range(len(plain)))
    for start in range(3):  # nothing is kept, so each is prepared each time
        ahead.prefetch(items[start:])
        assert all(same(ahead[i], plain[i]) for i in items)
    ahead.prefetch([])
    assert not ahead._pending
    ahead.prepare()


def test_an_error_of_a_worker_reaches_whoever_asks_for_the_slice(tmp_path, simulated, settings):
    slices = open_slices(settings("data.workers=2"), simulated)
    slices.slices = [type(ref)(ref.file, tmp_path / "gone.h5", ref.index, ref.mask) for ref in slices.slices]
    slices._files = {tmp_path / "gone.h5": list(range(len(slices)))}
    slices.prefetch([0, 1])
    with pytest.raises(InputError, match=r"gone\.h5: no such file"):
        slices[1]


def test_training_gives_the_same_weights_with_cache_and_workers(tmp_path, finished_run, settings):
    config = settings("steps=6", f"data.cache_dir={tmp_path / 'cache'}", "data.workers=2")
    for name in ("written", "read"):
        out = train(config, tmp_path / name, device="cpu", say=lambda line: None)
        for stage in ("teacher", "prior"):
            left, right = (load_tensors(run / stage / "model.safetensors")[0] for run in (finished_run, out))
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)


def test_slices_of_several_shapes_never_share_a_batch(tmp_path):
    from rsdmri.data.simulate_files import write_simulated

    for size in (32, 33):
        write_simulated(tmp_path / str(size), scans=2, slices=2, size=size, coils=3, noise=0.02, seed=3)
    config = load_config(None, ["data.workers=1"])
    slices = TrainingSlices(entries(tmp_path / "32") + entries(tmp_path / "33"), mask_law(config), workers=1)
    assert len(slices.buckets) == 2
    for step in range(30):
        items = slices.draw_items(3, 0, "teacher", step)
        slices.prefetch(items)
        assert len({tuple(slices[i].kspace.shape) for i in items}) == 1


def _prepare_all(folder, cache):
    config = load_config(None, [f"data.cache_dir={cache}", "data.cache_gb=0"])
    slices = open_slices(config, folder)
    return [float(slices[i].maps.abs().sum()) for i in range(len(slices))]


def test_processes_that_share_a_cache_see_the_same_slices(tmp_path, simulated):
    script = "import json, sys; from pathlib import Path; from test_dataset import _prepare_all;"
    script += "print(json.dumps(_prepare_all(Path(sys.argv[1]), Path(sys.argv[2]))))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script, str(simulated), str(tmp_path)]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = [json.loads(worker.communicate(timeout=300)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert found[1:] == found[:-1]
    cache = SliceCache(tmp_path, 1e9)
    keys = [path.stem for path in tmp_path.glob("*.safetensors")]
    assert len(keys) == len(found[0])
    assert all(cache.load(key) is not None for key in keys)
