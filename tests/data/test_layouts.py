"""Layouts of CMRxRecon, SKM-TEA and M4Raw, written as their authors describe them."""

import h5py
import numpy as np
import pytest
import scipy.io
from test_arrays import matlab73

from rsdmri.data.fastmri import read_scan
from rsdmri.data.fastmri_header import format_header
from rsdmri.data.layouts import read_cmrxrecon, read_skm_tea
from rsdmri.data.scan import Header
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator


def draw(*shape):
    parts = numpy_generator("layouts", *shape).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


# CMRxRecon: (kx, ky, coil, slice, frame)

CINE = draw(12, 10, 4, 3, 5)


@pytest.mark.parametrize("name", ["kspace_full", "kspace", "kus"])
@pytest.mark.parametrize("frame", [None, 0, 4])
def test_cmrxrecon_frames(tmp_path, name, frame):
    path = matlab73(tmp_path / "cine_sax.mat", **{name: CINE.astype(np.complex128)})
    scan = read_cmrxrecon(path, frame=frame)
    np.testing.assert_array_equal(scan.kspace, CINE[..., frame or 0].transpose(3, 2, 0, 1))
    assert scan.name == "cine_sax"
    assert any(f"CMRxRecon layout: kx of '{name}' is the readout" in warning for warning in scan.warnings)
    assert ("frame 0 of 5 read; the others with --frame 1 to 4" in scan.warnings) == (frame is None)


def test_cmrxrecon_zeros_are_the_mask_of_the_frame(tmp_path):
    generator = numpy_generator("kt")
    lines = generator.random((10, 5)) < 0.5
    lines[4:6] = True
    path = matlab73(tmp_path / "a.mat", kspace_sub04=np.where(lines[None, :, None, None], CINE, 0))
    for frame in range(5):
        scan = read_cmrxrecon(path, frame=frame)
        assert scan.prospective
        np.testing.assert_array_equal(scan.mask, lines[:, frame][None])


def test_cmrxrecon_without_frames_or_coils_and_in_version_5(tmp_path):
    black_blood = CINE[..., 0]
    scan = read_cmrxrecon(matlab73(tmp_path / "a.mat", kspace_full=black_blood))
    np.testing.assert_array_equal(scan.kspace, black_blood.transpose(3, 2, 0, 1))
    single = CINE[:, :, 0]
    scan = read_cmrxrecon(matlab73(tmp_path / "a.mat", kspace_single_full=single), frame=2)
    np.testing.assert_array_equal(scan.kspace, single[..., 2].transpose(2, 0, 1)[:, None])
    with pytest.raises(InputError, match="no k-space of CMRxRecon; it holds kspace complex64"):
        read_cmrxrecon(matlab73(tmp_path / "a.mat", kspace=black_blood))
    scipy.io.savemat(tmp_path / "a.mat", {"kspace_full": CINE})
    np.testing.assert_array_equal(
        read_cmrxrecon(tmp_path / "a.mat", frame=1).kspace, CINE[..., 1].transpose(3, 2, 0, 1)
    )


def test_cmrxrecon_reads_one_frame_alone(tmp_path):
    spoilt = CINE.copy()
    spoilt[..., 1:] = np.nan
    scan = read_cmrxrecon(matlab73(tmp_path / "a.mat", kspace_full=spoilt), frame=0)
    np.testing.assert_array_equal(scan.kspace, CINE[..., 0].transpose(3, 2, 0, 1))


def test_cmrxrecon_refusals(tmp_path):
    path = matlab73(tmp_path / "cine_sax_mask.mat", mask04=np.ones((12, 10)))
    with pytest.raises(InputError, match=r"it holds mask04 float64 12x10; give the file with kspace_full"):
        read_cmrxrecon(path)
    path = matlab73(tmp_path / "a.mat", kspace_full=CINE)
    with pytest.raises(InputError, match="--frame 5: expected frame 0 to 4"):
        read_cmrxrecon(path, frame=5)
    with pytest.raises(InputError, match=r"--frame 1.*no axis of frames"):
        read_cmrxrecon(matlab73(tmp_path / "a.mat", kspace_full=CINE[..., 0]), frame=1)


# SKM-TEA: (x, ky, kz, echo, coil)

HYBRID = draw(6, 12, 8, 2, 4)


