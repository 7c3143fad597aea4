"""Errors of the user: one clear message, an exit status other than 0, no incomplete files."""

import pytest
from projects import BUILD, RESULT, Project


def refusal(project: Project, target: str = RESULT) -> str:
    done = project.run("snakemake", "--cores", "1", target, check=False)
    assert done.returncode != 0
    assert not (project.folder / RESULT).exists()
    return done.stdout


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        ("results/resnet21_tucker.json", "resnet20_tucker"),
        ("results/resnet20_tuker.json", "tucker"),
    ],
)
def test_the_error_for_an_unknown_network_or_method_suggests_the_nearest(
    project: Project, target, nearest
):
    message = refusal(project, target)
    assert target in message
    assert "Did you mean" in message
    assert nearest in message


def test_the_error_for_a_misspelt_parameter_names_it(project: Project):
    project.change_params(finetune__learnin_rate=0.1)
    message = refusal(project)
    assert "finetune.learnin_rate" in message
    assert "'learning_rate'" in message


def test_the_error_for_a_repeated_key_names_both_lines(project: Project):
    path = project.folder / "params.yaml"
    lines = path.read_text().splitlines()
    first = lines.index("finetune:") + 1
    path.write_text("\n".join([*lines, "finetune: {steps: 3}", ""]))
    message = refusal(project)
    assert (
        f"line {len(lines) + 1}, column 1: `finetune` was already given in line {first}" in message
    )
    assert "Traceback" not in message


def test_the_error_for_a_parameter_out_of_range_names_its_bounds(project: Project):
    project.change_params(methods__tucker__ranks__weaken=1.5)
    message = refusal(project)
    assert "methods.tucker.ranks.weaken" in message
    assert "at least 0" in message
    assert "at most 1" in message


def test_the_error_for_a_missing_checkpoint_names_it(project: Project):
    (project.folder / "data/checkpoints/resnet20.safetensors").unlink()
    message = refusal(project)
    assert "data/checkpoints/resnet20.safetensors: no such checkpoint" in message
    assert "build/pretrain/resnet20.safetensors" in message


def test_a_truncated_checkpoint_is_an_error_that_leaves_no_files(project: Project):
    path = project.folder / "data/checkpoints/resnet20.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    message = refusal(project)
    assert "data/checkpoints/resnet20.safetensors: not a complete safetensors file" in message
    assert "Traceback" not in message
    assert not list((project.folder / BUILD).glob("**/*.safetensors"))
    assert not list((project.folder / BUILD).glob("**/.*partial*"))


@pytest.mark.slow
def test_diverging_training_is_an_error(project: Project):
    project.change_params(
        finetune__learning_rate=90.0, finetune__warmup_fraction=0, finetune__precision="float32",
        finetune__momentum=0.99, finetune__steps=30, finetune__weight_decay=9.0,
    )  # fmt: skip
    message = refusal(project)
    assert "the loss is not finite" in message
    assert "learning_rate" in message
    assert not (project.folder / BUILD / "tucker/rounds/1/model.safetensors").exists()
