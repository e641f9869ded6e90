"""NIfTI: pixels keep their place in the patient, and a place that is not known is not claimed."""

import gzip
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from placed import MARKS, brightest, oblique, position, volume

from rsdmri import RESEARCH_ONLY
from rsdmri.data.derived import contrast, provenance
from rsdmri.data.nifti import bids_path, dataset_description, sidecar_of, sidecar_path, write_nifti
from rsdmri.data.scan import Header
from rsdmri.data.stack import cut_geometry, stack_of, voxel_of
from rsdmri.errors import InputError


def header_of(data: bytes) -> dict:
    """Fields of a NIfTI-1 header, taken from its bytes by their published offsets."""
    get = struct.unpack_from
    b, c, d = get("<3f", data, 256)
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    pixdim = get("<8f", data, 76)
    turned = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    qform = np.eye(4)
    qform[:3, :3] = turned * (np.array(pixdim[1:4]) * [1, 1, pixdim[0]])
    qform[:3, 3] = get("<3f", data, 268)
    sform = np.eye(4)
    sform[:3] = np.array(get("<12f", data, 280)).reshape(3, 4)
    dim = get("<8h", data, 40)
    codes = get("<2h", data, 252)
    values = np.frombuffer(data, "<f4", offset=int(get("<f", data, 108)[0])).reshape(dim[1:4], order="F")
    return {"qform": qform, "sform": sform, "codes": codes, "type": get("<h", data, 70)[0], "values": values,
            "units": data[123], "descrip": data[148:228].rstrip(b"\0").decode()}  # fmt: skip


