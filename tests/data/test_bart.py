"""K-space in BART pairs: the axes of BART itself, round trips bit for bit, volumes, refusals."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from rsdmri.data.bart import AXES, open_cfl, pair_base, read_bart, write_cfl
from rsdmri.errors import DiskFullError, InputError
from rsdmri.physics.fourier import fft2c, ifft1c, rss
from rsdmri.runtime import numpy_generator

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")


def draw(*shape):
    parts = numpy_generator("bart", *shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def put(folder, array, **sizes):
    """``array`` of axes fastest last-named first, written by hand: ``sizes`` in BART's order."""
    dims = [sizes.get(name, 1) for name in AXES]
    (folder / "a.hdr").write_text(f"# Dimensions\n{' '.join(map(str, dims))}\n# Command\nx\n")
    array.astype("<c8").ravel(order="F").tofile(folder / "a.cfl")
    return folder / "a.cfl"


@pytest.mark.parametrize("shape", [(3, 4, 9, 14), (1, 1, 8, 5), (4, 6, 7)])
def test_round_trip_is_exact(tmp_path, shape):
    kspace = draw(*shape)
    write_cfl(tmp_path / "scan.v1.cfl", kspace)
    scan = read_bart(tmp_path / "scan.v1.cfl")
    assert scan.kspace.tobytes() == kspace.tobytes()
    assert (scan.name, scan.prospective, scan.crop, scan.warnings) == ("scan.v1", False, shape[-2:], ())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["scan.v1.cfl", "scan.v1.hdr"]


def test_each_sample_lies_where_bart_has_it(tmp_path):
    kspace = draw(2, 3, 4, 5)  # slice, coil, y, x
    write_cfl(tmp_path / "a.cfl", kspace)
    dims = [int(word) for word in (tmp_path / "a.hdr").read_text().splitlines()[1].split()]
    assert dims == [4, 5, 1, 3, *[1] * 9, 2, 1, 1]
    raw = np.fromfile(tmp_path / "a.cfl", np.complex64)
    for s, c, y, x in np.ndindex(*kspace.shape):
        assert raw[y + 4 * (x + 5 * (c + 3 * s))] == kspace[s, c, y, x]


def test_any_name_of_the_pair(tmp_path):
    write_cfl(tmp_path / "a.cfl", draw(1, 2, 4, 4))
    for name in ("a", "a.hdr", "a.cfl"):
        assert read_bart(str(tmp_path / name)).name == "a"
    (tmp_path / "plain").write_text("x")
    assert pair_base(tmp_path / "plain") is None
    assert pair_base(tmp_path / "none") is None
    with pytest.raises(ValueError, match="expected"):
        write_cfl(tmp_path / "b.cfl", draw(4, 4))


def test_a_failed_write_leaves_the_old_pair(tmp_path, monkeypatch):
    write_cfl(tmp_path / "a.cfl", draw(1, 2, 4, 4))
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space"):
        write_cfl(tmp_path / "a.cfl", draw(1, 2, 4, 5))
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_what_is_zero_everywhere_was_not_acquired(tmp_path):
    kspace, lines = draw(2, 3, 6, 10), np.array([1, 0, 1, 1, 1, 0, 0, 1, 0, 1], bool)
    write_cfl(tmp_path / "a.cfl", np.where(lines, kspace, 0))
    scan = read_bart(tmp_path / "a.cfl")
    assert scan.prospective
    np.testing.assert_array_equal(scan.mask, lines[None])


@pytest.mark.parametrize("lines_only", [True, False])
def test_volumes_become_slices(tmp_path, lines_only):
    coils, height, partitions, width = 2, 6, 5, 8
    image = torch.from_numpy(draw(coils, height, partitions, width))
    full = torch.fft.fftshift(
        torch.fft.fftn(torch.fft.ifftshift(image, dim=(1, 2, 3)), dim=(1, 2, 3), norm="ortho"), dim=(1, 2, 3)
    )
    points = numpy_generator("points").random((partitions, width)) < 0.6
    lines = np.arange(width) % 2 == 0
    mask = np.broadcast_to(lines, (partitions, width)) if lines_only else points
    kspace = np.where(mask, full.numpy(), np.complex64(0))
    stored = kspace.transpose(1, 3, 2, 0)  # READ, PHS1, PHS2, COIL
    scan = read_bart(put(tmp_path, stored, READ=height, PHS1=width, PHS2=partitions, COIL=coils))
    assert scan.prospective
    assert any("bart transpose 2 13" in warning for warning in scan.warnings)
    if lines_only:
        assert scan.kspace.shape == (partitions, coils, height, width)
        np.testing.assert_array_equal(scan.mask, lines[None])
        expected = np.where(lines, fft2c(image.movedim(2, 0)).numpy(), 0)
        assert any("along the partition axis" in warning for warning in scan.warnings)
    else:
        assert scan.kspace.shape == (height, coils, partitions, width)
        np.testing.assert_array_equal(scan.mask, points)
        expected = np.where(points, ifft1c(full, 1).movedim(1, 0).numpy(), 0)
        assert any("along the readout" in warning for warning in scan.warnings)
    np.testing.assert_allclose(scan.kspace, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"TIME": 3}, r"axis 10 \(TIME\) has 3; expected READ \(0\).*bart slice"),
        ({"MAPS": 3}, r"axis 4 \(MAPS\) has 3"),
        ({"AVG": 3}, r"axis 14 \(AVG\) has 3.*bart transpose AXIS 13"),
        ({"PHS2": 3, "SLICE": 2}, r"PHS2 \(2\) and SLICE \(13\) are both used"),
        ({"COIL": 300}, "300 coils"),
        ({"SLICE": 3000}, "3,000 slices"),
    ],
)
def test_other_axes_are_refused_by_name(tmp_path, sizes, message):
    count = 4 * 5 * int(np.prod(list(sizes.values())))
    path = put(tmp_path, np.ones(count, np.complex64), READ=4, PHS1=5, **sizes)
    with pytest.raises(InputError, match=message):
        read_bart(path)


def test_nothing_and_nonsense_are_refused(tmp_path):
    for value, message in ((0, "only zeros"), (np.nan, "20 acquired samples of slice 0 are NaN")):
        with pytest.raises(InputError, match=message):
            read_bart(put(tmp_path, np.full(20, value, np.complex64), READ=4, PHS1=5))
    with pytest.raises(InputError, match="no such file"):
        read_bart(tmp_path / "none.cfl")
    huge = tmp_path / "a.hdr"
    huge.write_text("# Dimensions\n" + "99999999999 " * 16)
    with pytest.raises(InputError, match="cut short"):
        open_cfl(huge)


@pytest.mark.external
@needs_bart
def test_bart_reconstructs_our_file_and_we_read_its_own(tmp_path):
    kspace = draw(1, 3, 12, 9)
    write_cfl(tmp_path / "a.cfl", kspace)
    for command in ("fft -iu 3 a image", "rss 8 image rss", "fft -u 3 image back"):
        subprocess.run(["bart", *command.split()], check=True, capture_output=True, cwd=tmp_path, timeout=60)
    image = torch.from_numpy(kspace)
    image = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(image, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    np.testing.assert_allclose(open_cfl(tmp_path / "rss.cfl").squeeze().real, rss(image)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read_bart(tmp_path / "back").kspace, kspace, atol=1e-5)
