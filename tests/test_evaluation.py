"""Files and folders of reconstructions scored by fastMRI's convention."""

import hashlib
import json
import statistics
from pathlib import Path

import h5py
import numpy as np
import pytest

from rsdmri.errors import InputError
from rsdmri.evaluation import (
    Selection,
    compare,
    evaluate,
    evaluate_files,
    format_comparison,
    format_table,
    signature,
)
from rsdmri.metrics.image import evaluate_volume
from rsdmri.report.evaluation import methods_figure
from rsdmri.runtime import numpy_generator
from rsdmri.workflows.evaluate import evaluate_methods, median_volume, split_arguments


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
    assert lines[0].split() == ["volume", "NMSE", "NRMSE", "PSNR", "dB", "SSIM", "HaarPSI", "slices"]
    assert lines[4].startswith("mean +/- 2 std")
    assert lines[4].count("+/-") == 6
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


def write_method(folder, name, damage, method=None, volumes=6):
    """Targets of a sawtooth of sizes and a method whose error is ``damage(seed)``."""
    for seed in range(volumes):
        target = volume(seed, (2, 24, 20)) * (1 + seed)
        save(folder / "targets" / f"scan{seed}.h5", reconstruction_rss=target)
        path = save(folder / name / f"scan{seed}.h5", reconstruction=target * (1 + damage(seed)))
        if method is not None:
            with h5py.File(path, "r+") as file:
                file.attrs["method"] = method
    return folder / name


def test_methods_are_compared_over_the_same_volumes(tmp_path):
    poor = write_method(tmp_path, "poor", lambda seed: 0.1 * (1 + 0.1 * seed), "sense")
    good = write_method(tmp_path, "good", lambda seed: 0.05 * (1 + 0.1 * seed), "rsd")
    noisy = write_method(tmp_path, "noisy", lambda seed: 0.1 * (1 + 0.1 * seed) + 0.03 * (-1) ** seed, "tv", 5)
    result = compare([poor, good, noisy], tmp_path / "targets")
    assert list(result["methods"]) == ["sense", "rsd", "tv"]
    assert [each["count"]["volumes"] for each in result["methods"].values()] == [5, 5, 5]
    assert [each["left_out"] for each in result["methods"].values()] == [1, 1, 0]
    found = {(row["first"], row["second"], row["metric"]): row for row in result["differences"]}
    row = found["sense", "rsd", "nrmse"]
    assert row["mean"] == pytest.approx(0.05 * 1.2, rel=1e-5)
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    assert row["interval"][0] > 0.05
    assert {found["sense", "rsd", m]["better"] for m in ("nmse", "nrmse", "psnr")} == {"rsd"}
    assert found["sense", "rsd", "psnr"]["mean"] == pytest.approx(-20 * np.log10(2), rel=1e-4)
    assert found["sense", "tv", "nrmse"]["better"] is None  # as often better as worse
    text = format_comparison(result)
    assert "not told apart" in text
    assert "sense: 1 volumes that another method lacks" in text


def test_a_result_shows_what_it_was_made_from_and_whether_it_was_changed(tmp_path):
    folder = write_method(tmp_path, "recon", lambda seed: 0.1)
    result = evaluate(folder, tmp_path / "targets", tmp_path / "metrics.json")
    stored = json.loads((tmp_path / "metrics.json").read_text())
    digests = stored["volumes"]["scan3.h5"]["sha256"]
    assert digests["target"] == hashlib.sha256((tmp_path / "targets" / "scan3.h5").read_bytes()).hexdigest()
    assert digests["reconstruction"] == hashlib.sha256((folder / "scan3.h5").read_bytes()).hexdigest()
    assert signature(stored) == stored["sha256"] == result["sha256"]
    stored["mean"]["nmse"] *= 0.9
    assert signature(stored) != stored["sha256"]
    low, high = result["interval"]["psnr"]
    assert low <= result["mean"]["psnr"] <= high
    assert evaluate(folder / "scan0.h5", tmp_path / "targets")["interval"]["psnr"] is None


def test_methods_are_named_by_folder_where_their_files_do_not_tell_them_apart(tmp_path):
    a = write_method(tmp_path, "a/recon", lambda seed: 0.1, "rsd", 3)
    b = write_method(tmp_path, "b/recon", lambda seed: 0.2, "rsd", 3)
    targets = tmp_path / "a" / "targets"
    (tmp_path / "targets").rename(targets)
    assert list(compare([a, b], targets)["methods"]) == ["a/recon", "b/recon"]
    with pytest.raises(InputError, match="the same reconstructions twice"):
        compare([a, a], targets)
    (b / "scan0.h5").rename(tmp_path / "other.h5")
    with pytest.raises(InputError, match="no volume in common"):
        compare([a / "scan0.h5", b], targets)