def written(path, *args, **kwargs):
    write_nifti(path, *args, **kwargs)
    data = path.read_bytes()
    return header_of(gzip.decompress(data) if path.suffix == ".gz" else data), json.loads(
        sidecar_path(path).read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("size", [(9, 8), (12, 7), (8, 11)])
@pytest.mark.parametrize("left_handed", [False, True])
def test_every_mark_lies_where_it_is_in_the_patient(size, left_handed, tmp_path):
    geometry = oblique(turn=size[0], left_handed=left_handed)
    found, sidecar = written(tmp_path / "a.nii.gz", volume(size), geometry=geometry)
    assert found["codes"] == (1, 1)
    assert found["type"] == 16  # float32
    assert sidecar["OrientationKnown"] is True
    assert RESEARCH_ONLY in found["descrip"]
    assert sidecar["Note"] == RESEARCH_ONLY
    for (k, i, j), value in MARKS.items():
        assert found["values"][j, i, k] == value
        wanted = position(geometry, (k, i, j), size) * [-1, -1, 1]
        for form in ("qform", "sform"):
            np.testing.assert_allclose((found[form] @ [j, i, k, 1])[:3], wanted, atol=2e-4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_independent_reader_agrees(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the independent reader, is not installed")
    geometry = oblique()
    write_nifti(tmp_path / name, volume(), geometry=geometry)
    found = brightest(sitk.ReadImage(str(tmp_path / name)))
    for index, value in MARKS.items():
        np.testing.assert_allclose(found[value], position(geometry, index, (9, 8)), atol=1e-3)


def test_an_unknown_orientation_is_said_and_not_made_up(tmp_path):
    found, sidecar = written(tmp_path / "a.nii", volume(), voxel_mm=(4.0, 1.5, 0.5))
    assert found["codes"] == (0, 0)
    np.testing.assert_allclose(np.diag(found["sform"]), [0.5, 1.5, 4, 1])
    assert (sidecar["OrientationKnown"], sidecar["SpacingKnown"]) == (False, True)
    _, sidecar = written(tmp_path / "b.nii", volume())
    assert (sidecar["OrientationKnown"], sidecar["SpacingKnown"]) == (False, False)


def test_slices_out_of_order_are_sorted_and_uneven_ones_are_not_placed(tmp_path):
    geometry = oblique()
    order = [2, 0, 1]
    shuffled = replace(geometry, centres=tuple(geometry.centres[k] for k in order))
    found, sidecar = written(tmp_path / "a.nii", volume()[order], geometry=shuffled)
    straight, _ = written(tmp_path / "b.nii", volume(), geometry=geometry)
    assert sidecar["SliceOrder"] == [1, 2, 0]
    assert np.array_equal(found["values"], straight["values"])
    np.testing.assert_allclose(found["sform"], straight["sform"], atol=1e-5)
    backwards = replace(geometry, centres=geometry.centres[::-1])
    assert stack_of(backwards).order == (0, 1, 2)  # a falling stack is a stack
    uneven = replace(geometry, centres=(*geometry.centres[:2], tuple(1.5 * np.array(geometry.centres[2]))))
    same = replace(geometry, centres=(geometry.centres[0],) * 3)
    for other in (uneven, same):
        found, sidecar = written(tmp_path / "c.nii", volume(), geometry=other)
        assert found["codes"] == (0, 0)
        assert "not evenly spaced" in sidecar["OrientationNote"]


@pytest.mark.parametrize(("n", "m"), [(8, 4), (8, 5), (9, 4), (9, 5), (8, 8)])
def test_what_is_cut_from_an_image_stays_where_it_is(n, m):
    geometry = oblique()
    cut = cut_geometry(geometry, (n, n), (m, m))
    offset = (n - m) // 2
    for index in ((0, 0, 0), (2, 1, 3)):
        before = position(geometry, (index[0], index[1] + offset, index[2] + offset), (n, n))
        np.testing.assert_allclose(position(cut, index, (m, m)), before, atol=1e-9)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "image.nii.gz", volume(), geometry=oblique())
    first, second = ((tmp_path / name / "image.nii.gz").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first[4:8] == bytes(4)  # no time in the gzip header
    assert not first[3] & 8  # nor a name


def test_bids_names_and_sidecar():
    path = bids_path("a_b-1", "l1-wavelet", "mean", contrast("AXT2"))
    assert path.as_posix() == "sub-ab1/anat/sub-ab1_rec-l1wavelet_desc-mean_T2w.nii.gz"
    assert bids_path("..", "rsd", "std", None).as_posix() == "sub-x/anat/sub-x_rec-rsd_desc-std_MRI.nii.gz"
    names = {"AXFLAIR": "FLAIR", "AXT1POST": "T1w", "CORPDFS_FBK": "PDw", "PDw": "PDw", "UPDATE": None, "unknown": None}
    assert {name: contrast(name) for name in names} == names
    assert dataset_description()["DatasetType"] == "derivative"
    attrs = {"method": "rsd", "acceleration": np.float64(4), "scale": np.ones(2), "mask_sha256": "ab", "seed": 3,
             "source_sha256": "cd", "patient_id": "DOE^JOHN", "seconds_per_slice": 1.0}  # fmt: skip
    header = Header(field_strength_t=3.0, echo_times_ms=(90.0,), repetition_times_ms=(2000.0, 2500.0))
    sidecar = json.loads(json.dumps(sidecar_of(provenance(attrs), header, "mean")))
    assert sidecar["Sources"] == ["urn:sha256:cd"]
    assert (sidecar["EchoTime"], sidecar["RepetitionTime"]) == (0.09, [2.0, 2.5])
    assert (sidecar["Scale"], sidecar["MaskSHA256"], sidecar["Seed"]) == ([1, 1], "ab", 3)
    assert "DOE" not in str(sidecar)


def test_voxels_from_the_header():
    assert voxel_of(Header((640, 368, 1), (320, 320, 1), (160.0, 320.0, 3.0))) == (3.0, 0.5, 1.0)
    assert voxel_of(Header((640, 368, 1))) is None


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"a\.img: expected a name that ends in \.nii"):
        write_nifti(tmp_path / "a.img", volume())
    with pytest.raises(ValueError, match="2 slice centres for 3 slices"):
        write_nifti(tmp_path / "a.nii", volume(), geometry=oblique(2))
    for bad in (volume()[0], volume() * 1j, -volume(), volume() * np.nan):
        with pytest.raises(ValueError, match="volume: expected"):
            write_nifti(tmp_path / "a.nii", bad)
    assert not list(tmp_path.iterdir())
