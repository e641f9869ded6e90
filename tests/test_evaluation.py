"""Files and folders of reconstructions scored, and files that must not be."""

import json
import statistics
import zlib

import h5py
import numpy as np
import pytest

from rsdmri.data.volumes import read_volume
from rsdmri.errors import InputError
from rsdmri.evaluation import evaluate, evaluate_files, format_metrics
from rsdmri.metrics.image import evaluate_volume
from rsdmri.runtime import numpy_generator


def volume(seed, shape=(2, 24, 20)):
    return numpy_generator("evaluation", seed).random(shape).astype(np.float32)


def save(path, **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as handle:
        for name, value in datasets.items():
            handle[name] = value
    return path


@pytest.fixture
def folders(tmp_path):
    for seed in range(3):
        target = volume(seed)
        noisy = target + 0.01 * (seed + 1) * volume(seed + 10)
        save(tmp_path / "target" / f"scan{seed}.h5", reconstruction_rss=target)
        save(tmp_path / "recon" / f"scan{seed}.h5", reconstruction=noisy)
    return tmp_path


def test_folder_against_folder(folders):
    result = evaluate(folders / "recon", folders / "target", folders / "metrics.json")
    assert result == json.loads((folders / "metrics.json").read_text())
    assert list(result["volumes"]) == ["scan0.h5", "scan1.h5", "scan2.h5"]
    assert result["count"] == {"volumes": 3, "slices": 6}
    target = volume(1)
    expected = evaluate_volume(target, target + 0.02 * volume(11))
    assert {m: result["volumes"]["scan1.h5"][m] for m in expected} == expected
    values = [v["psnr"] for v in result["volumes"].values()]
    assert result["mean"]["psnr"] == pytest.approx(sum(values) / 3)
    assert result["two_std"]["psnr"] == pytest.approx(2 * statistics.stdev(values))
    assert "maximum" in result["convention"]["data_range"]
    assert result["versions"].keys() >= {"rsdmri", "numpy", "scikit-image"}
    text = format_metrics(result)
    assert "mean of 3 volumes" in text
    assert "+/-" in text


def test_file_against_file_and_folder(folders):
    alone = evaluate(folders / "recon" / "scan2.h5", folders / "target")
    assert alone["volumes"] == evaluate(folders / "recon" / "scan2.h5", folders / "target" / "scan2.h5")["volumes"]
    assert alone["volumes"] == evaluate(folders / "recon", folders / "target" / "scan2.h5")["volumes"]
    assert alone["two_std"]["ssim"] is None
    assert "scan2.h5: NMSE" in format_metrics(alone)


def test_a_result_in_a_folder_is_called_metrics_json(folders):
    evaluate(folders / "recon", folders / "target", folders)
    assert json.loads((folders / "metrics.json").read_text())["count"]["volumes"] == 3


def test_targets_without_reconstruction_are_told(folders):
    (folders / "recon" / "scan0.h5").unlink()
    result = evaluate(folders / "recon", folders / "target")
    assert result["targets_without_reconstruction"] == ["scan0.h5"]
    assert "1 targets have no reconstruction" in format_metrics(result)


def test_equal_volumes_give_strict_json(folders):
    save(folders / "same.h5", reconstruction=volume(0))
    result = evaluate(folders / "same.h5", folders / "target" / "scan0.h5", folders / "same.json")
    assert result["mean"]["psnr"] == float("inf")
    assert json.loads((folders / "same.json").read_text())["mean"]["psnr"] is None


def test_single_coil_files_are_scored_against_their_own_target(folders):
    recon = folders / "recon" / "scan0.h5"
    both = save(folders / "single.h5", reconstruction_rss=volume(5), reconstruction_esc=volume(0))
    assert evaluate_files(recon, both)["target"] == "reconstruction_esc"
    assert evaluate_files(recon, both)["ssim"] == evaluate_files(recon, folders / "target" / "scan0.h5")["ssim"]


def test_a_prospective_scan_cannot_be_scored_and_the_reason_is_given(folders):
    scan = save(folders / "scan.h5", kspace=np.ones((1, 2, 8, 8), np.complex64))
    with pytest.raises(InputError, match="prospectively undersampled scan has no fully sampled image"):
        evaluate(folders / "recon" / "scan0.h5", scan)


def test_orphans_missing_files_and_wrong_sizes_are_named(folders):
    (folders / "target" / "scan1.h5").unlink()
    with pytest.raises(InputError, match=r"no target for 1 reconstructions \(scan1.h5\)"):
        evaluate(folders / "recon", folders / "target")
    with pytest.raises(InputError, match=r"holds no scan1\.h5"):
        evaluate(folders / "recon" / "scan1.h5", folders / "target")
    with pytest.raises(InputError, match="no such file or folder"):
        evaluate(folders / "nowhere", folders / "target")
    (folders / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.h5 file"):
        evaluate(folders / "empty", folders / "target")
    small = save(folders / "small.h5", reconstruction=volume(0, (2, 8, 8)))
    with pytest.raises(InputError, match=r"small\.h5 against .*scan0\.h5: reconstruction: .* do not cover"):
        evaluate(small, folders / "target" / "scan0.h5")


def test_an_output_that_cannot_be_written_is_refused(folders):
    (folders / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(folders / "recon", folders / "target", folders / "file" / "metrics.json")


def linked(path, tmp_path):
    save(tmp_path / "victim.h5", reconstruction=volume(0))
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.ExternalLink("victim.h5", "reconstruction")


def looped(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.SoftLink("/reconstruction")


def dangling(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle["reconstruction"] = h5py.SoftLink("/nothing")


def external(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 64))
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", (1, 8, 8), "f4", external=[(str(tmp_path / "secret"), 0, 256)])


def virtual(path, tmp_path):
    save(tmp_path / "victim.h5", reconstruction=volume(0))
    layout = h5py.VirtualLayout((2, 24, 20), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "victim.h5"), "reconstruction", shape=(2, 24, 20))
    with h5py.File(path, "w") as handle:
        handle.create_virtual_dataset("reconstruction", layout)


def bomb(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", (2000, 4096, 4096), "f4", chunks=(1, 64, 64))


def inflated(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", (100, 512, 512), "f4", chunks=(1, 64, 64))


def truncated(path, tmp_path):
    save(path, reconstruction=volume(0))
    path.write_bytes(path.read_bytes()[:3000])


def flipped(path, tmp_path):
    with h5py.File(path, "w") as handle:
        handle.create_dataset("reconstruction", data=volume(0), fletcher32=True, chunks=(1, 24, 20))
    data = bytearray(path.read_bytes())
    position = data.find(volume(0)[1].tobytes()[:16])
    data[position] ^= 255
    path.write_bytes(data)


def write(**kwargs):
    return lambda path, tmp_path: save(path, **kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, t: None, "no such file"),
        (lambda p, t: p.write_bytes(b""), "not an HDF5 file"),
        (lambda p, t: p.write_bytes(zlib.compress(b"x" * 5000)), "not an HDF5 file"),
        (truncated, "cut short"),
        (linked, "link to elsewhere"),
        (looped, "link to elsewhere"),
        (dangling, "link to elsewhere"),
        (external, "in other files"),
        (virtual, "in other files"),
        (bomb, "beyond what is read here"),
        (inflated, "beyond what is read here"),
        (flipped, "damaged"),
        (write(kspace=np.ones((1, 8, 8))), "holds k-space but no reconstruction"),
        (write(other=np.ones((1, 8, 8))), "no reconstruction in it"),
        (write(reconstruction=np.ones((8, 8))), r"shape \(8, 8\)"),
        (write(reconstruction=np.ones((0, 8, 8))), "is empty"),
        (write(reconstruction=np.ones((1, 8, 8), np.int16)), "type int16"),
        (write(reconstruction=np.ones((1, 8, 8), np.complex64)), "type complex64"),
        (write(reconstruction=np.ones((1, 8, 8), np.float16)), "type float16"),
        (write(**{"reconstruction/inner": np.ones((1, 8, 8))}), "is a group"),
        (write(reconstruction="text"), "type object"),
    ],
)
def test_hostile_or_damaged_volumes_are_refused_in_one_line(make, message, tmp_path):
    path = tmp_path / "file.h5"
    make(path, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path, ("reconstruction",))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_volumes_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle.create_dataset("reconstruction_rss", data=volume(0), compression="gzip")
    data, name = read_volume(tmp_path / "a.h5")
    assert name == "reconstruction_rss"
    np.testing.assert_array_equal(data, volume(0))