def test_selection_is_fastmris(folders):
    for seed, (acquisition, acceleration) in enumerate([("AXT2", 4), ("AXT2", 8), ("AXT1", 4)]):
        with h5py.File(folders / "target" / f"scan{seed}.h5", "r+") as file:
            file.attrs["acquisition"] = acquisition
        with h5py.File(folders / ("target" if seed else "recon") / f"scan{seed}.h5", "r+") as file:
            file.attrs["acceleration" if seed else "acceleration_nominal"] = acceleration

    def chosen(**options):
        return list(evaluate(folders / "recon", folders / "target", selection=Selection(**options))["volumes"])

    assert chosen(acquisition="AXT2") == ["scan0.h5", "scan1.h5"]
    assert chosen(acceleration=4) == ["scan0.h5", "scan2.h5"]
    assert chosen(acquisition="AXT2", acceleration=8) == ["scan1.h5"]
    with pytest.raises(InputError, match="none of 3 volumes has --acquisition AXT1 --acceleration 8"):
        chosen(acquisition="AXT1", acceleration=8)


def test_what_only_some_files_have_data_for(folders):
    target = volume(0, (2, 24, 20))
    inside = target > 0.1 * np.percentile(target, 99)
    low = np.where(np.arange(24)[:, None] < 12, target - 0.1, target + 0.1)
    complex_target = target * np.exp(0.3j)
    with h5py.File(folders / "recon" / "scan0.h5", "r+") as file:
        file["quantile_05"], file["quantile_95"] = low.astype(np.float32), (low + 0.2).astype(np.float32)
        file["quantile_05"][:, 12:] += np.float32(0.2)
        file["reconstruction_complex"] = (1.1 * target * np.exp(-1j)).astype(np.complex64)
        file.attrs["held_out_residual"] = np.array([1.0, 1.5, np.nan])
    assert (
        not {"nrmse_complex"} & evaluate_files(folders / "recon" / "scan0.h5", folders / "target" / "scan0.h5").keys()
    )
    with h5py.File(folders / "target" / "scan0.h5", "r+") as file:
        file["reconstruction_complex"] = complex_target.astype(np.complex64)
    result = evaluate(folders / "recon", folders / "target")
    found = result["volumes"]["scan0.h5"]
    assert found["nrmse_complex"] == pytest.approx(0.1, rel=1e-4)
    assert found["held_out_residual"] == 1.25
    assert found["coverage_90"] == pytest.approx(inside[:, 2:22][:, :10].sum() / inside[:, 2:22].sum())
    bright = inside & (target > np.float32(0.8) * target.max())
    with h5py.File(folders / "recon" / "scan0.h5", "r+") as file:
        file.attrs["noise_floor"] = float(0.8 * target.max())
    again = evaluate_files(folders / "recon" / "scan0.h5", folders / "target" / "scan0.h5")
    assert again["coverage_90"] == pytest.approx(bright[:, 2:22][:, :10].sum() / bright[:, 2:22].sum(), abs=1e-3)
    assert again["coverage_90"] != found["coverage_90"]
    with h5py.File(folders / "recon" / "scan0.h5", "r+") as file:
        file.attrs["noise_floor"] = float(2 * target.max())  # noise alone
    assert "coverage_90" not in evaluate_files(folders / "recon" / "scan0.h5", folders / "target" / "scan0.h5")
    assert "coverage_90" not in result["volumes"]["scan1.h5"]
    assert result["interval"]["coverage_90"] is None
    assert "coverage 90 %" in format_table(result)
    assert "coverage" not in format_table(evaluate(folders / "recon" / "scan1.h5", folders / "target"))


def test_a_prospective_reconstruction_says_why_there_is_no_target(folders):
    path = save(folders / "recon" / "scan9.h5", reconstruction=volume(0))
    with h5py.File(path, "r+") as file:
        file.attrs["prospective"] = True
    with pytest.raises(InputError, match="undersampled when they were acquired"):
        evaluate(folders / "recon", folders / "target")


def test_figures_and_tables_of_a_folder(tmp_path):
    first = write_method(tmp_path, "first", lambda seed: 0.1 * (seed + 1) ** 0.5, volumes=5)
    second = write_method(tmp_path, "second", lambda seed: 0.05 * (seed + 1) ** 0.5, volumes=5)
    lines = []
    result = evaluate_methods([first, second], tmp_path / "targets", tmp_path / "out", say=lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.png", "metrics.json", "metrics.png"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["sha256"] == result["sha256"]
    assert median_volume(result["methods"]) == "scan2.h5"
    assert "first - second" in lines[0]
    evaluate_methods([first], tmp_path / "targets", tmp_path / "one", say=lines.append)
    assert len(list((tmp_path / "one").iterdir())) == 3
    assert "volumes" in json.loads((tmp_path / "one" / "metrics.json").read_text())
    figure = methods_figure(result["methods"])
    assert [axes.get_title(loc="left") for axes in figure.axes][:3] == ["NMSE ↓", "NRMSE ↓", "PSNR dB ↑"]


def test_how_the_target_is_given():
    a, b, c = (Path(name) for name in "abc")
    assert split_arguments([a, b], None) == ([a], b)
    assert split_arguments([a, b], c) == ([a, b], c)
    for wrong in ([a], [a, b, c]):
        with pytest.raises(InputError, match="--target"):
            split_arguments(wrong, None)
