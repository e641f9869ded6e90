"""Figures: what they show, that labels keep apart, and that every PNG carries the research-only note."""

import functools
import io
import itertools

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from PIL import Image

from rsdmri import RESEARCH_ONLY
from rsdmri.errors import InputError
from rsdmri.report.figures import (
    curves_figure,
    image_grid,
    kspace_figure,
    loss_figure,
    reconstruction_figure,
    states_figure,
)
from rsdmri.report.png import png_bytes, save_image_png, save_png
from rsdmri.runtime import numpy_generator


def images(n, shape=(40, 32)):
    g = numpy_generator("figures", n)
    return (g.standard_normal((n, *shape)) + 1j * g.standard_normal((n, *shape))).astype(np.complex64)


def rows():
    teacher = [{"stage": "teacher", "step": i, "loss": 2.0 / (i + 1), "rate": 1e-4} for i in range(50)]
    prior = [
        {"stage": "prior", "step": i, "loss": -0.1 * i, "fake_loss": float("nan") if i == 7 else 1} for i in range(50)
    ]
    return [*teacher, *prior, {"stage": "prior", "step": 50, "loss": None}]


@functools.cache
def all_figures():
    target, *others = np.abs(images(4))
    methods = dict(zip(("zero-filled", "l1-wavelet", "a method with quite a long name"), others, strict=True))
    mask = np.arange(32) % 3 == 0
    return {
        "grid": image_grid(images(7), titles=[f"image number {i}" for i in range(7)], heading="Samples"),
        "retrospective": reconstruction_figure(target, methods, others[0], heading="A long heading " * 20),
        "prospective": reconstruction_figure(None, methods, others[0]),
        "captions": reconstruction_figure(None, methods, captions={"zero-filled": "0 evaluations"}),
        "kspace": kspace_figure(images(3), mask, np.arange(32) < 2, heading="k-space"),
        "loss": loss_figure(rows(), heading="Training"),
        "states": states_figure(
            images(36).reshape(3, 12, 40, 32), np.geomspace(80, 0.002, 12), images(3), heading="Heun, 12 steps"
        ),
        "curves": curves_figure(rows(), heading="Training"),
    }


@pytest.mark.parametrize(
    "name", ["grid", "retrospective", "prospective", "captions", "kspace", "loss", "states", "curves"]
)
def test_no_text_overlaps_another_or_leaves_the_figure(name):
    figure = all_figures()[name]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.texts, *(t for a in figure.axes for t in (a._left_title, a.xaxis.label, a.yaxis.label))]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text().strip() and t.get_visible()]
    assert boxes
    width, height = canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= -1, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, two)


def decoded(data):
    return np.asarray(imread(io.BytesIO(data)))[..., :3]


def test_every_png_carries_the_note_in_a_strip_of_its_own():
    figure = image_grid(images(4))
    data = png_bytes(figure)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["Description"] == RESEARCH_ONLY
        assert image.info["Software"].startswith("rsdmri ")
    pixels = decoded(data)
    strip = pixels.shape[0] - round(150 * figure.get_figheight())
    assert strip > 20
    assert (pixels[-strip:] < 0.7).any()  # there is ink in it
    assert png_bytes(figure) == data  # and saving again adds nothing


