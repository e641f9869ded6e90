"""Reconstructions with their uncertainty: what is coloured as unexplained, and that an alarm is red."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from rsdmri.errors import InputError
from rsdmri.report.png import png_bytes
from rsdmri.report.reconstruction import difference_figure, reconstruction_figure
from rsdmri.runtime import numpy_generator

RED = np.array([0xB0, 0x00, 0x20]) / 255


def slice_of(shape=(24, 20)):
    rng = numpy_generator("reconstruction figure")
    target = 1 + rng.random(shape)
    image = target + 0.02
    image[4:8, 4:9] += 0.5  # 20 pixels of 480
    std = np.full(shape, 0.05)
    band = np.stack([image - 1.645 * std, image, image + 1.645 * std])
    return target, image, std, band


def titles(figure):
    return [text.get_text() for text in figure.texts]


def pixels(figure):
    return np.asarray(imread(io.BytesIO(png_bytes(figure))))[..., :3]


def test_errors_beyond_the_band_are_counted():
    target, image, std, band = slice_of()
    figure = reconstruction_figure(target, {"rsd": image, "exact": target}, std, band=band)
    assert "beyond 2 std: 4.2 %" in titles(figure)
    assert "beyond 2 std: 0.0 %" in titles(figure)
    assert "5 × half width of band" in titles(figure)
    wide = np.stack([band[0] - 1, band[1], band[2] + 1])
    assert "beyond 2 std: 4.2 %" not in titles(reconstruction_figure(target, {"rsd": image}, std, band=wide))


def test_a_prospective_scan_has_the_maps_beside_it():
    _, image, std, band = slice_of()
    figure = reconstruction_figure(None, {"rsd": image}, std, band=band)
    assert [t for t in titles(figure) if t.strip()][:3] == [
        "rsd",
        "5 × standard deviation",
        "5 × half width of band",
    ]


def test_what_samples_do_not_determine_is_a_map_from_0_to_1():
    target, image, std, _ = slice_of()
    share = np.zeros(image.shape)
    share[:, :10] = 0.3
    alone = reconstruction_figure(None, {"tv": image}, undetermined=share)
    assert [t for t in titles(alone) if t.strip()][:2] == ["tv", "undetermined, 0 to 1"]
    assert len(alone.axes) == 2  # no scale of errors
    assert alone.axes[1].images[0].get_clim() == (0, 1)
    beside = reconstruction_figure(None, {"rsd": image}, std, undetermined=share)
    assert [t for t in titles(beside) if t.strip()][:3] == ["rsd", "undetermined, 0 to 1", "5 × standard deviation"]
    below = reconstruction_figure(target, {"rsd": image}, std, undetermined=share)
    assert [t for t in titles(below) if "undetermined" in t or "std" in t or "standard" in t] == [
        "5 × standard deviation",
        "undetermined, 0 to 1",
    ]


@pytest.mark.parametrize("maps", [True, False])
def test_an_alarm_is_a_red_banner(maps):
    target, image, std, band = slice_of()
    options = {"std": std, "band": band} if maps else {}
    quiet, loud = (
        pixels(reconstruction_figure(target, {"rsd": image}, **options, alarm=alarm))
        for alarm in (None, "the image does not explain measured samples that it was not shown")
    )
    red = [(np.abs(picture - RED).max(-1) < 0.02).mean() for picture in (quiet, loud)]
    assert red[0] < 0.001
    assert red[1] > 0.02
    assert loud.shape[0] > quiet.shape[0]


def test_differences_of_two_methods():
    target, image, std, _ = slice_of()
    figure = difference_figure(image, target, std, names=("rsd", "l1-wavelet"), heading="two methods")
    assert {"rsd", "l1-wavelet", "beyond 2 std: 4.2 %"} <= set(titles(figure))
    assert (pixels(figure)[..., 2] < 0.2).any()
    with pytest.raises(InputError, match="one shape"):
        difference_figure(image, target[:-1], std, names=("a", "b"))


def test_a_band_needs_three_maps_and_a_spread():
    target, image, std, band = slice_of()
    with pytest.raises(InputError, match="band: expected"):
        reconstruction_figure(target, {"rsd": image}, std, band=band[:2])
    with pytest.raises(InputError, match="band: expected"):
        reconstruction_figure(target, {"rsd": image}, band=band)
