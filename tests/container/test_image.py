"""The image of Containerfile: built on a clean Debian, and run offline by an unknown user."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import image_builder
import pytest
from image_builder import Builder, Container
from projects import BUILD, RESULT, ROOT, Project, make_project

# The packages of the environment are downloaded.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

USER = 4321

# What takes the place of Apptainer, which Debian 12 does not have: a program for the arguments that
# Snakemake gives to it. It runs the command in the image, with nothing of this machine but the
# folder of the project and a variable. It cannot test Apptainer's own work: images as one file,
# mounts, users.
APPTAINER = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "apptainer version 1.0.0"; exit; fi
[ "$1 $2" = "exec --home" ] || exit 64
home=$3
shift 3
while [ "$1" = --bind ]; do shift 2; done
image=$1
shift
echo "$image" >> {calls}
exec {run} env LOWRANK_CODE="$LOWRANK_CODE" "$@"
"""


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    if reason := image_builder.missing():
        pytest.skip(reason)
    # Not in a folder of pytest, which would keep the images after the tests.
    folder = Path(tempfile.mkdtemp(prefix="lowrank-image-"))
    with image_builder.opened_builder(folder) as builder:
        builder.make_base(image_builder.base_of_containerfile())
        yield builder


@pytest.fixture(scope="module")
def container(builder: Builder) -> Container:
    return Container(builder, builder.build("cpu"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Project]:
    """Return a project in which nothing has been run, and a copy with a result of this machine."""
    new = make_project(tmp_path_factory.mktemp("new") / "project")
    run = new.copy_to(tmp_path_factory.mktemp("run") / "project")
    run.snakemake(RESULT, cores=1)
    return new, run


def test_the_user_of_the_image_runs_lowrank(container: Container):
    assert container.run("lowrank", "--version").stdout.startswith("lowrank")
    assert container.run("id", "--user", "--name").stdout.strip() == "lowrank"


def test_nothing_is_left_of_the_installation(container: Container):
    places = "/var/lib/apt/lists /var/cache/apt /var/cache/pip ~root/.cache /tmp"
    script = f'for place in {places}; do if [ -e "$place" ]; then find "$place" -type f; fi; done'
    assert container.run("sh", "-c", script, user="0:0").stdout == ""


def test_the_packages_are_those_of_the_constraints(container: Container):
    def packages(text: str) -> set[str]:
        lines = {line.lower().replace("_", "-") for line in text.splitlines() if "==" in line}
        return {line for line in lines if not line.startswith("setuptools==")}

    installed = packages(container.run("pip", "freeze").stdout)
    assert len(installed) > 100
    assert installed <= packages((ROOT / "constraints.txt").read_text())


def test_a_user_without_a_name_makes_the_result_of_this_machine_offline(
    container: Container, built: tuple[Project, Project], tmp_path: Path
):
    new, run = built
    project = new.copy_to(tmp_path / "project")
    for path in (project.folder, *project.folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    words = ("snakemake", "--cores", "1", RESULT)
    container.run(*words, folder=project.folder, user=f"{USER}:{USER}")
    assert project.files() == run.files()


def test_snakemake_runs_the_steps_in_the_image(
    container: Container, built: tuple[Project, Project], tmp_path: Path, monkeypatch
):
    new, run = built
    project = new.copy_to(tmp_path / "project")
    in_image = container.command(folder=project.folder, user="0:0")
    program, calls = tmp_path / "bin/apptainer", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(APPTAINER.format(run=shlex.join(in_image), calls=calls))
    program.chmod(0o755)
    image = tmp_path / "lowrank.sif"
    image.touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    monkeypatch.setenv("LOWRANK_CONTAINER", str(image))
    options = ("--sdm", "apptainer", "--")
    project.snakemake(*options, RESULT, cores=1)
    assert project.files() == run.files()
    assert {*calls.read_text().split()} == {str(image)}
    # The image holds this code, and no other.
    (project.folder / "src/lowrank/new.py").write_text("# Not in the image.\n")
    forced = ("--forcerun", "splits", *options, str(BUILD / "original/splits"))
    refused = project.run("snakemake", "--cores", "1", *forced, check=False)
    assert refused.returncode
    assert "error: the container image has another lowrank" in refused.stdout


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("environment", "gpu", ""), "there is no target 'gpu': expected cpu or cuda"),
        (("environment", "cpu", "work"), "EXTRAS: pyproject.toml has no extra ['work']; it has ["),
        (("packages",), "there is no step 'packages': expected system, environment or package"),
    ],
)
def test_a_mistake_gives_a_message(container: Container, step, message):
    done = container.run("sh", "/opt/lowrank/install.sh", *step, check=False)
    assert done.returncode
    assert message in done.stdout