def skm_tea(path, kspace=HYBRID, sets=1, **arrays):
    maps = draw(*kspace.shape[:3], kspace.shape[4], sets)
    small = numpy_generator("poisson").random((10, 4)) < 0.6
    with h5py.File(path, "w") as file:
        for name, array in {"kspace": kspace, "maps": maps, **arrays}.items():
            file.create_dataset(name, data=array, compression="lzf")
        file["masks/poisson_6.0x"], file["masks/poisson_8.0x"] = small, small
    return maps, small


@pytest.mark.parametrize("frame", [None, 1])
def test_skm_tea_echoes_and_maps(tmp_path, frame):
    maps, _ = skm_tea(tmp_path / "MTR_001.h5")
    scan = read_skm_tea(tmp_path / "MTR_001.h5", frame=frame)
    np.testing.assert_array_equal(scan.kspace, HYBRID[:, :, :, frame or 0].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(scan.maps, maps[..., 0].transpose(0, 3, 1, 2))
    assert (scan.name, scan.prospective) == ("MTR_001", False)
    assert any("positions along the readout" in warning for warning in scan.warnings)
    assert ("echo 0 of 2 read; the others with --frame 1 to 1" in scan.warnings) == (frame is None)
    assert "masks of the file not applied: poisson_6.0x, poisson_8.0x" in scan.warnings


def test_skm_tea_masks_lie_in_the_centre(tmp_path):
    _, small = skm_tea(tmp_path / "a.h5")
    mask = np.zeros((12, 8), bool)
    mask[1:11, 2:6] = small
    scan = read_skm_tea(tmp_path / "a.h5", mask="poisson_6.0x", slices=slice(1, 3))
    np.testing.assert_array_equal(scan.mask, mask)
    np.testing.assert_array_equal(scan.kspace, np.where(mask, HYBRID[1:3, :, :, 0].transpose(0, 3, 1, 2), 0))
    assert scan.maps.shape == scan.kspace.shape
    assert scan.prospective


def test_skm_tea_refusals(tmp_path):
    path = tmp_path / "a.h5"
    skm_tea(path, sets=2)
    assert read_skm_tea(path).maps is None
    for options, message in (
        ({"mask": "poisson_4.0x"}, r"no mask 'poisson_4.0x'; it holds poisson_6.0x, poisson_8.0x"),
        ({"frame": 2}, "--frame 2: expected echo 0 to 1"),
        ({"slices": slice(7, 9)}, "none of its 6 slices"),
    ):
        with pytest.raises(InputError, match=message):
            read_skm_tea(path, **options)
    skm_tea(path, maps=np.full((6, 12, 8, 4, 1), np.nan, np.complex64))
    with pytest.raises(InputError, match="coil maps hold NaN"):
        read_skm_tea(path)
    with h5py.File(path, "w") as file:
        file["kspace"] = HYBRID
        file["masks"] = h5py.SoftLink("/kspace")
    assert read_skm_tea(path).maps is None
    with h5py.File(path, "w") as file:
        file["kspace"] = HYBRID[0]
        file["maps"] = HYBRID
    with pytest.raises(InputError, match="as in SKM-TEA"):
        read_skm_tea(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (512, 512, 160, 2, 16), "c8", chunks=(1, 64, 64, 2, 16))
        file["target"] = 1
    with pytest.raises(InputError, match="not a plausible scan"):
        read_skm_tea(path)


# M4Raw: fastMRI's layout with a 4-coil low-field scan in each file


def test_m4raw_is_read_as_fastmri(tmp_path):
    kspace, target = draw(3, 4, 16, 16), np.abs(draw(3, 16, 16))
    header = Header((16, 16, 1), (16, 16, 1), (240.0, 240.0, 5.0), (0, 16))
    with h5py.File(tmp_path / "2022061003_T201.h5", "w") as file:
        file["kspace"], file["reconstruction_rss"] = kspace, target.astype(np.float32)
        file["ismrmrd_header"] = np.bytes_(format_header(header))
        file.attrs.update(acquisition="AXT2", max=121.6, patient_id="88448eec274d9248d1a2487a8548ee41")
    scan = read_scan(tmp_path / "2022061003_T201.h5")
    np.testing.assert_array_equal(scan.kspace, kspace)
    assert (scan.name, scan.acquisition, scan.target_source) == ("2022061003_T201", "AXT2", "reconstruction_rss")
    assert scan.warnings == ()
    assert "88448" not in repr(scan) + str(scan.header)
