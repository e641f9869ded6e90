"""Seeded damage to scan files: a clean refusal or a right read, never another error, a hang or a wrong array.

One process reads a batch; where it dies, the file that killed it is read again as the command reads it, in a child.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri_header import format_header
from rsdmri.data.sandbox import load_scan
from rsdmri.data.scan import Header
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

RNG = numpy_generator("fuzz")
KSPACE = (RNG.standard_normal((3, 2, 12, 10)) + 1j * RNG.standard_normal((3, 2, 12, 10))).astype(np.complex64)
KSPACE[..., [2, 7]] = 0
MASK = (KSPACE != 0).all((0, 1, 2))

READER = """
import hashlib, json, sys
from rsdmri.data.confine import limit_resources
from rsdmri.data.fastmri import read_scan
from rsdmri.data.scan_parts import scan_from_parts, scan_to_parts
from rsdmri.errors import InputError
limit_resources(2 << 30, 60)
import numpy as np
for path in json.load(sys.stdin):
    try:
        scan = read_scan(path)
    except InputError as error:
        row = {"refused": str(error)}
    except BaseException as error:
        row = {"escaped": repr(error)}
    else:
        arrays, facts = scan_to_parts(scan)
        scan_from_parts(arrays, json.loads(json.dumps(facts)))
        told = np.where(scan.mask, 0, scan.kspace)
        row = {"finite": bool(np.isfinite(scan.kspace).all()), "told": bool(told.any()), "warnings": scan.warnings,
               "kspace": hashlib.sha256(scan.kspace.tobytes()).hexdigest(), "mask": scan.mask.any(0).tolist()}
    print(json.dumps(row), flush=True)
