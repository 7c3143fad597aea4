"""Which container image the steps run in, and whether it holds the same code."""

from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from snakemake.settings.types import DeploymentMethod

from lowrank.errors import UserError
from lowrank.graph.container import check_code_of_image, image_of_steps
from lowrank.steps.common import Step


def snakemake(*methods: DeploymentMethod, module: bool = False) -> SimpleNamespace:
    """Return the parts of Snakemake's workflow object that say how software is deployed."""
    main, used = object(), object()
    return SimpleNamespace(
        deployment_settings=SimpleNamespace(deployment_method=frozenset(methods)),
        modifier=used if module else main,
        modifier_stack=[main],
    )


@pytest.fixture
def with_image(monkeypatch):
    """Return a function that chooses an image. No digest of the code is left after the test."""
    monkeypatch.setenv("LOWRANK_CODE", "")
    monkeypatch.delenv("LOWRANK_CONTAINER", raising=False)
    return lambda image: monkeypatch.setenv("LOWRANK_CONTAINER", image)


def test_without_the_variable_there_is_no_container(with_image):
    assert image_of_steps(snakemake()) is None
    with_image("")
    assert image_of_steps(snakemake()) is None
    check_code_of_image()


@pytest.mark.parametrize(
    "image", ["docker://example.org/lowrank:cpu", "oras://a/b", "file:///a.sif"]
)
def test_an_address_is_the_image(with_image, image):
    with_image(image)
    assert image_of_steps(snakemake(DeploymentMethod.APPTAINER)) == image


def test_the_path_of_a_file_or_a_folder_is_the_image(with_image, tmp_path):
    (tmp_path / "lowrank.sif").touch()
    for path in (tmp_path / "lowrank.sif", tmp_path):
        with_image(str(path))
        assert image_of_steps(snakemake(DeploymentMethod.APPTAINER)) == str(path)


def test_a_missing_image_is_an_error(with_image):
    with_image("lowrank.sif")
    with pytest.raises(UserError, match=r"LOWRANK_CONTAINER=lowrank\.sif: no such file in /"):
        image_of_steps(snakemake(DeploymentMethod.APPTAINER))
    # Without --sdm, Snakemake ignores it.
    assert image_of_steps(snakemake()) == "lowrank.sif"


def test_apptainer_without_an_image_is_an_error(with_image):
    with pytest.raises(UserError, match=r"--sdm apptainer: no image .* Set LOWRANK_CONTAINER to"):
        image_of_steps(snakemake(DeploymentMethod.APPTAINER))


def test_a_module_in_a_workflow_with_other_containers_needs_no_image(with_image):
    assert image_of_steps(snakemake(DeploymentMethod.APPTAINER, module=True)) is None


def test_a_step_of_another_lowrank_is_an_error(with_image, monkeypatch):
    @click.command(cls=Step)
    def step() -> None:
        """Print a line."""
        click.echo("done")

    with_image("docker://example.org/lowrank:cpu")
    image_of_steps(snakemake(DeploymentMethod.APPTAINER))
    assert CliRunner().invoke(step).output == "done\n"
    monkeypatch.setenv("LOWRANK_CODE", "0123456789ab")
    other = CliRunner().invoke(step)
    assert other.exit_code == 1
    assert "error: the container image has another lowrank (" in other.output
    assert "than the workflow (0123456789ab)" in other.output
