"""Forms of use that Snakemake's users expect: in another folder, as a module, deployed."""

import json
import re
from pathlib import Path

import pytest
import yaml
from projects import RESULT, ROOT, Project, job_counts

MODULE = """
configfile: "params.yaml"
module lowrank:
    snakefile: "{snakefile}"
    config: config
    {options}
use rule * from lowrank
"""


def with_package_of(project: Project, folder: Path) -> Project:
    """Return a new folder in which commands run the `lowrank` of a project."""
    folder.mkdir()
    (folder / "src").symlink_to(project.folder / "src")
    return Project(folder)


@pytest.fixture
def elsewhere(project: Project, tmp_path: Path) -> Project:
    """Return a folder with only the params.yaml and the dataset of a user."""
    other = with_package_of(project, tmp_path / "elsewhere")
    (other.folder / "data").mkdir()
    (other.folder / "params.yaml").write_bytes((project.folder / "params.yaml").read_bytes())
    (project.folder / "data/datasets").rename(other.folder / "data/datasets")
    return other


def write_module(folder: Path, workflow: Project, options: str = "") -> None:
    snakefile = workflow.folder / "workflow/Snakefile"
    (folder / "Snakefile").write_text(MODULE.format(snakefile=snakefile, options=options))


@pytest.mark.slow
def test_another_folder_has_its_own_parameters_and_the_shipped_weights(
    project: Project, elsewhere: Project
):
    elsewhere.change_params(methods__mine={"quantize": "int8"}, matrix__methods=["mine"])
    dry = project.snakemake("--dry-run", "--directory", str(elsewhere.folder))
    assert "results/resnet20_mine.json" in dry
    assert f"{project.folder}/workflow/rules/../../data/checkpoints/resnet20.safetensors" in dry
    assert (elsewhere.folder / "data/networks/resnet20.json").exists()
    assert not (project.folder / "build").exists()


def test_a_module_needs_only_parameters(project: Project, elsewhere: Project):
    write_module(elsewhere.folder, project)
    jobs = job_counts(elsewhere.snakemake("--dry-run"))
    assert (jobs["summarize"], jobs["overview"]) == (1, 1)


@pytest.mark.slow
def test_a_module_with_a_prefix_keeps_all_files_below_it(project: Project, elsewhere: Project):
    write_module(elsewhere.folder, project, 'prefix: "sub"')
    dry = elsewhere.snakemake("--dry-run")
    files = re.findall(r"^    (?:input|output|log): (.*)$", dry, re.MULTILINE)
    listed = {re.sub(r" \(\w+\)$", "", path) for line in files for path in line.split(", ")}
    outside = {path for path in listed if not path.startswith("sub/")}
    assert {Path(path).name for path in outside} == {"resnet20.safetensors"}
    assert {path.name for path in elsewhere.folder.iterdir()} >= {"sub"}
    assert not (elsewhere.folder / "build").exists()


def test_a_module_that_moves_only_some_files_is_refused(project: Project, elsewhere: Project):
    write_module(elsewhere.folder, project, 'replace_prefix: {"results/": "other/"}')
    done = elsewhere.run("snakemake", "--cores", "1", "--dry-run", check=False)
    assert done.returncode
    assert "a module with `replace_prefix:` would move some files" in done.stdout


@pytest.mark.slow
def test_a_module_with_a_prefix_builds_its_result(project: Project, elsewhere: Project):
    write_module(elsewhere.folder, project, 'prefix: "sub"')
    (elsewhere.folder / "sub/data").mkdir(parents=True)
    (elsewhere.folder / "data/datasets").rename(elsewhere.folder / "sub/data/datasets")
    elsewhere.snakemake(f"sub/{RESULT}")
    result = json.loads((elsewhere.folder / "sub" / RESULT).read_text())
    assert result["command"] == f"snakemake --cores all sub/{RESULT}"
    assert (elsewhere.folder / "sub/models/resnet20_tucker/resnet20_tucker.onnx").exists()
    made = {path.name for path in elsewhere.folder.iterdir()} - {".snakemake", ".run.lock"}
    assert made == {"sub", "data", "src", "params.yaml", "Snakefile"}
    assert "Nothing to be done" in elsewhere.snakemake(f"sub/{RESULT}")


def test_what_snakedeploy_copies_is_a_working_project(project: Project, tmp_path: Path):
    # `config/` with the parameters as a file, `profiles/`, and a Snakefile with a module.
    assert (ROOT / "config/config.yaml").resolve() == ROOT / "params.yaml"
    deployed = with_package_of(project, tmp_path / "deployed")
    for name in ("config", "workflow"):
        (deployed.folder / name).mkdir()
    (deployed.folder / "config/config.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write_module(deployed.folder / "workflow", project)
    snakefile = deployed.folder / "workflow/Snakefile"
    snakefile.write_text(snakefile.read_text().replace("params.yaml", "config/config.yaml"))
    jobs = job_counts(deployed.snakemake("--dry-run", RESULT))
    assert jobs["summarize"] == 1


def test_the_catalog_finds_its_files():
    catalog = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())
    assert catalog["usage"]["report"] is True
    assert set(catalog["usage"]) == {"software-stack-deployment", "report"}
    for name in ("workflow/Snakefile", "config/README.md", "config/config.yaml", "LICENSE"):
        assert (ROOT / name).is_file(), name


def test_a_measurement_on_a_cluster_does_not_ask_for_the_cores_of_this_machine(project: Project):
    here = project.snakemake("-n", RESULT)
    cluster = project.snakemake("-n", "--profile", "profiles/slurm", "--", RESULT)
    for output, has_all_cores in ((here, True), (cluster, False)):
        (entry,) = re.findall(r"rule benchmark:.*?resources:", output, re.DOTALL)
        assert ("threads: 2" in entry) == has_all_cores
