"""The outputs that are removed for a stale stage, and the files that DVC must watch."""

from pathlib import Path

import pytest
import yaml

from lowrank.config.dataset import DatasetSettings
from lowrank.config.reading import load_params
from lowrank.core.delivery import replace_own_files
from lowrank.errors import UserError
from lowrank.graph.dvc_stages import (
    outputs_of,
    remove_outputs,
    require_known_data,
    require_watched,
)

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.mark.parametrize(
    ("stage", "outputs"),
    [
        ("finetune@vgg16-tucker", {"build/vgg16/tucker/rounds"}),
        ("code", {"build/code.json"}),
        ("describe_device@local", {"build/devices/local.json"}),
        ("benchmark@resnet20-cpsvd-local", {"build/resnet20/cpsvd/benchmark/local.json"}),
        ("dataset", set()),
        ("inspect@vgg16", set()),
        ("train@vgg16-tucker", set()),
        ("finetune@vgg16-nothing", set()),
    ],
)
def test_outputs_of_a_stage(stage: str, outputs: set[str]):
    assert {str(path) for path in outputs_of(stage, PARAMS)} == outputs


def test_only_the_stages_own_outputs_are_removed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = [Path("build/vgg16/cpsvd/rounds/1/model.safetensors"), Path("build/vgg16/notes.txt")]
    removed = Path("build/vgg16/tucker/rounds/2/model.safetensors")
    for path in (*kept, removed):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_outputs("finetune@vgg16-tucker", PARAMS)
    remove_outputs("export_onnx@vgg16-tucker", PARAMS)  # These outputs do not exist.
    assert all(path.exists() for path in kept)
    assert not removed.parent.exists()
    # DVC requires both folders, even for a method without factors or rounds.
    remove_outputs("decompose@vgg16-int8", PARAMS)
    for folder in ("tucker/rounds", "int8/first/factors"):
        assert list(Path("build/vgg16", folder).iterdir()) == []


def test_files_of_the_user_are_kept_in_the_delivered_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("models/vgg16_tucker")
    new_file = tmp_path / "made/vgg16_tucker.onnx"
    for path in (folder / "__init__.py", new_file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    replace_own_files(folder, [new_file])
    assert (folder / "vgg16_tucker.onnx").exists()
    remove_outputs("summarize@vgg16-tucker", PARAMS)
    assert [path.name for path in folder.iterdir()] == ["__init__.py"]


@pytest.fixture
def dvc_yaml(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(*deps: str) -> None:
        stages = {"code": {"deps": ["src/lowrank", *deps]}}
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    return write


@pytest.mark.parametrize(
    ("files", "deps", "suggested"),
    [
        (["mynet.py"], [], "mynet.py"),
        (["mine/net.py", "mine/deep/blocks.py"], ["mine/deep"], "mine"),
        (["mine/net.py"], ["mine2"], "mine"),
    ],
)
def test_code_that_dvc_does_not_watch_is_refused(dvc_yaml, tmp_path, files, deps, suggested):
    dvc_yaml(*deps)
    paths = [tmp_path / name for name in files]
    with pytest.raises(UserError, match=rf"Add a line `- {suggested}` to `deps` of the stage"):
        require_watched(paths, "code", "`checkpoint.mynet.factory`")
    dvc_yaml(suggested)
    require_watched(paths, "code", "`checkpoint.mynet.factory`")


def test_without_dvc_no_files_need_to_be_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_watched([tmp_path / "mynet.py"], "code", "`checkpoint.mynet.factory`")


def test_a_network_with_another_dataset_than_that_of_dvc_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(yaml.safe_dump({"vars": [{"dataset_name": "mine"}]}))
    expected = (
        r"`dataset_name` is 'mine', but 'vgg16' in `matrix.models` of params\.yaml has the dataset "
        r"'cifar10'.* Set `dataset_name: cifar10`"
    )
    with pytest.raises(UserError, match=expected):
        require_known_data("splits@vgg16", PARAMS)
    Path("dvc.yaml").write_text(yaml.safe_dump({"vars": [{"dataset_name": "cifar10"}]}))
    require_known_data("splits@vgg16", PARAMS)


def test_a_folder_of_calibration_images_that_dvc_does_not_watch_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = {"vars": [{"dataset_name": "cifar10"}], "stages": {"splits": {"do": {}}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(document))
    vgg16 = PARAMS.checkpoint["vgg16"].model_copy(update={"calibration": "photos"})
    params = PARAMS.model_copy(update={"checkpoint": PARAMS.checkpoint | {"vgg16": vgg16}})
    expected = r"`checkpoint\.vgg16\.calibration` uses photos.* `- photos` to `deps` .* `splits`"
    with pytest.raises(UserError, match=expected):
        require_known_data("splits@vgg16", params)


def test_the_code_of_a_dataset_that_dvc_does_not_watch_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mydata.py").write_text("def read():\n    return []\n")
    document = {"vars": [{"dataset_name": "cifar10"}], "stages": {"dataset": {"deps": []}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(document))
    dataset = DatasetSettings(kind="function", function="mydata:read")
    params = PARAMS.model_copy(update={"dataset": {"cifar10": dataset}})
    expected = r"`dataset\.cifar10` uses mydata\.py.* `- mydata\.py` to `deps` .* `dataset`"
    with pytest.raises(UserError, match=expected):
        require_known_data("dataset", params)
    document["stages"]["dataset"]["deps"] = ["mydata.py"]
    Path("dvc.yaml").write_text(yaml.safe_dump(document))
    require_known_data("dataset", params)
