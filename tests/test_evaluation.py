"""Files and folders of reconstructions scored by fastMRI's convention."""

import json
import statistics

import h5py
import numpy as np
import pytest

from rsdmri.errors import InputError
from rsdmri.evaluation import evaluate, evaluate_files, format_table
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
    text = format_table(result)
    lines = text.splitlines()
    assert lines[0].split() == ["volume", "NMSE", "NRMSE", "PSNR", "dB", "SSIM", "slices"]
    assert lines[4].startswith("mean +/- 2 std")
    assert lines[4].count("+/-") == 5
    assert lines[1].index(f"{values[0]:.4g}") == lines[0].index("PSNR")


def test_file_against_file_and_folder(folders):
    alone = evaluate(folders / "recon" / "scan2.h5", folders / "target")
    assert alone["volumes"] == evaluate(folders / "recon" / "scan2.h5", folders / "target" / "scan2.h5")["volumes"]
    assert alone["volumes"] == evaluate(folders / "recon", folders / "target" / "scan2.h5")["volumes"]
    assert alone["two_std"]["ssim"] is None
    assert "mean" not in format_table(alone).splitlines()[1:-1]


def test_a_result_in_a_folder_is_called_metrics_json(folders):
    evaluate(folders / "recon", folders / "target", folders)
    assert json.loads((folders / "metrics.json").read_text())["count"]["volumes"] == 3


def test_targets_without_reconstruction_are_told(folders):
    (folders / "recon" / "scan0.h5").unlink()
    result = evaluate(folders / "recon", folders / "target")
    assert result["targets_without_reconstruction"] == ["scan0.h5"]
    assert "1 targets have no reconstruction" in format_table(result)


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
