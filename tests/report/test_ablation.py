"""Table and figure of an ablation: every number is that of the rows."""

import statistics

import numpy as np
import pytest

from rsdmri import RESEARCH_ONLY
from rsdmri.report.ablation import ablation_figure, ablation_table, mean_and_spread, ordered_values, short_number
from rsdmri.report.png import png_bytes


def figures(frechet: float) -> dict:
    found = {"images/s": 10 * frechet, "floor": 11.25, "features": "features F; 12 samples; 16 reference images"}
    for name, value in (("frechet", frechet), ("kernel", frechet / 2)):
        found |= {name: value, f"{name} low": value - 1, f"{name} high": value + 1}
    return found


def row(value, seed: int, frechet: float) -> dict:
    return {
        **{"value": value, "seed": seed, "steps": 100 + seed, "seconds": 3.0},
        **{"validation": frechet / 1000, "lowest validation": frechet / 2000, "lowest at step": 50 + seed},
        **{"prior": figures(frechet), "teacher": figures(400.0), "ratio": frechet / 400},
    }


ROWS = [row(1.2, 0, 300.0), row(0.8, 0, 500.0), row(1.2, 1, 320.0), row(0.8, 1, 520.0), row(0.8, 2, 540.0)]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of the Markdown tables of ``text``, heads first."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[line.strip("| ").split(" | ") for line in block if not line.startswith("|---")] for block in blocks]


def test_means_and_spreads_are_those_of_the_rows():
    text = ablation_table("alpha", ROWS, ["one teacher"])
    head, *lines = tables(text)[0]
    assert [line[0] for line in lines] == ["0.8", "1.2"]
    assert [line[1] for line in lines] == ["3", "2"]
    found = {
        "steps": lambda r: r["steps"],
        "validation": lambda r: r["validation"],
        "lowest validation": lambda r: r["lowest validation"],
        "Frechet distance": lambda r: r["prior"]["frechet"],
        "ratio": lambda r: r["ratio"],
        "kernel distance": lambda r: r["prior"]["kernel"],
        "images/s": lambda r: r["prior"]["images/s"],
    }
    for line in lines:
        for name, number in found.items():
            numbers = [number(r) for r in ROWS if str(r["value"]) == line[0]]
            mean, spread = map(float, line[head.index(name)].split(" ± "))
            tolerance = 0.5 if statistics.fmean(numbers) >= 1000 else 5e-4 * statistics.fmean(numbers)
            assert mean == pytest.approx(statistics.fmean(numbers), abs=tolerance)
            assert spread == pytest.approx(np.std(numbers, ddof=1), rel=0.05)
        assert line[head.index("teacher's")] == "400"
    for words in (RESEARCH_ONLY, "- one teacher", "12 samples; 16 reference images", "floor 11.2"):
        assert words in text


def test_every_run_has_a_line_with_its_intervals():
    _, (head, *lines) = tables(ablation_table("alpha", ROWS))
    assert [(line[0], line[1]) for line in lines] == [
        ("0.8", "0"),
        ("0.8", "1"),
        ("0.8", "2"),
        ("1.2", "0"),
        ("1.2", "1"),
    ]
    assert dict(zip(head, lines[3], strict=True)) == {
        **{"alpha": "1.2", "seed": "0", "steps": "100", "validation": "0.3", "lowest, at step": "0.15, 50"},
        **{"Frechet distance": "300 [299, 301]", "teacher's": "400 [399, 401]", "ratio": "0.75"},
        "kernel distance": "150 [149, 151]",
    }


def test_a_table_without_distances_has_no_columns_of_them():
    plain = [{k: v for k, v in r.items() if k not in ("prior", "teacher", "ratio")} for r in ROWS]
    text = ablation_table("alpha", [*plain, {"value": 2.0, "seed": 0, "diverged": "prior: loss not finite at step 3"}])
    assert "Frechet" not in text
    assert "| 2.0 | 0, 1 diverged | – | – | – |" in text


def test_numbers_and_order():
    assert mean_and_spread([0.5]) == "0.5"
    assert mean_and_spread([]) == "–"
    assert mean_and_spread([1000.0, 3000.0]) == "2000 ± 1414"
    assert short_number(1234.5) == "1234"
    assert ordered_values([{"value": v} for v in (1.2, 0.8, 1.2)]) == [0.8, 1.2]
    assert ordered_values([{"value": v} for v in ("sid", "dmd", "sid")]) == ["sid", "dmd"]


@pytest.mark.parametrize("names", [{0.8: 0.8, 1.2: 1.2}, {0.8: "sid", 1.2: "dmd"}])
def test_the_figure_shows_seeds_their_mean_and_the_teacher(names):
    rows = [{**r, "value": names[r["value"]]} for r in ROWS] + [{"value": names[0.8], "seed": 9, "diverged": "early"}]
    figure = ablation_figure("alpha", rows)
    distance, validation = figure.axes
    lines = {line.get_label(): line for line in distance.lines}
    assert sorted(lines["a seed"].get_ydata()) == [300, 320, 500, 520, 540]
    order = ordered_values(rows)
    expected = [
        statistics.fmean(r["prior"]["frechet"] for r in rows if r["value"] == v and "prior" in r) for v in order
    ]
    np.testing.assert_allclose(lines["mean"].get_ydata(), expected)
    np.testing.assert_allclose(lines["teacher"].get_ydata(), [400, 400])
    np.testing.assert_allclose(lines["mean"].get_xdata(), order if 0.8 in order else [0, 1])
    assert [tick.get_text() for tick in validation.get_xticklabels()] == list(map(str, order))
    assert sorted(validation.lines[0].get_ydata()) == [0.3, 0.32, 0.5, 0.52, 0.54]
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert len(ablation_figure("alpha", rows[-1:]).axes) == 1
