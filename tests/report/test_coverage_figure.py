"""The figure of mask coverage: bars are the scans, what is marked is what is so, a panel for each shape of masks."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from rsdmri.data.coverage import cover
from rsdmri.report.coverage import coverage_figure
from rsdmri.report.style import COLOURS
from rsdmri.runtime import numpy_generator


def lines(width: int, scans: int):
    rng = numpy_generator("coverage figure", width)
    absent = torch.arange(width) >= width - 3
    refs = []
    for scan in range(scans):
        mask = torch.as_tensor(rng.random((1, width)) < 0.2) & ~absent
        mask[..., width // 2 - 2 : width // 2 + 2] = True
        refs += [(scan, mask, absent)] * 2
    return cover(refs, acs=4, drop=2, given=True, judged=True)


def points():
    rng = numpy_generator("coverage figure of points")
    refs = [(scan, torch.as_tensor(rng.random((20, 24)) < 0.3), torch.arange(24) < 1) for scan in range(4)]
    refs = [(scan, mask & ~absent, absent) for scan, mask, absent in refs]
    return cover(refs, acs=(slice(8, 12), slice(10, 14)), drop=20, given=True, judged=True)


def test_bars_are_scans_and_curves_are_slices():
    panel = lines(32, 5)
    figure = coverage_figure([panel])
    axes, right = figure.axes
    assert [bar.get_height() for bar in axes.containers[0]] == panel.scans[0].tolist()
    slices, held = right.get_lines()
    assert slices.get_ydata().tolist() == panel.slices[0].tolist()
    assert held.get_ydata().tolist() == panel.held_out[0].tolist()
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"absent", "ACS, always shown", "never acquired", "scans", "slices", "held out, slices a pass"} == labels


def test_points_are_an_image_with_marks():
    panel = points()
    (axes,) = coverage_figure([panel]).axes
    shown = axes.images[0].get_array()
    assert np.allclose(shown[~panel.absent & ~panel.never][:, 0], panel.scans[~panel.absent & ~panel.never] / 4)
    assert np.allclose(shown[panel.never.numpy()], to_rgb(COLOURS[1]))
    assert bool(panel.never.any())


def test_widths_have_panels_that_do_not_overlap():
    figure = coverage_figure([lines(32, 5), lines(40, 3), points()])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == 3
    boxes = [axes.get_tightbbox(renderer) for axes in panels]
    for above, below in itertools.pairwise(boxes):
        assert above.y0 >= below.y1
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_no_panels_are_refused():
    with pytest.raises(ValueError, match="one or more"):
        coverage_figure([])
