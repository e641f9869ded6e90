"""A prior against clean images: every figure with its interval and what it was measured with."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from rsdmri.cli import app
from rsdmri.errors import InputError
from rsdmri.metrics.comparison import Estimate
from rsdmri.priors import load_prior
from rsdmri.workflows.assess import assess, clean_slices, sampled_power

SETS = ("mr-magnitude-v1", "radiomics-v1")


@pytest.fixture(scope="module")
def assessed(finished_run, reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("assessed") / "out"
    command = ["assess", str(finished_run), "--reference", str(reference), "--samples", "12", "--out", str(out)]
    command += ["--features", "mr-magnitude-v1", "--features", "radiomics", "--device", "cpu"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output, json.loads((out / "assessment.json").read_text()), out


def test_every_sampler_has_every_measure_in_every_set_of_features(assessed):
    _, row, _ = assessed
    for sampler in ("teacher", "prior"):
        first, second = row[sampler], row[sampler]["radiomics-v1"]
        for name, figures in zip(SETS, (first, second), strict=True):
            for measure in ("frechet", "kernel", "precision", "recall", "density", "coverage"):
                assert figures[f"{measure} low"] <= figures[measure] <= figures[f"{measure} high"]
            assert figures["features"].startswith(f"features {name} (")
            assert "12 samples; 16 reference images, sha256 " in figures["features"]
            assert figures["frechet"] > figures["floor"] > 0  # six steps of training are not enough
    assert row["floor"] == row["teacher"]["floor"]


def test_the_table_shows_what_the_row_holds(assessed):
    output, row, _ = assessed
    lines = output.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("prior ")))
    assert lines[start].split() == ["prior", "frechet", "kernel", "precision", "recall", "density", "coverage", "floor"]
    rows = (row["prior"], row["prior"]["radiomics-v1"])
    for name, line, figures in zip(SETS, lines[start + 1 : start + 3], rows, strict=True):
        assert line.split()[0] == name
        for measure in ("frechet", "recall"):
            assert str(Estimate(figures[measure], figures[f"{measure} low"], figures[f"{measure} high"])) in line
        assert figures["features"] in output


def test_pictures_and_spectrum_are_written(assessed):
    _, row, out = assessed
    assert {p.name for p in out.iterdir()} == {
        *("assessment.json", "reference.png", "spectrum.png", "samples-teacher.png", "samples-prior.png"),
    }
    curves = row["spectrum"]
    assert set(curves) == {"cycles per pixel", "teacher", "prior", "clean images, with their noise"}
    assert {len(curve) for curve in curves.values()} == {16}
    low = np.array(curves["clean images, with their noise"][:8], float)
    assert np.abs(low).max() < 0.15  # undersampled measurements know the spectrum of the clean images


def test_samples_with_the_clean_images_phase_and_coils_have_their_spectrum(finished_run, reference):
    prior = load_prior(finished_run, "cpu")
    clean = clean_slices(prior, reference)
    images = np.stack([c.image.numpy() for c in clean])
    one, two = sampled_power(images, clean, prior), sampled_power(2 * images, clean, prior)
    np.testing.assert_allclose(two.power, 4 * one.power, rtol=1e-4)
    assert math.isclose(one.power.sum(), float((np.abs(images) ** 2).sum()), rel_tol=0.02)


def test_unknown_features_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match="expected one of mr-magnitude-v1"):
        assess(tmp_path / "none", tmp_path, features=["fid"])
