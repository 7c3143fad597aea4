"""`--sdm apptainer` and LOWRANK_CONTAINER, as far as Snakemake gets without Apptainer.

tests/container runs the steps in an image.
"""

import shutil

import pytest
from projects import RESULT, Project, job_counts

APPTAINER = ("snakemake", "--cores", "1", "--dry-run", "--sdm", "apptainer", "--", RESULT)


def test_apptainer_without_an_image_is_refused(project: Project, monkeypatch):
    monkeypatch.delenv("LOWRANK_CONTAINER", raising=False)
    done = project.run(*APPTAINER, check=False)
    assert done.returncode
    assert "--sdm apptainer: no image for the steps. Set LOWRANK_CONTAINER" in done.stdout
    monkeypatch.setenv("LOWRANK_CONTAINER", "lowrank.sif")
    done = project.run(*APPTAINER, check=False)
    assert done.returncode
    assert "LOWRANK_CONTAINER=lowrank.sif: no such file" in done.stdout


def test_the_image_changes_no_job_without_apptainer(project: Project, monkeypatch):
    splits = "build/resnet20/original/splits"
    project.snakemake(splits)
    monkeypatch.setenv("LOWRANK_CONTAINER", "docker://example.org/lowrank:cpu")
    assert job_counts(project.snakemake("--dry-run", splits)) == {}


@pytest.mark.skipif(bool(shutil.which("apptainer")), reason="Apptainer is installed")
def test_a_machine_without_apptainer_gets_a_message(project: Project, monkeypatch):
    monkeypatch.setenv("LOWRANK_CONTAINER", "docker://example.org/lowrank:cpu")
    done = project.run(*APPTAINER, check=False)
    assert done.returncode
    assert "The apptainer or singularity command has to be available" in done.stdout
