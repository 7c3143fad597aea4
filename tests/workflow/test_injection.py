"""Only a `factory` in params.yaml runs as code. Other texts contain commands that make a file."""

import shutil

import pytest
from projects import BUILD, Project

TEXTS = ["x' & touch pwned & '", "$(touch pwned)", "`touch pwned`", "; touch pwned; #", "a b"]


@pytest.mark.parametrize(
    "text", [TEXTS[0], *(pytest.param(text, marks=pytest.mark.slow) for text in TEXTS[1:])]
)
def test_a_path_of_weights_is_never_run(project: Project, text):
    name = f"{text}.safetensors"
    shutil.copy(project.folder / "data/checkpoints/resnet20.safetensors", project.folder / name)
    recipe = {"start": name, "epochs": 1, "learning_rate": 0.01, "threads": 1, "batch_size": 64}
    project.change_params(checkpoint__resnet20__weights=name, pretrain={"resnet20": recipe})
    project.snakemake(f"{BUILD}/original/model.safetensors")
    if text == TEXTS[0]:
        project.snakemake("build/pretrain/resnet20.safetensors")
        assert (project.folder / "build/pretrain/resnet20.safetensors").exists()
    assert not (project.folder / "pwned").exists()
    assert (project.folder / BUILD / "original/model.safetensors").exists()


NAMES = ["x;touch pwned;#", "x' & touch pwned & '", "$(touch pwned)"]
SECTIONS = ["models", "methods", "devices"]


@pytest.mark.parametrize(
    ("section", "text"),
    [
        # Each section and each text once in `make test`; the other combinations in `make slow`.
        pytest.param(section, text, marks=() if at == place else pytest.mark.slow)
        for at, section in enumerate(SECTIONS)
        for place, text in enumerate(NAMES)
    ],
)
def test_a_name_in_the_matrix_is_never_run(project: Project, section, text):
    project.change_params(**{f"matrix__{section}": [text]})
    for command in (["snakemake", "--cores", "1"], ["dvc", "repro", "--keep-going"]):
        done = project.run(*command, check=False)
        assert done.returncode != 0
        assert text in done.stdout
        assert not (project.folder / "pwned").exists(), command


@pytest.mark.parametrize("section", ["checkpoint", pytest.param("methods", marks=pytest.mark.slow)])
def test_a_key_is_never_run(project: Project, section):
    document = {"checkpoint": {"dataset": "cifar10", "weights": "w.pth"}, "methods": {}}[section]
    project.change_params(**{f"{section}__x;touch pwned;#": document})
    for command in (["snakemake", "--cores", "1"], ["dvc", "repro", "--keep-going"]):
        assert project.run(*command, check=False).returncode != 0
        assert not (project.folder / "pwned").exists(), command
