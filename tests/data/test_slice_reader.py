"""Slices read through open handles: the right values, flat memory, replaced files, threads, forks, refusals."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri import read_acquired
from rsdmri.data.slice_reader import SliceReader
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator


def kspace(shape, seed=0):
    rng = numpy_generator("slice reader", seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def write(path, data, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=data, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.h5", kspace((3, 2, 8, 11), i))
    return tmp_path


MASK = numpy_generator("slice reader mask").uniform(size=11) < 0.5


@pytest.mark.parametrize("handles", [1, 2, 8])
def test_slices_are_those_of_the_files_in_any_order(folder, handles):
    reader, out = SliceReader(handles), np.full((2, 8, 11), np.nan, np.complex64)
    for i, index in [(0, 2), (1, 0), (0, 1), (4, 2), (3, 0), (0, 2), (2, 1)]:
        found = reader.read(folder / f"{i}.h5", index, MASK, out=out)
        assert found is out
        assert np.array_equal(out, np.where(MASK, kspace((3, 2, 8, 11), i)[index], 0))
        assert len(reader._open) <= handles
    reader.close()
    assert not reader._open


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (kspace((3, 2, 8, 11)), {"chunks": (1, 1, 8, 11), "compression": "gzip", "fletcher32": True}),
        (kspace((3, 2, 8, 11)).astype(np.complex128), {}),
        (kspace((3, 2, 8, 11)).astype(">c8"), {}),
        (kspace((3, 2, 8, 11)).view(np.float32).reshape(3, 2, 8, 11, 2), {}),
        (kspace((3, 2, 8, 11)).astype(np.complex128).view(np.float64).reshape(3, 2, 8, 11, 2), {}),
    ],
    ids=["gzip", "complex128", "big-endian", "pairs", "double pairs"],
)
def test_every_layout_gives_the_same_slice(tmp_path, data, options):
    path = write(tmp_path / "scan.h5", data, **options)
    two_d = numpy_generator("2-D").uniform(size=(8, 11)) < 0.5
    for mask in (MASK, MASK[None], two_d):
        assert np.array_equal(SliceReader().read(path, 1, mask), np.where(mask, kspace((3, 2, 8, 11))[1], 0))
        assert np.array_equal(read_acquired(path, 1, mask), np.where(mask, kspace((3, 2, 8, 11))[1], 0))


@pytest.mark.parametrize("pairs", [False, True])
def test_single_coil_files_have_one_coil(tmp_path, pairs):
    data = kspace((3, 8, 11))
    path = write(tmp_path / "scan.h5", data.view(np.float32).reshape(3, 8, 11, 2) if pairs else data)
    assert np.array_equal(SliceReader().read(path, 2, MASK)[0], np.where(MASK, data[2], 0))


def test_what_was_not_acquired_leaves_nothing_behind_not_even_in_a_buffer_that_is_used_again(tmp_path):
    data = kspace((2, 2, 8, 11))
    data[..., ~MASK] = np.nan
    path = write(tmp_path / "scan.h5", data)
    out = np.empty((2, 8, 11), np.complex64)
    reader = SliceReader()
    for index in (0, 1):
        reader.read(path, index, MASK, out=out)
        bits = out.view(np.uint64)[..., ~MASK]
        assert (bits == 0).all()  # not -0.0 either
    data[1, 0, 3, np.flatnonzero(MASK)[0]] = np.inf
    reader.close()
    write(path, data)
    with pytest.raises(InputError, match=r"scan\.h5: 1 acquired samples of slice 1 are NaN or infinite"):
        reader.read(path, 1, MASK, out=out)


def test_large_finite_samples_are_not_taken_for_infinite_ones(tmp_path):
    data = np.full((1, 1, 8, 11), 3e38 + 3e38j, np.complex64)
    assert np.array_equal(SliceReader().read(write(tmp_path / "x.h5", data), 0, np.ones(11, bool)), data[0])


def test_a_replaced_file_is_opened_anew(folder):
    reader, path = SliceReader(), folder / "0.h5"
    reader.read(path, 0, MASK)
    write(folder / "new.h5", kspace((3, 2, 8, 11), 9))
    os.replace(folder / "new.h5", path)
    assert np.array_equal(reader.read(path, 0, MASK), np.where(MASK, kspace((3, 2, 8, 11), 9)[0], 0))
    path.unlink()
    with pytest.raises(InputError, match=r"0\.h5: no such file"):
        reader.read(path, 0, MASK)


def test_refusals(folder):
    reader, path = SliceReader(), folder / "0.h5"
    with pytest.raises(InputError, match="no slice 3; it has slices 0 to 2"):
        reader.read(path, 3, MASK)
    with pytest.raises(InputError, match="does not fit k-space"):
        reader.read(path, 0, MASK[:-1])
    with pytest.raises(ValueError, match="out: expected contiguous complex64"):
        reader.read(path, 0, MASK, out=np.empty((2, 8, 11), np.complex128))
    (folder / "bad.h5").write_bytes(b"x")
    with pytest.raises(InputError, match="not an HDF5 file"):
        reader.read(folder / "bad.h5", 0, MASK)


def read_some(reader, folder, seed, count=60):
    """Number of right slices of ``count`` random ones."""
    rng, right = numpy_generator("order", seed), 0
    for _ in range(count):
        i, index = int(rng.integers(5)), int(rng.integers(3))
        found = reader.read(folder / f"{i}.h5", index, MASK)
        right += np.array_equal(found, np.where(MASK, kspace((3, 2, 8, 11), i)[index], 0))
    return right


def test_threads_share_a_reader(folder):
    reader = SliceReader(2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: read_some(reader, folder, seed), range(4))) == [60] * 4


def _child(reader, folder, seed, answers):
    answers.put(read_some(reader, folder, seed))


def _fork_and_read(folder):
    reader = SliceReader()
    read_some(reader, folder, 0)  # handles are open when the children begin
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_child, args=(reader, folder, seed, answers)) for seed in (1, 2)]
    with reader._lock:  # as if another thread were reading
        for child in children:
            child.start()
        assert [answers.get(timeout=60) for _ in children] == [60, 60]
    assert read_some(reader, folder, 3) == 60
    for child in children:
        child.join(60)
        assert child.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_read_beside_their_parent_after_a_fork(folder):
    """In a process of its own: what other tests left running would be forked, too."""
    script = "import sys; from pathlib import Path; from test_slice_reader import _fork_and_read;"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", f"{script} _fork_and_read(Path(sys.argv[1]))", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_reader_travels_to_another_process_without_its_handles(folder):
    reader = SliceReader(3)
    reader.read(folder / "0.h5", 0, MASK)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._open
    assert read_some(copy, folder, 0) == 60


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_stays_flat_over_random_reads(tmp_path, count):
    """Slices of 0.8 MB of 12 files: 500 reads are 400 MB, 5,000 are 4 GB."""
    shape, mask = (4, 4, 160, 160), np.arange(160) % 4 == 0
    for i in range(12):
        options = {"chunks": (1, 4, 160, 160), "compression": "gzip", "compression_opts": 1} if i % 4 == 0 else {}
        write(tmp_path / f"{i}.h5", np.tile(kspace((1, 4, 160, 10), i), (4, 1, 1, 16)), **options)
    reader, out, rng = SliceReader(4), np.empty(shape[1:], np.complex64), numpy_generator("random reads")
    before = 0
    for k in range(count):
        if k == 50:
            before = resident()
        reader.read(tmp_path / f"{rng.integers(12)}.h5", int(rng.integers(4)), mask, out=out)
    assert resident() - before < 20e6