def test_saving_is_atomic_and_a_bad_folder_is_an_input_error(tmp_path):
    save_png(image_grid(images(1)), tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(InputError, match="cannot be written"):
        save_png(image_grid(images(1)), tmp_path / "none" / "a.png")


def test_slices_are_shown_pixel_for_pixel_in_one_window(tmp_path):
    volume = np.zeros((3, 8, 16), dtype=np.complex64)
    volume[0, 2, 3], volume[1, 5, 6] = 2j, 1.0
    save_image_png(volume, tmp_path / "v.png", window=2, columns=2)
    pixels = decoded((tmp_path / "v.png").read_bytes())
    factor = 512 // 32
    sheet = pixels[: 2 * 8 * factor, : 32 * factor, 0].reshape(16, factor, 32, factor)
    assert np.ptp(sheet, axis=(1, 3)).max() == 0
    sheet = sheet[:, 0, :, 0]
    assert sheet[2, 3] == 1
    assert sheet[5, 16 + 6] == pytest.approx(0.5, abs=0.01)
    assert (sheet > 0).sum() == 2
    assert pixels.shape[0] > 16 * factor  # the note below


def test_one_window_for_the_whole_grid_and_errors_in_a_fifth_of_it():
    target = np.ones((20, 20))
    figure = reconstruction_figure(target, {"rsd": 1.1 * target}, 0.1 * target)
    limits = [image.get_clim() for axes in figure.axes for image in axes.get_images()]
    assert limits[:2] == [(0, 1), (0, 1)]
    assert limits[2:4] == [(0, 0.2), (0, 0.2)]
    shown = [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]
    np.testing.assert_allclose(shown[2], 0.1)
    captions = [text.get_text() for text in figure.texts]
    assert any(caption.startswith("NMSE 0.01") for caption in captions)


@pytest.mark.parametrize(("steps", "shown"), [(1, [0]), (3, [0, 1, 2]), (13, [0, 2, 4, 6, 8, 10, 12])])
def test_states_go_from_the_first_level_to_the_last_and_end_with_the_samples(steps, shown):
    denoised, samples, levels = images(2 * steps).reshape(2, steps, 40, 32), images(2), np.geomspace(80, 0.5, steps)
    figure = states_figure(denoised, levels, samples)
    assert [t.get_text() for t in figure.texts] == [*(f"σ = {levels[i]:.2g}" for i in shown), "sample"]
    cells = {tuple(np.round(axes.get_position().p0, 6)): axes.get_images()[0] for axes in figure.axes}
    assert len({cell.get_clim() for cell in cells.values()}) == 1
    for row, bottom in enumerate(sorted({y for _, y in cells}, reverse=True)):
        pictures = [cells[place] for place in sorted(cells) if place[1] == bottom]
        expected = [*np.abs(denoised[row, shown]), np.abs(samples[row])]
        for picture, image in zip(pictures, expected, strict=True):
            np.testing.assert_allclose(np.asarray(picture.get_array()), image, rtol=1e-6)


def test_a_prospective_scan_has_no_error_row():
    texts = [t.get_text() for t in reconstruction_figure(None, {"rsd": images(1)[0]}).texts]
    assert texts == ["rsd"]


def test_what_was_not_acquired_is_never_read():
    k, mask = images(2), np.arange(32) % 4 == 0
    poisoned = np.where(mask, k, np.nan)
    assert png_bytes(kspace_figure(poisoned, mask)) == png_bytes(kspace_figure(np.where(mask, k, 0), mask))
    two = np.broadcast_to(mask, (40, 32))
    assert png_bytes(kspace_figure(poisoned, two)) == png_bytes(kspace_figure(poisoned, mask[None]))


def test_nothing_global_is_touched():
    before = dict(matplotlib.rcParams)
    for figure in all_figures.__wrapped__().values():
        png_bytes(figure)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


def test_losses_are_drawn_by_stage_with_gaps_and_a_smooth_line():
    figure = loss_figure(rows())
    teacher, prior = figure.axes
    assert (teacher.get_yscale(), prior.get_yscale()) == ("log", "linear")
    assert len(teacher.lines) == 2  # loss and its mean, not the rate
    assert [t.get_text() for t in prior.get_legend().get_texts()] == ["loss", "fake loss"]
    fake = prior.lines[2].get_ydata()
    assert np.isnan(fake[7])
    mean = prior.lines[3].get_ydata()
    np.testing.assert_allclose(mean[:7], 1)


def test_curves_have_a_panel_for_each_measure_that_a_stage_has():
    sparse = [
        row | {"validation": 2 + abs(row["step"] - 20) / 10} if row["step"] % 10 == 0 else row for row in rows()[:50]
    ]
    figure = curves_figure([*sparse, *rows()[50:]])
    found = [(axes.get_ylabel(), axes.get_title(loc="left"), axes.get_yscale()) for axes in figure.axes]
    assert found == [
        ("loss", "teacher", "log"),
        ("validation", "", "log"),
        ("rate", "", "linear"),
        ("loss", "prior", "linear"),
    ]
    validation, _, lowest = figure.axes[1].lines
    assert list(validation.get_xdata()) == [0, 10, 20, 30, 40]  # one line, whatever lies between
    assert list(validation.get_ydata()) == [4.0, 3.0, 2.0, 3.0, 4.0]
    assert (list(lowest.get_xdata()), list(lowest.get_ydata())) == ([20.0], [2.0])
    assert validation.get_marker() == "."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_grid(np.full((2, 8, 8), np.nan)), "NaN"),
        (lambda: image_grid(np.zeros(5)), "expected"),
        (lambda: image_grid(images(2), titles=["one"]), "1 for 2 images"),
        (lambda: reconstruction_figure(np.ones((8, 8)), {"rsd": np.ones((8, 9))}), "8x8, 8x9"),
        (lambda: kspace_figure(images(1), np.ones(5)), "does not fit"),
        (lambda: kspace_figure(np.ones(5), np.ones(5)), "expected"),
        (lambda: loss_figure([]), "no training metrics"),
        (lambda: states_figure(images(6).reshape(2, 3, 40, 32), [3, 2], images(2)), "for 2 levels and samples"),
        (lambda: states_figure(images(6).reshape(2, 3, 40, 32), [3, 2, 1], images(3)), r"samples \(3, 40, 32\)"),
        (lambda: curves_figure([]), "no training metrics"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
