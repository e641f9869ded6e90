"""Index a data set of 10 GB and start to train on it in bounded memory: python benchmarks/large_dataset.py [FOLDER].

The files are as large as real ones. Samples stand in the middle readout rows, and in all rows of one coil image; the
rest are holes of a sparse file, which read as zeros, so that 10 GB take about 1.5 GB of disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES, SLICES, COILS, ROWS, LINES = 200, 3, 8, 640, 408  # 50 MB each
KEPT = 64  # readout rows that are written


def make(folder: Path, files: int) -> None:
    """Write ``files`` sparse scans."""
    import h5py
    import numpy as np

    from rsdmri.data.simulate import simulate_scan

    folder.mkdir(parents=True, exist_ok=True)
    small = simulate_scan(0, slices=SLICES, size=KEPT, coils=COILS, noise=0.02, seed=1).kspace
    wide = np.zeros((SLICES, COILS, KEPT, LINES), np.complex64)
    middle = (LINES - KEPT) // 2
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return 0.02 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    wide, noise = draw(wide.shape), draw((ROWS, LINES))
    wide[..., middle : middle + KEPT] += small
    first = (ROWS - KEPT) // 2
    for number in range(files):
        with h5py.File(folder / f"file{number:04d}.h5", "w") as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # what is not written stays a hole
            space = h5py.h5s.create_simple((SLICES, COILS, ROWS, LINES))
            kind = h5py.h5t.py_create(np.dtype(np.complex64))
            data = h5py.Dataset(h5py.h5d.create(file.id, b"kspace", kind, space, plan))
            data[SLICES // 2, 0] = noise  # no position is zero in all slices and coils: a fully sampled scan
            data[:, :, first : first + KEPT] = wide * np.exp(1j * number)
            file.attrs["acquisition"] = "AXT2"


def report(title: str, started: float) -> None:
    with open("/proc/self/status", encoding="ascii") as file:  # getrusage would count what the parent had, too
        peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    print(f"{title}: {time.monotonic() - started:.1f} s, peak memory {peak:.0f} MB", flush=True)


def index(folder: Path) -> None:
    from rsdmri.workflows.index import IndexRules
    from rsdmri.workflows.index import index as run

    report("index, imports alone", STARTED)
    started = time.monotonic()
    run(str(folder), folder / "manifest.tsv", IndexRules())
    report("index", started)
    started = time.monotonic()
    run(str(folder), folder / "manifest.tsv", IndexRules())
    report("index again, nothing changed", started)


def train(folder: Path) -> None:
    from rsdmri.config import load_config
    from rsdmri.workflows.plan import open_slices
    from rsdmri.workflows.train import train as run

    report("train, imports alone", STARTED)
    settings = ["network.channels=[8,16]", "steps=1", "teacher.batch=1", "data.cache_gb=0.1", f"data.path={folder}"]
    config = load_config(None, settings)
    started = time.monotonic()
    slices = open_slices(config, folder)
    report(f"open {len(slices)} slices of {len({ref.path for ref in slices.slices})} scans", started)
    started = time.monotonic()
    slices.prepare()
    report("prepare slices until 0.1 GB are kept", started)
    del slices
    started = time.monotonic()
    run(config, folder / "run", stage="teacher", device="cpu")
    report("train: all of that again, and one step", started)


STARTED = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--only", choices=("make", "index", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = {"make": lambda folder: make(folder, options.files), "index": index, "train": train}
    if options.only:
        steps[options.only](options.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "data"
        run_alone("make", folder, options.files)
        status = [path.stat() for path in folder.glob("*.h5")]
        apparent, real = sum(s.st_size for s in status) / 1e9, 512 * sum(s.st_blocks for s in status) / 1e9
        print(f"{len(status)} files, {apparent:.1f} GB, {real:.2f} GB on disk", flush=True)
        run_alone("index", folder, options.files)
        run_alone("train", folder, options.files)


def run_alone(step: str, folder: Path, files: int) -> None:
    """Run one step in a process of its own, whose peak memory is its own."""
    subprocess.run([sys.executable, __file__, str(folder), "--only", step, "--files", str(files)], check=True)


if __name__ == "__main__":
    main()
