"""The documentation agrees with the code and with the results."""

import re
import shlex
import tomllib
from collections.abc import Iterator

import markdown_pages as pages
import papers_page
import pytest
import readme_table
import yaml
from doc_figures import SENTENCES, TABLES
from markdown_pages import PAGES, ROOT, name_of

from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.config.reading import load_params, parse_params
from lowrank.factorize import FACTORIZATIONS
from lowrank.graph.step_names import STEPS
from lowrank.ranks.rule import RULES
from lowrank.settings.merging import merged
from lowrank.tasks import TASKS

README, MOST_LINES = ROOT / "README.md", 150
PARAMS = load_params(ROOT / "params.yaml")


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_images_have_targets(page):
    assert not list(pages.broken_links(page))


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {name for name in names if f"({name})" not in index}


@pytest.mark.parametrize("name", ["int8", "all", *papers_page.NAMES])
def test_generated_tables_agree_with_the_results(name):
    page, lines = readme_table.tables(ROOT)[name]
    text = (ROOT / page).read_text()
    wanted = readme_table.replaced(text, name, lines)
    pairs = zip(text.splitlines(), wanted.splitlines(), strict=False)
    wrong = [f"found:    {found}\nexpected: {line}" for found, line in pairs if found != line]
    if text != wanted:
        pytest.fail(
            f"{page} does not agree with the results; run "
            "`python benchmarks/readme_table.py --write`\n" + "\n".join(wrong[:6])
        )


def test_the_conclusions_of_the_readme_agree_with_the_results():
    text = " ".join(README.read_text().split())
    device, over = PARAMS.matrix.devices[0], {}
    for model, results in readme_table.results_of(PARAMS, ROOT).items():
        latencies = [result["int8"]["latency_ms"][device] for result in results.values()]
        over[model] = [latency["speedup_over_control"] for latency in latencies]
    assert "ResNet-20: none is faster than int8 of the original." in text
    assert max(over["resnet20"]) < 1, f"README.md: on ResNet-20 one is faster: {over}"
    assert "two to nearly four times faster than int8 of the original." in text
    assert 1.9 < min(over["vgg16"]) < max(over["vgg16"]) < 4, f"README.md, VGG-16: {over}"


@pytest.mark.parametrize(
    ("page", "heading", "number", "source", "read"),
    TABLES,
    ids=[f"{page}#{heading}-{number}" for page, heading, number, *_ in TABLES],
)
def test_tables_agree_with_their_sources(page, heading, number, source, read):
    under = [table for table in pages.tables(ROOT / page) if table.heading == heading]
    assert len(under) > number, f"{page} has no table {number} under #{heading}"
    table, (keys, expected) = under[number], read()
    shown = {
        key: {column: values for column, values in row.items() if column in table.columns}
        for key, row in expected.items()
    }
    assert all(shown.values()), f"{page}, #{heading}: no column of {table.columns} is compared"
    wrong = pages.disagreements(table, keys, shown, source)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("page", "sentence", "figures"), SENTENCES)
def test_sentences_agree_with_their_sources(page, sentence, figures):
    text = " ".join((ROOT / page).read_text().split())
    assert sentence.format(*figures()) in text, f"{page} does not say so"


def test_a_changed_result_gives_a_message():
    table = pages.Table(
        "page.md", "here", ("rule", "top-1, %"), ({"rule": "a", "top-1, %": "1.20"},)
    )
    assert not pages.disagreements(table, ["rule"], {("a",): {"top-1, %": [1.204]}}, "a.json")
    assert pages.disagreements(table, ["rule"], {("a",): {"top-1, %": [1.31]}}, "a.json") == [
        "page.md, table under #here, row ('a',), column 'top-1, %': found '1.20', expected 1.31 "
        "(a.json)"
    ]


# Options of Snakemake that take a value, and commands of DVC.
WITH_VALUE = {"--cores", "--report", "--config", "--configfile", "--directory"}
WITH_VALUE |= {"--profile", "--set-resources", "--sdm", "--apptainer-args"}
WITH_VALUE |= {"--default-storage-provider"}
WITH_VALUE |= {"--default-storage-prefix", "--storage-s3-endpoint-url"}
WITH_RULE = {"--until", "--forcerun", "--omit-from"}
DVC = {"repro", "metrics", "params", "plots", "exp", "status", "pull", "push", "checkout"}
DVC |= {"get", "artifacts"}
DVC |= {"commit", "remote"}
RULES_TEXT = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
WORKFLOW_RULES = {*re.findall(r"^(?:use )?rule \w+ as (\w+)|^rule (\w+)", RULES_TEXT, re.MULTILINE)}
RULE_NAMES = {name for pair in WORKFLOW_RULES for name in pair if name} | {"all"}
OUTPUTS = [
    re.sub(r"(\\{)+\w+(\\})+", r"[\\w.-]+", re.escape(path))
    for path in re.findall(r'"((?:results|build|data|models)/[^" ]*)"', RULES_TEXT)
]


