"""The graph of a configuration and its answers to the rules."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lowrank.cli import main
from lowrank.config.reading import parse_params
from lowrank.core.layers import Layer, LayerTable
from lowrank.errors import UserError
from lowrank.graph.pipeline import Graph

ROOT = Path(__file__).parents[2]
DOCUMENT = yaml.safe_load((ROOT / "params.yaml").read_text())
TUCKER = {"first_conv": "tucker1", "conv": "tucker2", "linear": "svd"}


class Wildcards(dict):
    """Wildcards like those of Snakemake, with attributes and `keys`."""

    __getattr__ = dict.__getitem__


def wildcards(**values):
    return Wildcards(values)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    # A separate folder, because the project's folder may contain notes of earlier code.
    monkeypatch.setattr("lowrank.graph.layer_tables.TABLE_CODE", tmp_path / "table_code")
    convs = [Layer(8, 8, (3, 3), name=name) for name in "abcd"]
    table = LayerTable("net", (3, 8, 8), (*convs, Layer(8, 10, name="e", kind="linear")))
    (tmp_path / "net.json").write_text(json.dumps(table.to_json()))
    return tmp_path


@pytest.fixture
def graph(tables):
    document = copy.deepcopy(DOCUMENT)
    document["studies"] = {}
    document["checkpoint"] = {"net": {"dataset": "cifar10", "weights": str(tables / "net.pth")}}
    document["matrix"] |= {"models": ["net"], "methods": ["at_once"]}
    document["methods"] = {
        "at_once": {"factorize": TUCKER, "finetune": {"distill": {"weight": 0.0}}},
        "in_turn": {"factorize": TUCKER, "schedule": {"kind": "iterative", "group": 2}},
        "nothing": {"factorize": {"pointwise_conv": "svd"}},
        "control": {"factorize": {}},
        "int8": {"quantize": "int8"},
        "untaught": {"factorize": TUCKER, "finetune": {"steps": 0, "distill": {"weight": 0.5}}},
        "hybrid": {
            "factorize": TUCKER | {"exclude": ["c"]},
            "schedule": {"kind": "hybrid", "order": ["d"]},
            "ranks": {"select": "sensitivity"},
            "finetune": {"total_steps": 60, "models": {"net": {"last_share": 0.8}}},
        },
        "for_target": {
            "factorize": TUCKER | {"norm": "activation", "alternatives": ["spatial_svd"]},
            "schedule": {"kind": "iterative", "group": 3},
            "ranks": {"select": "budget", "target": {"macs": 0.5}},
        },
        "staged": {"factorize": TUCKER, "schedule": {"kind": "multi_stage", "stages": 3}},
        "taught": {"factorize": TUCKER, "finetune": {"distill": {"weight": 0.5}}},
        "shown": {
            "factorize": TUCKER,
            "finetune": {"distill": {"weight": 0.5, "images": "augmented"}},
        },
    }
    workflow = Graph.from_document(document)
    return Graph(workflow.params, tables, document)


def test_one_shot_replaces_all_layers_in_one_round(graph):
    assert graph.rounds("net", "at_once") == [
        {"a": "tucker1", "b": "tucker2", "c": "tucker2", "d": "tucker2", "e": "svd"}
    ]


def test_iterative_replaces_groups_of_layers_in_network_order(graph):
    assert graph.rounds("net", "in_turn") == [
        {"a": "tucker1", "b": "tucker2"},
        {"c": "tucker2", "d": "tucker2"},
        {"e": "svd"},
    ]


def test_a_method_that_selects_no_layer_is_refused(graph):
    with pytest.raises(UserError, match=r"methods\.nothing\.factorize` selects no layer of net"):
        graph.rounds("net", "nothing")


def test_a_method_without_factorizations_is_a_control(graph):
    assert graph.rounds("net", "control") == [{}]
    first_round = wildcards(model="net", method="control", round="1")
    assert graph.compress.factors(first_round) == []


def test_hybrid_replaces_linear_layers_together_and_last(graph):
    assert graph.rounds("net", "hybrid") == [
        {"d": "tucker2"},
        {"a": "tucker1"},
        {"b": "tucker2"},
        {"e": "svd"},
    ]


def test_inputs_of_a_rank_rule_that_chooses_all_ranks_together(graph):
    first = wildcards(model="net", method="hybrid", at="first")
    later = wildcards(model="net", method="hybrid", at="rounds/2")
    assert graph.compress.measured_dataset(first) == ["data/datasets/cifar10"]
    assert graph.compress.first_plan(first) == []
    assert graph.compress.measured_dataset(later) == graph.compress.measured_dataset(first)
    assert graph.compress.first_plan(later) == ["build/net/hybrid/first/ranks.json"]
    all_layers = {"a": "tucker1", "b": "tucker2", "d": "tucker2", "e": "svd"}
    assert json.loads(graph.compress.all_layers_json(first)) == all_layers


def test_inputs_of_a_rank_rule_that_evaluates_layers_on_images(graph):
    first = wildcards(model="net", method="for_target", at="first")
    later = wildcards(model="net", method="for_target", at="rounds/2")
    folder = "build/moments/net/for_target"
    assert (
        graph.compress.measured_moments(first)
        == graph.compress.moments(first)
        == [f"{folder}/first.safetensors"]
    )
    # The chosen ranks are evaluated in every round.
    later_moments = [f"{folder}/rounds/2.safetensors"]
    assert graph.compress.measured_moments(later) == graph.compress.moments(later) == later_moments
    # The first round needs the moments of all layers, later rounds those of their own layers.
    assert graph.compress.calibrated_json(first) == graph.compress.all_layers_json(first)
    assert (
        graph.compress.calibrated_json(later)
        == graph.layers_json(later)
        != graph.layers_json(first)
    )
    assert (
        graph.compress.measured_calibration_json(first)
        == graph.compress.calibration_json(first)
        != "{}"
    )
    assert graph.compress.measured_calibration_json(later) == graph.compress.calibration_json(later)
    assert json.loads(graph.compress.alternatives_json(first)) == ["spatial_svd"]


def test_a_rank_rule_that_looks_at_one_layer_needs_no_more_inputs(graph):
    for at in ("first", "rounds/2"):
        this_round = wildcards(model="net", method="in_turn", at=at)
        assert graph.compress.measured_dataset(this_round) == ["data/datasets/cifar10"]
        assert graph.compress.first_plan(this_round) == []
        assert graph.compress.measured_moments(this_round) == []
        assert graph.compress.calibrated_json(this_round) == graph.layers_json(this_round)
        assert graph.compress.all_layers_json(this_round) == "{}"


def test_the_number_of_remaining_stages_counts_down(graph):
    stages_left = [
        graph.compress.stages_left(wildcards(model="net", method="staged", at=at))
        for at in ("first", "rounds/2", "rounds/3")
    ]
    assert stages_left == [3, 2, 1]
    assert graph.compress.stages_left(wildcards(model="net", method="in_turn", at="rounds/2")) == 1


def test_a_training_budget_is_divided_among_the_rounds(graph):
    numbers = "1234"
    rounds = [wildcards(model="net", method="hybrid", round=number) for number in numbers]
    assert [graph.compress.finetune(this_round).steps for this_round in rounds] == [4, 4, 4, 48]
    is_last = [graph.compress.is_last(this_round) for this_round in rounds]
    assert is_last == [False, False, False, True]


def test_the_original_is_an_input_if_a_round_learns_from_it(graph):
    inputs = [
        graph.compress.teacher(wildcards(model="net", method=method, round="1"))
        for method in ("at_once", "taught", "shown")
    ]
    assert inputs == [
        [],
        ["build/net/original/outputs.safetensors"],
        ["build/net/original/model.safetensors"],
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"ranks": {"select": "fixed", "table": {"bb": [1, 1]}}},
            r"`methods\.wrong\.ranks\.table`: unknown layer of net 'bb'",
        ),
        (
            {"schedule": {"kind": "iterative", "order": ["a", "x"]}},
            r"methods\.wrong\.schedule\.order`: unknown layer",
        ),
        (
            {"factorize": {"conv": "tucker2", "exclude": ["feat*"]}},
            r"methods\.wrong\.factorize\.exclude`: no layer of net matches 'feat\*'",
        ),
    ],
)
def test_layers_that_do_not_exist_are_an_error(graph, tables, entries, message):
    document = graph.params.model_dump(exclude_unset=True)
    document["methods"]["wrong"] = {"factorize": TUCKER} | entries
    with pytest.raises(UserError, match=message):
        Graph(parse_params(document), tables).rounds("net", "wrong")


def test_rounds_of_the_shipped_networks():
    graph = Graph(Graph.from_document(DOCUMENT).params, ROOT / "data/networks")
    (vgg,) = graph.rounds("vgg16", "tucker")
    assert len(vgg) == 14
    assert vgg["features.conv1_1"] == "tucker1"
    assert vgg["features.conv5_3"] == "tucker2"
    assert vgg["classifier"] == "svd"
    (resnet,) = graph.rounds("resnet20", "tucker")
    assert len(resnet) == 20


def test_a_round_starts_from_the_network_of_the_previous_round(graph):
    first = wildcards(model="net", method="in_turn", round="1")
    second = wildcards(model="net", method="in_turn", round="2")
    assert graph.compress.state_before(first) == "build/net/original/model.safetensors"
    assert graph.compress.state_before(second) == "build/net/in_turn/rounds/1/model.safetensors"


@pytest.mark.parametrize(("at", "number"), [("first", "1"), ("rounds/3", "3")])
def test_rounds_by_place_and_by_number_agree(graph, at, number):
    by_place = wildcards(model="net", method="in_turn", at=at, layer="e")
    by_number = wildcards(model="net", method="in_turn", round=number)
    assert graph.compress.state_before(by_place) == graph.compress.state_before(by_number)
    assert graph.layers_json(by_place) == graph.layers_json(by_number)


def test_factors_of_a_round(graph):
    first = wildcards(model="net", method="in_turn", round="1")
    last = wildcards(model="net", method="in_turn", round="3")
    assert graph.compress.factors(first) == [
        "build/net/in_turn/first/factors/a.safetensors",
        "build/net/in_turn/first/factors/b.safetensors",
    ]
    assert graph.compress.factors_folder(last) == "build/net/in_turn/rounds/3/factors"
    assert graph.compress.factors(last) == ["build/net/in_turn/rounds/3/factors/e.safetensors"]
    assert json.loads(graph.layers_json(last)) == {"e": "svd"}


def test_files_of_all_rounds(graph):
    variant = wildcards(model="net", method="in_turn")
    folder = "build/net/in_turn"
    assert graph.last_state(variant) == f"{folder}/rounds/3/model.safetensors"
    assert graph.deliver.plans(variant) == [
        f"{folder}/first/ranks.json",
        f"{folder}/rounds/2/ranks.json",
        f"{folder}/rounds/3/ranks.json",
    ]
    rounds = [f"{folder}/rounds/{number}" for number in (1, 2, 3)]
    assert graph.deliver.round_metrics(variant) == [f"{path}/metrics.json" for path in rounds]
    assert graph.deliver.round_curves(variant) == [f"{path}/curve.json" for path in rounds]
    assert graph.deliver.round_timings(variant) == [f"{path}/timing.json" for path in rounds]


def test_a_round_that_does_not_exist_is_an_error(graph):
    with pytest.raises(UserError, match="net_in_turn has 3 rounds; there is no round 4"):
        graph.layers_json(wildcards(model="net", method="in_turn", at="rounds/4"))


def test_the_dataset_of_a_model(graph):
    assert graph.dataset(wildcards(model="net")) == "data/datasets/cifar10"


def test_missing_weights_are_an_error(graph, tables):
    with pytest.raises(UserError, match=r"net\.pth: no such checkpoint \(`checkpoint\.net\."):
        graph.networks.weights(wildcards(model="net"))
    (tables / "net.pth").touch()
    assert graph.networks.weights(wildcards(model="net")) == str(tables / "net.pth")


def test_weights_that_are_trained_here_need_not_exist(tables):
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["vgg16"]["weights"] = "build/pretrain/vgg16.safetensors"
    graph = Graph.from_document(document)
    assert graph.networks.weights(wildcards(model="vgg16")) == "build/pretrain/vgg16.safetensors"


def test_pretraining_needs_a_recipe(graph):
    with pytest.raises(UserError, match="`pretrain` has no recipe for net"):
        graph.networks.pretrain(wildcards(model="net"))
    assert (
        graph.networks.pretrain(wildcards(model="vgg16")).epochs
        == DOCUMENT["pretrain"]["vgg16"]["epochs"]
    )


def test_the_pattern_of_a_section_matches_its_names(graph):
    pattern = re.compile(graph.names_pattern("methods"))
    assert [name for name in ("at_once", "in_turn", "at_onc", "x") if pattern.fullmatch(name)] == [
        "at_once",
        "in_turn",
    ]


@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        ("results/net_at_once.json", False),
        ("results/net_in_turn.json", False),
        ("results/net_at_onc.json", True),
        ("results/net_at_once2.json", True),
        ("results/net.json", True),
        ("results/ne_at_once.json", True),
        ("results/xnet_at_once.json", True),
        ("results/net_at_once.json.json", True),
        ("results/plots/net_at_once.json", False),
    ],
)
def test_the_pattern_of_unknown_variants(graph, path, unknown):
    pattern = rf"results/(?P<variant>{graph.unknown_variant})\.json"
    assert bool(re.fullmatch(pattern, path)) == unknown


def test_the_error_for_an_unknown_result_suggests_the_nearest_name(graph):
    with pytest.raises(UserError, match=r"results/net_at_onse\.json: unknown result") as caught:
        graph.refuse(wildcards(variant="net_at_onse"))
    assert "Did you mean 'net_at_once'?" in str(caught.value)


@pytest.fixture
def run_in_process(monkeypatch):
    """Run the command line of a new process in this process, which has already loaded PyTorch."""

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "lowrank.cli"]
        done = CliRunner().invoke(main, command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)

    monkeypatch.setattr(subprocess, "run", run)  # Also applies to lowrank.graph.processes.


def test_a_table_is_made_on_first_use(tmp_path, run_in_process):
    graph = Graph(Graph.from_document(DOCUMENT).params, tmp_path)
    rounds = graph.rounds("resnet20", "tucker")
    shipped = ROOT / "data/networks/resnet20.json"
    assert (tmp_path / "resnet20.json").read_bytes() == shipped.read_bytes()
    assert len(rounds[0]) == 20


def test_a_table_of_another_network_is_replaced(tmp_path, run_in_process):
    document = copy.deepcopy(DOCUMENT)
    document["studies"] = {}
    document["checkpoint"]["vgg16"] |= {"network": "resnet20"}
    shutil.copy(ROOT / "data/networks/vgg16.json", tmp_path)
    graph = Graph(Graph.from_document(document).params, tmp_path)
    assert len(graph.rounds("vgg16", "tucker")[0]) == 20
    table = json.loads((tmp_path / "vgg16.json").read_text())
    assert table["source"] == {"network": "resnet20"}
    assert json.loads(graph.network_json(wildcards(model="vgg16"))) == {"network": "resnet20"}


@pytest.mark.parametrize(
    ("entries", "advice"),
    [
        ({"network": "alexnet"}, "Put bvlc_alexnet.caffemodel from the BVLC model zoo"),
        ({"network": "resnet18"}, "set `torchvision_weights` to their name"),
    ],
)
def test_the_error_for_missing_weights_says_where_to_get_them(entries, advice):
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["net"] = {"dataset": "cifar10", "weights": "net.pth"} | entries
    with pytest.raises(UserError, match=f"net.pth: no such checkpoint.*{advice}"):
        Graph.from_document(document).networks.weights(wildcards(model="net"))


def test_weights_from_torchvision_need_not_exist(tmp_path):
    document = copy.deepcopy(DOCUMENT)
    entry = {"network": "resnet18", "torchvision_weights": "DEFAULT", "dataset": "cifar10"}
    document["checkpoint"]["net"] = entry | {"weights": "data/weights/net.pth"}
    graph = Graph.from_document(document)
    assert graph.networks.weights(wildcards(model="net")) == "data/weights/net.pth"
    document["checkpoint"]["net"]["weights"] = "elsewhere.pth"
    with pytest.raises(UserError, match=r"elsewhere\.pth: no such checkpoint"):
        Graph.from_document(document).networks.weights(wildcards(model="net"))


def test_results_of_a_study(graph):
    document = copy.deepcopy(DOCUMENT)
    study = document["studies"]["budgets"]
    study["models"] = ["vgg16", "resnet20"]
    study["variants"] = {"tucker_9": {}, "control_9": {"factorize": None}}
    names = Graph.from_document(document).studies.study_results(wildcards(study="budgets"))
    assert sorted(names) == [
        "results/resnet20_budgets_control_9.json",
        "results/resnet20_budgets_tucker_9.json",
        "results/vgg16_budgets_control_9.json",
        "results/vgg16_budgets_tucker_9.json",
    ]


def test_a_network_that_is_not_registered_is_an_error(tmp_path, run_in_process):
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["vgg61"] = document["checkpoint"]["vgg16"]
    graph = Graph(Graph.from_document(document).params, tmp_path)
    with pytest.raises(UserError, match=r"unknown network 'vgg61'. Did you mean 'vgg16'"):
        graph.rounds("vgg61", "tucker")
    assert list(tmp_path.iterdir()) == []


def test_a_control_has_no_ranks_to_choose():
    # The base of a study sets `ranks` for all of its variants, including the control.
    budget = {"select": "budget", "target": {"macs": 0.5}}
    methods = DOCUMENT["methods"] | {"control": {"factorize": {}, "ranks": budget}}
    graph = Graph(parse_params(DOCUMENT | {"methods": methods}), ROOT / "data/networks")
    first = wildcards(model="vgg16", method="control", at="first")
    assert graph.compress.measured_dataset(first) == graph.compress.measured_moments(first) == []
    assert graph.compress.all_layers_json(first) == "{}"


def test_the_overview_contains_the_matrix_and_other_results(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank.graph.report.RESULTS", tmp_path / "results")
    assert graph.report.overview_variants == "net:at_once"
    (tmp_path / "results").mkdir()
    for name in ("net_at_once", "net_in_turn", "net_unknown", "summary"):
        (tmp_path / f"results/{name}.json").write_text("{}")
    assert graph.report.overview_variants == "net:at_once net:in_turn"
    before = graph.report.compared
    assert before.keys() == {"net:in_turn"}
    # The digest changes, so the overview is made again.
    (tmp_path / "results/net_in_turn.json").write_text("[]")
    assert graph.report.compared != before


def test_the_overview_does_not_contain_results_of_studies(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank.graph.report.RESULTS", tmp_path)
    for name in ("vgg16_labels_both", "vgg16_musco"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert Graph.from_document(DOCUMENT).report.compared.keys() == {"vgg16:musco"}


def test_a_method_of_int8_alone_keeps_the_original(graph):
    variant = wildcards(model="net", method="int8")
    assert graph.rounds("net", "int8") == []
    assert graph.last_state(variant) == "build/net/original/model.safetensors"
    assert graph.deliver.round_metrics(variant) == []
    assert graph.deliver.round_timings(variant) == []
    assert graph.deliver.plans(variant) == ["build/net/int8/first/ranks.json"]
    assert graph.layers_json(wildcards(model="net", method="int8", at="first")) == "{}"
    # A method with fine-tuning is a control with one round.
    assert graph.rounds("net", "control") == [{}]


def test_a_round_without_steps_has_no_teacher(graph):
    assert graph.compress.teacher(wildcards(model="net", method="taught", round="1")) == [
        "build/net/original/outputs.safetensors"
    ]
    assert graph.compress.teacher(wildcards(model="net", method="untaught", round="1")) == []


def test_a_control_of_a_study_has_the_training_budget_of_the_other_variants(tables):
    document = copy.deepcopy(DOCUMENT)
    base = {"factorize": TUCKER, "quantize": "int8"}
    variants = {"all": {}, "control": {"factorize": None}}
    document["studies"] = {
        "ask": {"title": "", "models": ["resnet20"], "base": base, "variants": variants}
    }
    params = parse_params(document)
    assert params.finetune_of("resnet20", "ask_control").steps == document["finetune"]["steps"]
    document["methods"]["plain"] = {"quantize": "int8", "finetune": {"steps": 7}}
    document["methods"]["int8"] = {"quantize": "int8", "finetune": {"learning_rate": 0.1}}
    params = parse_params(document)
    assert params.finetune_of("resnet20", "plain").steps == 7
    assert params.finetune_of("resnet20", "int8").steps == 0
    assert Graph(params, ROOT / "data/networks").rounds("resnet20", "int8") == []


@pytest.mark.parametrize("kind", ["one_shot", "iterative", "hybrid", "multi_stage"])
def test_a_control_has_one_round_with_any_schedule(tables, kind):
    document = copy.deepcopy(DOCUMENT)
    schedule = {"kind": kind} | ({"stages": 2} if kind == "multi_stage" else {})
    document["methods"]["control"] = {"factorize": None, "schedule": schedule}
    graph = Graph(parse_params(document), ROOT / "data/networks")
    assert graph.rounds("resnet20", "control") == [{}]
    variant = wildcards(model="resnet20", method="control")
    assert graph.last_state(variant) == "build/resnet20/control/rounds/1/model.safetensors"


def test_int8_files_are_timed_on_every_device_unless_this_is_disabled():
    """The settings of measurements are left out, as they are no reason to quantize again."""
    document = copy.deepcopy(DOCUMENT)
    document["benchmark"]["board"] = {"kind": "ssh", "host": "pi", "threads": 4, "repeats": 7}
    document["matrix"] = {**DOCUMENT["matrix"], "devices": ["local", "board"]}
    variant = wildcards(model="resnet20", method="tucker")
    connection = {"kind": "ssh", "host": "pi", "python": "python3", "command": "ssh"}
    connection["folder"] = "~/.cache/lowrank"
    for by_time, expected in (
        (True, {"local": {"kind": "local"}, "board": connection}),
        (False, {}),
    ):
        document["quantize"] = {**DOCUMENT.get("quantize", {}), "by_time": by_time}
        graph = Graph(parse_params(document), ROOT / "data/networks")
        assert json.loads(graph.deliver.connections_json(variant)) == expected


def test_a_card_states_the_settings_that_apply(graph):
    variant = wildcards(model="net", method="hybrid")
    described = json.loads(graph.deliver.described_json(variant))
    assert (described["name"], described["data"]) == ("net_hybrid", "cifar10")
    assert "takes_arrays" not in described
    assert list(described["configuration"]["methods"]) == ["hybrid"]
    method = described["method"]
    # The method's settings for this network override the general `finetune` section.
    assert method["finetune"]["total_steps"] == 60
    assert "steps" not in method["finetune"]
    assert method["finetune"]["last_share"] == 0.8
    assert method["finetune"]["batch_size"] == DOCUMENT["finetune"]["batch_size"]
    assert yaml.safe_load(graph.report.stated(variant)) == method


def test_a_card_states_that_the_dataset_has_arrays():
    document = copy.deepcopy(DOCUMENT)
    document["dataset"]["cifar10"] = {"kind": "arrays", "train": "x.npy"}
    graph = Graph(parse_params(document), ROOT / "data/networks")
    described = graph.deliver.described_json(wildcards(model="vgg16", method="tucker"))
    assert json.loads(described)["takes_arrays"] is True


def test_arrays_are_not_augmented():
    document = copy.deepcopy(DOCUMENT)
    document["dataset"]["cifar10"] = {"kind": "arrays", "train": "x.npy"}
    variant = wildcards(model="vgg16", method="tucker", round="1")
    graph = Graph(parse_params(document), ROOT / "data/networks")
    assert not graph.compress.finetune(variant).augment.changes
    document["methods"]["tucker"]["finetune"] = {
        "augment": {"flip": True}, "distill": {"images": "augmented"}
    }  # fmt: skip
    graph = Graph(parse_params(document), ROOT / "data/networks")
    with pytest.raises(UserError, match="`augment`: the dataset has arrays"):
        graph.compress.finetune(variant)


def test_git_and_dvc_ignore_the_results_of_single_variants_of_studies():
    studies = parse_params(DOCUMENT).studies
    for file, patterns in (
        (
            ".gitignore",
            ("/results/*_{}_*.json", "/results/metrics/*_{}_*.json", "/results/plots/*_{}_*/"),
        ),
        (".dvcignore", ("/results/plots/*_{}_*/",)),
    ):
        lines = (ROOT / file).read_text().splitlines()
        ignored = {pattern.format(name) for name in studies for pattern in patterns}
        assert ignored <= set(lines)


def test_a_number_in_the_notation_of_dvc_is_passed_to_a_factory_as_a_number(tmp_path):
    """`dvc exp run -S` writes 0.00001 as 1e-05, which Snakemake reads as text."""
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["own"] = {
        "dataset": "cifar10",
        "weights": "own.pth",
        "factory": "own:build",
        "input_shape": [3, 32, 32],
        "arguments": {"eps": "EPS", "name": "NAME"},
    }
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document).replace("EPS", "1e-05").replace("NAME", "'1e-05'"))
    read_by_snakemake = yaml.load(path.read_text(), yaml.FullLoader)
    assert read_by_snakemake["checkpoint"]["own"]["arguments"]["eps"] == "1e-05"
    graph = Graph.from_document(read_by_snakemake, [path])
    source = json.loads(graph.network_json(wildcards(model="own")))
    assert source["arguments"] == {"eps": 1e-5, "name": "1e-05"}


def test_errors_in_params_yaml_have_line_numbers(tmp_path):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("learning_rate: 0.01 ", "learning_rate: -0.01 "))
    line = 1 + text[: text.index("learning_rate: 0.01 ")].count("\n")
    config = yaml.safe_load(path.read_text())
    message = f"line {line}: `finetune.learning_rate` is -0.01, expected"
    with pytest.raises(UserError, match=message):
        Graph.from_document(config, [path])


def test_the_images_on_which_choices_are_made():
    document = copy.deepcopy(DOCUMENT)
    document["dataset"]["mine"] = {"kind": "imagefolder", "train": "a", "validation": "b"}
    network = {"dataset": "mine", "weights": "net.pth"}
    settings = {"a": None, "b": {"from": "test", "images": 50}, "c": {"folder": "own"}}
    document["checkpoint"] |= {
        name: network | ({"validation": setting} if setting else {})
        for name, setting in settings.items()
    }
    graph = Graph(parse_params(document))
    validation = {
        name: json.loads(graph.networks.validation_json(wildcards(model=name))) for name in settings
    }
    assert validation == settings | {"a": {"from": "train"}}
    # The settings for decoding are passed only for a folder of validation images.
    assert graph.networks.decoding_json(wildcards(model="b")) == "{}"
    assert json.loads(graph.networks.decoding_json(wildcards(model="c")))["store_pixels"] == 256
    document["checkpoint"]["b"]["calibration"] = "photos"
    networks, job = Graph(parse_params(document)).networks, wildcards(model="b")
    assert networks.calibration(job) == "photos"
    assert json.loads(networks.decoding_json(job))["store_pixels"] == 256
    assert networks.threads_of_splits(job) == 2
    assert networks.own_image_files(job) != graph.networks.own_image_files(job) == ""
    document["checkpoint"]["c"] = network | {"validation": {"folder": "own", "images": 3}}
    with pytest.raises(UserError, match=r"checkpoint\.c\.validation.*cannot be combined"):
        parse_params(document)


def test_ranks_that_select_ranks_does_not_evaluate_are_measured_before_training():
    methods = {
        name: {"factorize": {"conv": method, "linear": "svd"} | more, "ranks": ranks}
        for name, method, more, ranks in (
            ("closed", "tucker2", {}, {"select": "ratio"}),
            ("terms", "cp_tpm", {}, {"select": "ratio", "largest_drop": 0.3}),
            ("in_turn", "tucker2", {"norm": "activation", "sequential": True}, {"select": "ratio"}),
        )
    }
    graph = Graph(parse_params(DOCUMENT | {"methods": DOCUMENT["methods"] | methods}),
                     ROOT / "data/networks")  # fmt: skip
    limits, predicts = {}, {}
    for method in methods:
        first = wildcards(model="vgg16", method=method, at="first", round="1")
        limits[method], predicts[method] = (
            graph.compress.largest_drop(first),
            graph.compress.predict(first),
        )
    assert limits == {"closed": 1.0, "terms": 0.3, "in_turn": 0.5}
    assert predicts == {"closed": True, "terms": True, "in_turn": False}
