"""Documents that promise something are held to it."""

import re
from pathlib import Path

import pytest

from rsdmri import __version__
from rsdmri.config import Config, load_config
from rsdmri.data.manifest import COLUMNS, read_manifest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "data_manifests").is_dir(), reason="runs in a source checkout only")


def test_the_described_simulated_set_is_the_default():
    path = ROOT / "data_manifests" / "simulated-default.toml"
    assert load_config(path, []).simulate == Config().simulate
    command = re.search(r"rsdmri simulate OUT (.*)", path.read_text(encoding="utf-8"))[1]
    options = dict(zip(command.split()[::2], command.split()[1::2], strict=True))
    assert options == {f"--{name}": str(value) for name, value in Config().simulate.model_dump().items()}


def test_the_manifest_page_names_every_column_and_its_code_runs(tmp_path, monkeypatch):
    text = (ROOT / "data_manifests" / "README.md").read_text(encoding="utf-8")
    assert "\t".join(COLUMNS) in text
    assert all(f"`{column}`" in text for column in COLUMNS)
    for i in range(11):
        (tmp_path / f"scan{i:02d}.h5").write_bytes(bytes([i]))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path.parent)
    exec(code.replace('Path("scans")', f"Path({str(tmp_path)!r})"), {})
    entries = read_manifest(tmp_path)
    assert [e.split for e in entries] == ["train"] * 9 + ["val", "train"]
    assert len({e.sha256 for e in entries}) == 11


def test_versions_agree():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
