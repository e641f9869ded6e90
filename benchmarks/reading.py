"""Slice reads against a raw read of the same bytes, in one run: python benchmarks/reading.py [--repeats 15]."""

import argparse
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import interleaved, use_threads

use_threads(1)

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from rsdmri.data.hdf5 import open_hdf5  # noqa: E402
from rsdmri.data.slice_reader import SliceReader  # noqa: E402
from rsdmri.data.stored_kspace import Kspace  # noqa: E402
from rsdmri.runtime import numpy_generator  # noqa: E402

SHAPE = (6, 15, 640, 372)  # a slice has 28.6 MB, as a fastMRI knee
LAYOUTS: dict[str, dict[str, object]] = {
    "contiguous": {},
    "chunked by coil": {"chunks": (1, 1, 640, 372)},
    "chunked automatically": {"chunks": True},
    "gzip by coil": {"chunks": (1, 1, 640, 372), "compression": "gzip", "compression_opts": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    rng = numpy_generator("reading")
    data = np.empty(SHAPE, np.complex64)
    for block in data.reshape(-1, SHAPE[-1]).view(np.float32).reshape(-1, 640, 744):
        block[...] = rng.standard_normal(block.shape, np.float32)
    mask = rng.uniform(size=SHAPE[-1]) < 0.25
    with tempfile.TemporaryDirectory() as folder:
        for name, options in LAYOUTS.items():
            path = Path(folder) / "scan.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("kspace", data=data, **options)
            measure(name, path, mask, repeats if "gzip" not in name else max(3, repeats // 5))


def measure(name: str, path: Path, mask: np.ndarray, repeats: int) -> None:
    """Print milliseconds of each way to read a slice, and the throughput relative to a raw read of its bytes."""
    reader, out, turn = SliceReader(), np.empty(SHAPE[1:], np.complex64), iter(range(10**9))
    raw = np.empty(out.nbytes, np.uint8)
    descriptor, size = os.open(path, os.O_RDONLY), path.stat().st_size
    pool, buffers = ThreadPoolExecutor(2), [out, np.empty_like(out)]

    def index() -> int:
        return next(turn) % SHAPE[0]

    def raw_read() -> None:  # into a reused buffer; of compressed files, which are shorter, the same number of bytes
        start = min(2048 + index() * raw.nbytes, max(0, size - raw.nbytes))
        os.preadv(descriptor, [raw], start)

    def opened_each_time() -> None:
        with open_hdf5(path) as file:
            Kspace(file, name).read_into(out, index())

    def two_threads() -> None:
        list(pool.map(lambda buffer: reader.read(path, index(), mask, out=buffer), buffers))

    with open_hdf5(path) as file:
        kspace = Kspace(file, name)
        calls: dict[str, Callable[[], object]] = {
            "raw read": raw_read,
            "slice into a reused buffer": lambda: kspace.read_into(out, index()),
            "the same, file opened each time": opened_each_time,
            "acquired samples only (SliceReader)": lambda: reader.read(path, index(), mask, out=out),
            "the same, into new arrays": lambda: reader.read(path, index(), mask),
            "the same, two threads, per slice": two_threads,
            "hyperslab of the acquired lines": lambda: kspace.data[index(), :, :, np.flatnonzero(mask)],
        }
        if "auto" in name or "gzip" in name:
            del calls["hyperslab of the acquired lines"]
        seconds = interleaved(calls, repeats)
    seconds["the same, two threads, per slice"] /= 2
    print(f"\n{name} ({size / 1e6:.0f} MB)")
    for label, value in seconds.items():
        print(f"  {label:<36} {1e3 * value:8.1f} ms   throughput / raw {seconds['raw read'] / value:5.2f}")
    os.close(descriptor)
    pool.shutdown()
    reader.close()


if __name__ == "__main__":
    main()