def is_placeholder(word: str) -> bool:
    return "<" in word or "..." in word or word == "N"


def wrong_target(target: str) -> str:
    """Return the reason why Snakemake cannot make a target; empty if it can."""
    if target in RULE_NAMES:
        return ""
    if not any(re.fullmatch(pattern, target) for pattern in OUTPUTS):
        return f"no rule makes '{target}'"
    study = re.fullmatch(r"results/studies/(\w+)\.\w+", target)
    if study and study[1] not in PARAMS.studies:
        return f"there is no study '{study[1]}'"
    result = re.fullmatch(r"results/(\w+)\.json", target)
    if result and not any(result[1].endswith(f"_{method}") for method in PARAMS.methods):
        return f"no method ends the name '{result[1]}'"
    return ""


def problems_of_snakemake(words: list[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        if word in WITH_VALUE:
            next(rest, None)
        elif word in WITH_RULE:
            if not is_placeholder(rule := next(rest, "")) and rule not in RULE_NAMES:
                yield f"there is no rule '{rule}'"
        elif not word.startswith("-") and not is_placeholder(word) and (why := wrong_target(word)):
            yield why


def problems_of_dvc(words: list[str]) -> Iterator[str]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    if words and words[0] not in DVC:
        yield f"DVC has no command '{words[0]}'"
    elif words and words[0] == "repro":
        named = [word for word in words[1:] if not (word.startswith("-") or is_placeholder(word))]
        for word in named:
            if word.partition("@")[0] not in stages:
                yield f"dvc.yaml has no stage '{word}'"


def problems_of_make(words: list[str]) -> Iterator[str]:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w./%-]+):(?!=)", text, re.MULTILINE)
    for word in words:
        if not any(re.fullmatch(target.replace("%", r"\w+"), word) for target in targets):
            yield f"Makefile has no target '{word}'"


def problems_of(command: str) -> Iterator[str]:
    words = shlex.split(command)
    match words:
        case ["snakemake", *rest]:
            yield from problems_of_snakemake(rest)
        case ["dvc", *rest]:
            yield from problems_of_dvc(rest)
        case ["make", *rest]:
            yield from problems_of_make(rest)
        case ["lowrank", step, *_] if not is_placeholder(step) and step not in STEPS:
            yield f"there is no step '{step}'"
        case ["python", path, *_] if not (ROOT / path).is_file():
            yield f"there is no file {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_existing_targets(page):
    wrong = [
        f"{name_of(page)}: `{command}`: {problem}"
        for command in pages.commands(page)
        for problem in problems_of(command)
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_are_found():
    commands = pages.commands(README)
    assert "dvc repro" in commands
    assert "make results/vgg16_tucker.json" in commands
    assert "snakemake --cores 8 results/vgg16_tucker.json" in commands


@pytest.mark.parametrize(
    "command",
    [
        *("snakemake results/vgg16_tuker.json", "snakemake --until decompse", "snakemake reslts"),
        *("dvc repo", "dvc repro finetun@vgg16-tucker", "make tests", "lowrank decompse --help"),
        *("python benchmarks/int9.py", "snakemake results/studies/schedule.svg"),
    ],
)
def test_a_wrong_command_gives_a_message(command):
    assert list(problems_of(command))


def test_parameters_in_the_pages_are_valid():
    """All parameters of all pages are merged into params.yaml and checked together."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    for page in PAGES:
        for block in pages.blocks(page.read_text(), "yaml"):
            document = merged(document, yaml.safe_load(block))
    parse_params(document)


@pytest.mark.seconds
def test_python_in_the_pages_runs(tmp_path, monkeypatch):
    import torch
    from torch import nn

    from lowrank.onnx_files.export import export_onnx
    from lowrank.zoo.registry import NetworkSpec

    torch.manual_seed(0)
    # Wide enough that factors are faster.
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    trained: list[nn.Module] = []
    names = {
        "network": network.eval(),
        "batches": [torch.randn(16, 3, 32, 32)],
        "train": trained.append,
    }
    monkeypatch.chdir(tmp_path)
    export_onnx(network, NetworkSpec("model", (3, 32, 32), num_classes=10), "model.onnx")
    for page in PAGES:
        for code in pages.blocks(page.read_text(), "python"):
            exec(code, names)
    assert (tmp_path / "small.onnx").stat().st_size
    assert trained


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]


@pytest.mark.parametrize(
    ("page", "registry"),
    [
        ("methods.md", FACTORIZATIONS),
        ("methods.md", RULES),
        ("devices.md", DEVICE_KINDS),
        ("own-network.md", TASKS),
    ],
    ids=["factorizations", "rank rules", "devices", "tasks"],
)
def test_the_documentation_names_every_built_in_entry(page, registry):
    text = (ROOT / "docs" / page).read_text()
    missing = [name for name in registry.usable() if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"docs/{page}: does not name {', '.join(missing)}"
