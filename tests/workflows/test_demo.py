"""The demo: its settings are the recipe's, it writes its report, and a second call goes on."""

import json
from pathlib import Path

import pytest

from rsdmri.config import load_config
from rsdmri.workflows import demo as module

ROOT = Path(__file__).parents[2]


def test_the_recipe_is_what_the_demo_trains() -> None:
    assert load_config(ROOT / "recipes" / "demo.toml") == module.demo_config()


def test_the_demo_ends_in_a_report_and_goes_on_when_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK", module.Pace(training=4.0, images=32, teacher_seconds=0.1, reference=3))
    small = module.demo_config(True)
    few = small.simulate.model_copy(update={"scans": 5, "slices": 2, "coils": 4})
    network = small.network.model_copy(update={"channels": (8, 16)})
    config = small.model_copy(update={"simulate": few, "network": network})
    monkeypatch.setattr(module, "demo_config", lambda quick, seed: config)

    said: list[str] = []
    report = module.demo(tmp_path / "run", quick=True, say=said.append)
    page = report.read_text(encoding="utf-8")
    assert "Research use only, not for diagnosis." in page
    assert page.count("data:image/png;base64,") >= 6
    for method in module.METHODS:
        assert method in page
    assert any("worse" in line for line in said)
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {row["method"] for row in figures["reconstruction"]} == set(module.METHODS)
    assert figures["samples"]["speed_ratio"] > 1
    assert all(0 < share <= 1 for share in figures["coverage"])
    assert "Posterior network: " in page

    weights = (tmp_path / "run" / "prior" / "model.safetensors").read_bytes()
    said.clear()
    module.demo(tmp_path / "run", quick=True, say=said.append)
    assert any("finished before" in line for line in said)
    assert (tmp_path / "run" / "prior" / "model.safetensors").read_bytes() == weights
