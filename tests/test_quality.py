"""Style and types, by the tools and settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [("check", "."), ("format", "--check", "rsdmri", "tests")], ids=["lint", "format"]
)
def test_ruff(arguments):
    pytest.importorskip("ruff", reason="ruff is not installed; it comes with the extra test")
    result = run("ruff", *arguments, "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy():
    pytest.importorskip("mypy", reason="mypy is not installed; it comes with the extra test")
    result = run("mypy", "--no-error-summary")
    assert result.returncode == 0, result.stdout + result.stderr
