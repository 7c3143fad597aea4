"""What `pip install lowrank` brings is enough for what it promises."""

import re
import subprocess
import sys
import textwrap
import tomllib

import pytest
from projects import ROOT

from lowrank.steps.common import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

EXAMPLE = """
import sys

for name in {hidden!r}:
    sys.modules[name] = None  # An import raises ImportError.

import torch
from torch import nn

import lowrank

network = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
images = [torch.randn(32, 3, 16, 16) for _ in range(2)]
ranks = {{"select": "budget", "target": {{"macs": 0.5}}, "largest_drop": 1}}
small = lowrank.compress(network, input_shape=(3, 16, 16), ranks=ranks, images=images)
small.export({path!r})
print(sum(layer.macs[1] for layer in small.layers) / sum(layer.macs[0] for layer in small.layers))
"""


def run_without_extras(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.seconds
def test_compress_and_export_need_no_extra(tmp_path):
    path = tmp_path / "small.onnx"
    done = run_without_extras(EXAMPLE.format(hidden=list(EXTRAS), path=str(path)))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 0.5
    assert path.stat().st_size > 1000


def test_importing_lowrank_imports_no_library():
    code = """
        import sys, lowrank
        print(sorted({"numpy", "torch", "onnx", "pydantic", "scipy"} & {*sys.modules}))
    """
    done = run_without_extras(textwrap.dedent(code))
    assert done.stdout.strip() == "[]", done.stderr


def test_each_dependency_has_a_lower_bound():
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *extras["workflow"], *extras["report"]]
    assert [text for text in named if not re.fullmatch(r"[a-z0-9-]+>=[\d.]+", text)] == []


def test_the_pins_meet_the_lower_bounds():
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )

    def numbers(version):
        return tuple(map(int, re.findall(r"\d+", version)))

    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["workflow"], *extras["report"]]:
        name, bound = text.split(">=")
        assert numbers(pins[name]) >= numbers(bound), text
