"""The figure of power ratios."""

import numpy as np
import pytest

from rsdmri.errors import InputError
from rsdmri.report.png import png_bytes
from rsdmri.report.spectrum import spectrum_figure


def test_curves_are_drawn_with_names_and_gaps():
    frequency = np.linspace(0.1, 0.4, 4)
    figure = spectrum_figure(frequency, {"teacher": [0, -0.1, np.nan, -0.3], "prior": [0, 0, 0, 0.1]}, heading="Power")
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["teacher", "prior"]
    drawn = next(line for line in axes.lines if line.get_label() == "teacher")
    np.testing.assert_array_equal(drawn.get_xdata(), frequency)
    assert np.isnan(drawn.get_ydata()).tolist() == [False, False, True, False]
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_curves_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"prior has shape \(3,\)"):
        spectrum_figure([0.1, 0.2], {"prior": [0, 0, 0]})
