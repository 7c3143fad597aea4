"""DVC's page of plots, which works offline."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank.cli import main

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], check=True)
    Path("curve.csv").write_text("step,percent\n1,40\n2,60\n")
    Path("dvc.yaml").write_text("plots:\n  - curve.csv: {x: step, y: percent}\n")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    return tmp_path


@pytest.mark.seconds
def test_the_page_contains_its_scripts_and_loads_nothing(project):
    done = CliRunner().invoke(main, ["plots", "--out", "page"])
    assert done.exit_code == 0, done.output
    page = (project / "page/index.html").read_text()
    assert not re.search(r"<(script|link)[^>]*(src|href)\s*=", page, re.IGNORECASE)
    assert "cdn." not in page
    # First the scripts of Vega, Vega-Lite and vega-embed, then a plot that uses them.
    assert re.search(r"window\.vegaEmbed\s*=", page)
    assert page.index("window.vegaEmbed") < page.index("vegaEmbed('#")
    assert len(page) > 500_000
    assert '"percent": "60"' in page


def test_the_error_without_the_scripts_names_the_package(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    done = CliRunner().invoke(main, ["plots"])
    assert done.exit_code == 1
    assert "pip install vl-convert-python" in done.output