"""


def whole(path: Path, *, checked: bool) -> None:
    """A scan; ``checked``: every byte that says what and where the samples are lies under a checksum."""
    options = {"chunks": (1, 2, 12, 10), "fletcher32": True} if checked else {}
    with h5py.File(path, "w", libver="latest" if checked else "earliest") as file:
        file.create_dataset("kspace", data=KSPACE, **options)
        file.create_dataset("mask", data=MASK.astype(np.uint8), **({**options, "chunks": (10,)} if checked else {}))
        if not checked:
            file["ismrmrd_header"] = np.bytes_(format_header(Header((12, 10, 1), (10, 10, 1), (200, 200, 5), (0, 10))))
            file["reconstruction_rss"] = np.ones((3, 10, 10), np.float32)
        file.attrs["acquisition"] = "AXT2"


Damage = Callable[[bytearray, np.random.Generator], bytearray]


def flip_anywhere(raw: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(raw), rng.integers(1, 9)):
        raw[place] ^= 1 << rng.integers(8)
    return raw


def flip_metadata(raw: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, min(len(raw), 3000), rng.integers(1, 5)):
        raw[place] ^= 1 << rng.integers(8)
    return raw


def overwrite(raw: bytearray, rng: np.random.Generator) -> bytearray:
    place = int(rng.integers(0, len(raw)))
    size = min(int(rng.integers(1, 64)), len(raw) - place)
    raw[place : place + size] = bytes(rng.choice([0, 255, int(rng.integers(256))], size).astype(np.uint8))
    return raw


def truncate(raw: bytearray, rng: np.random.Generator) -> bytearray:
    return raw[: rng.integers(0, len(raw))]


def move(raw: bytearray, rng: np.random.Generator) -> bytearray:
    """Two blocks change places."""
    size = int(rng.integers(4, 200))
    one, two = sorted(int(place) for place in rng.integers(0, len(raw) - size, 2))
    raw[one : one + size], raw[two : two + size] = raw[two : two + size], raw[one : one + size]
    return raw


def rename(raw: bytearray, rng: np.random.Generator) -> bytearray:
    names = [b"kspace", b"mask", b"ismrmrd_header", b"reconstruction_rss", b"acquisition"]
    one, two = rng.permutation(len(names))[:2]
    swapped = bytes(raw).replace(names[one], names[two][: len(names[one])].ljust(len(names[one]), b"\0"))
    return bytearray(swapped)


def number(raw: bytearray, rng: np.random.Generator) -> bytearray:
    """One of the sizes, offsets and types in the metadata becomes another number."""
    place = int(rng.integers(0, min(len(raw), 3000) // 4)) * 4
    raw[place : place + 4] = int(rng.choice([0, 1, 2, 7, 255, 65536, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
    return raw


BYTES: list[Damage] = [flip_anywhere, flip_metadata, overwrite, truncate, move, rename, number]


def rewrite(path: Path, rng: np.random.Generator) -> None:
    """Valid HDF5 with other shapes, types, attributes and header numbers."""
    with h5py.File(path, "r+") as file:
        match rng.integers(6):
            case 0:
                shape = tuple(rng.integers(0, 14, rng.integers(0, 6)))
                replace(file, "kspace", np.ones(shape, rng.choice(["c8", "c16", "f4", "i2", "f2", "?", "S3"])))
            case 1:
                axes = rng.permutation(4)
                replace(file, "kspace", KSPACE.transpose(axes))
            case 2:
                shape = [(10,), (1, 10), (12, 10), (10, 12), (9,), (3, 2, 12, 10), ()][rng.integers(7)]
                replace(file, "mask", rng.integers(0, 3, shape).astype(rng.choice(["u1", "f4", "i8", "?"])))
            case 3:
                numbers = [int(n) for n in rng.integers(-20, 40, 8)]
                header = Header(tuple(numbers[:3]), tuple(max(1, n) for n in numbers[3:6]), None, tuple(numbers[6:]))
                replace(file, "ismrmrd_header", np.bytes_(format_header(header)))
            case 4:
                for name in rng.permutation(["mask", "ismrmrd_header", "reconstruction_rss"])[:2]:
                    replace(file, str(name), file["kspace"][0, 0])
            case _:
                values = [1, 1.5, "AXT2", b"\xff\xfe", np.arange(3), h5py.Empty("f4"), "\x1b[31m" * 100]
                for name in ("acquisition", "max", "patient_id"):
                    file.attrs[name] = values[rng.integers(len(values))]


def replace(file: h5py.File, name: str, data: object) -> None:
    if name in file:
        del file[name]
    file[name] = data


def run(paths: list[Path]) -> list[dict]:
    """What reading each did."""
    rows: list[dict] = []
    while len(rows) < len(paths):
        left = [str(path) for path in paths[len(rows) :]]
        done = subprocess.run(
            [sys.executable, "-c", READER], input=json.dumps(left), capture_output=True, text=True, timeout=600
        )
        rows += [json.loads(line) for line in done.stdout.splitlines()]
        if len(rows) < len(paths):
            assert done.returncode < 0, done.stderr
            with pytest.raises(InputError, match=r"\.h5: "):
                load_scan(paths[len(rows)])
            rows.append({"killed": done.returncode})
    return rows


def fuzz(folder: Path, count: int, start: int = 0) -> dict[str, int]:
    """Read ``count`` damaged files and judge every one; how many ended how."""
    paths, origins = [], []
    for name in ("plain", "checked"):
        whole(folder / f"{name}.h5", checked=name == "checked")
    for index in range(start, start + count):
        rng = numpy_generator("fuzz", index)
        path, origin = folder / f"{index:05d}.h5", ("plain", "checked")[index % 2]
        if index % 10 == 0:
            shutil.copy(folder / f"{origin}.h5", path)
            rewrite(path, rng)
            origin = "rewritten"
        else:
            raw = bytearray((folder / f"{origin}.h5").read_bytes())
            path.write_bytes(BYTES[rng.integers(len(BYTES))](raw, rng))
        paths.append(path)
        origins.append(origin)
    (original,) = run([folder / "checked.h5"])
    counts = {"read": 0, "refused": 0, "killed": 0}
    for path, origin, row in zip(paths, origins, run(paths), strict=True):
        assert "escaped" not in row, (path.name, row)
        if "refused" in row:
            assert row["refused"].startswith(f"{path}: "), row
            assert row["refused"].isprintable()
            assert len(row["refused"]) < len(str(path)) + 400
        elif "killed" not in row:
            assert row["finite"], (path.name, row)
            assert not row["told"], (path.name, row)
            if origin == "checked":
                assert row["kspace"] == original["kspace"], (path.name, row)
                assert row["mask"] == original["mask"], (path.name, row)
        counts["refused" if "refused" in row else "killed" if "killed" in row else "read"] += 1
    return counts


def test_the_files_are_right_before_they_are_damaged(tmp_path):
    for name in ("plain", "checked"):
        whole(tmp_path / f"{name}.h5", checked=name == "checked")
        np.testing.assert_array_equal(load_scan(tmp_path / f"{name}.h5").kspace, KSPACE)


def test_two_hundred_damaged_files(tmp_path):
    counts = fuzz(tmp_path, 200)
    assert counts["refused"] > 50
    assert counts["read"] > 20
    assert counts["killed"] <= 2


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path):
    counts = fuzz(tmp_path, 2000, start=200)
    assert counts["refused"] > 500
    assert counts["read"] > 200
    assert counts["killed"] <= 20


def test_a_flipped_bit_in_checked_samples_is_never_read(tmp_path):
    whole(tmp_path / "checked.h5", checked=True)
    with h5py.File(tmp_path / "checked.h5") as file:
        chunk = file["kspace"].id.get_chunk_info(1)
    raw = (tmp_path / "checked.h5").read_bytes()
    paths = []
    for index, place in enumerate(numpy_generator("flips").integers(0, chunk.size, 20)):
        damaged = bytearray(raw)
        damaged[chunk.byte_offset + int(place)] ^= 1
        paths.append(tmp_path / f"{index}.h5")
        paths[-1].write_bytes(damaged)
    assert all("slice 1 cannot be read" in row.get("refused", "") for row in run(paths))
