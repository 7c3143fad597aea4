"""A task of an installed package: tests/plugin/src/lowrank_example/ordinal.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from plugin_package import PACKAGE, install, run_with
from safetensors.torch import save_file
from toy import toy

from lowrank.files import read_json
from lowrank.testing import check_task

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parents[2]
NETWORK = json.dumps({"factory": "toy:toy", "input_shape": [3, 32, 32]})
RECIPE = {
    "steps": 60,
    "batch_size": 40,
    "learning_rate": 0.02,
    "device": "cpu",
    "precision": "float32",
    "threads": 1,
    "curve_every_steps": 20,
    "augment": {"pad_pixels": 0, "flip": False},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def ordinal(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE / "src")
    from lowrank_example.ordinal import Ordinal

    return Ordinal()


def test_the_task_keeps_its_contract(ordinal):
    check_task(ordinal)


def test_its_metric_is_an_error_in_classes(ordinal):
    outputs = 100 * torch.eye(4)[[0, 1, 2, 3]]
    batches = [(torch.arange(4), torch.tensor([0, 3, 2, 2]))]
    measured = ordinal.measure(lambda rows: outputs[rows], batches)
    assert measured.values == {"mae": 0.75}
    assert measured.scores.tolist() == [0, 2, 0, 1]
    assert ordinal.useless_value(torch.tensor([0, 1, 9])) == 3.0


def test_params_yaml_accepts_the_task_only_with_its_package(installed, tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["checkpoint"]["vgg16"]["task"] = "ordinal"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    code = "import lowrank.config.reading as r; print(r.load_params().checkpoint['vgg16'].task)"
    command = (sys.executable, "-c", code)
    assert run_with(installed, *command, folder=tmp_path).strip() == "ordinal"
    output = run_with(tmp_path, *command, folder=tmp_path, check=False)
    assert "`checkpoint.vgg16.task` is 'ordinal', expected one of 'agreement' or" in output


def test_the_steps_train_and_measure_by_the_task(installed, tmp_path, tiny_folder):
    """Loss, metric, words and direction are those of the task, up to the file in int8."""
    shutil.copy(ROOT / "tests/toy.py", tmp_path)
    save_file(toy(seed=1).state_dict(), tmp_path / "weights.safetensors")

    def step(name, **options):
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        program = (sys.executable, "-m", "lowrank.cli", name, "--task=ordinal", *words)
        return run_with(installed, *program, folder=tmp_path)

    network = {"network": NETWORK, "dataset": tiny_folder}
    output = step(
        "checkpoint",
        **network,
        weights="weights.safetensors",
        threads=1,
        state="original.safetensors",
        metrics="original.json",
        replaceable="replaceable.json",
    )
    before = read_json(tmp_path / "original.json")["accuracy"]
    assert f"test {before['test']:.3f} classes" in output
    output = step(
        "finetune",
        **network,
        previous="original.safetensors",
        factors="",
        round=1,
        settings=json.dumps(RECIPE),
        largest_drop=0.5,
        resume="resume.pt",
        state="trained.safetensors",
        metrics="trained.json",
        curve="curve.json",
        timing="timing.json",
    )
    assert "expected before any fine-tuning: error" in output
    after = read_json(tmp_path / "trained.json")["accuracy"]
    assert after["decomposed"] == before
    assert after["finetuned"]["test"] < before["test"] - 0.2
    assert f"fine-tuned: validation {after['finetuned']['validation']:.3f} classes" in output
    output = step(
        "export_onnx",
        **network,
        state="trained.safetensors",
        threads=1,
        images=20,
        model="trained.onnx",
        report="export.json",
    )
    report = read_json(tmp_path / "export.json")
    assert report["check"]["same_mae_percent"] == 100.0
    assert report["accuracy"] == {"mae": pytest.approx(after["finetuned"]["test"], abs=0.011)}
    step("export_onnx", **network, state="original.safetensors", threads=1, images=20,
         model="original.onnx", report="first.json")  # fmt: skip
    # A network that got better has a negative drop.
    output = step(
        "judge_trial",
        network=NETWORK,
        original="original.onnx",
        trial="trained.onnx",
        state="original.safetensors",
        dataset=tiny_folder,
        threads=1,
        output="found.json",
    )
    found = read_json(tmp_path / "found.json")
    lost = after["finetuned"]["validation"] - before["validation"]
    assert found["drop"] == pytest.approx(lost, abs=0.03)
    assert found["drop"] < 0 < found["standard_error"]
    assert "classes of validation error" in output


def test_label_smoothing_is_refused(ordinal, tiny_data):
    from lowrank.config.training import TrainingSettings
    from lowrank.errors import UserError
    from lowrank.training.loop import train
    from lowrank.zoo import NetworkSpec

    settings = TrainingSettings.model_validate(RECIPE | {"label_smoothing": 0.1})
    with pytest.raises(UserError, match=r"`label_smoothing` is 0\.1, but .* task 'ordinal'"):
        train(ordinal, toy(), NetworkSpec("toy", (3, 32, 32), 10), tiny_data, settings)
