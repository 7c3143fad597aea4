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
    """As Snakemake's: attributes, and `keys` to ask which there are."""

    __getattr__ = dict.__getitem__


def wildcards(**values):
    return Wildcards(values)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    # Not in this folder, where notes of earlier code may lie.
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


def test_one_shot_takes_every_layer_at_once(graph):
    assert graph.rounds("net", "at_once") == [
        {"a": "tucker1", "b": "tucker2", "c": "tucker2", "d": "tucker2", "e": "svd"}
    ]


def test_iterative_takes_groups_in_network_order(graph):
    assert graph.rounds("net", "in_turn") == [
        {"a": "tucker1", "b": "tucker2"},
        {"c": "tucker2", "d": "tucker2"},
        {"e": "svd"},
    ]


def test_a_method_that_takes_no_layer_is_refused(graph):
    with pytest.raises(UserError, match=r"methods\.nothing\.factorize` takes no layer of net"):
        graph.rounds("net", "nothing")


def test_a_method_without_factorizations_is_a_control(graph):
    assert graph.rounds("net", "control") == [{}]
    asked = wildcards(model="net", method="control", round="1")
    assert graph.compress.factors(asked) == []


def test_hybrid_takes_linear_layers_together_and_last(graph):
    assert graph.rounds("net", "hybrid") == [
        {"d": "tucker2"},
        {"a": "tucker1"},
        {"b": "tucker2"},
        {"e": "svd"},
    ]


def test_what_a_rule_needs_that_shares_out_ranks(graph):
    first = wildcards(model="net", method="hybrid", at="first")
    later = wildcards(model="net", method="hybrid", at="rounds/2")
    assert graph.compress.measured_on(first) == ["data/datasets/cifar10"]
    assert graph.compress.first_plan(first) == []
    assert graph.compress.measured_on(later) == graph.compress.measured_on(first)
    assert graph.compress.first_plan(later) == ["build/net/hybrid/first/ranks.json"]
    every = {"a": "tucker1", "b": "tucker2", "d": "tucker2", "e": "svd"}
    assert json.loads(graph.compress.all_layers_json(first)) == every


def test_what_a_rule_needs_that_tries_layers_on_images(graph):
    first = wildcards(model="net", method="for_target", at="first")
    later = wildcards(model="net", method="for_target", at="rounds/2")
    folder = "build/moments/net/for_target"
    assert (
        graph.compress.measured_moments(first)
        == graph.compress.moments(first)
        == [f"{folder}/first.safetensors"]
    )
    # What the rule gives is tried in every round.
    later_moments = [f"{folder}/rounds/2.safetensors"]
    assert graph.compress.measured_moments(later) == graph.compress.moments(later) == later_moments
    # Before the first round those of every layer, and in later rounds of their own.
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


def test_a_rule_that_looks_at_one_layer_needs_nothing_more(graph):
    for at in ("first", "rounds/2"):
        asked = wildcards(model="net", method="in_turn", at=at)
        assert graph.compress.measured_on(asked) == ["data/datasets/cifar10"]
        assert graph.compress.first_plan(asked) == graph.compress.measured_moments(asked) == []
        assert graph.compress.calibrated_json(asked) == graph.layers_json(asked)
        assert graph.compress.all_layers_json(asked) == "{}"


def test_stages_count_down(graph):
    left = [
        graph.compress.stages_left(wildcards(model="net", method="staged", at=at))
        for at in ("first", "rounds/2", "rounds/3")
    ]
    assert left == [3, 2, 1]
    assert graph.compress.stages_left(wildcards(model="net", method="in_turn", at="rounds/2")) == 1


def test_a_budget_is_shared_out_over_the_rounds(graph):
    numbers = "1234"
    asked = [wildcards(model="net", method="hybrid", round=number) for number in numbers]
    assert [graph.compress.finetune(each).steps for each in asked] == [4, 4, 4, 48]
    assert [graph.compress.is_last(each) for each in asked] == [False, False, False, True]


def test_the_original_is_needed_where_a_round_learns_from_it(graph):
    needed = [
        graph.compress.teacher(wildcards(model="net", method=method, round="1"))
        for method in ("at_once", "taught", "shown")
    ]
    assert needed == [
        [],
        ["build/net/original/outputs.safetensors"],
        ["build/net/original/model.safetensors"],
    ]


@pytest.mark.parametrize(
    ("entries", "told"),
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
            r"methods\.wrong\.factorize\.exclude`: no layer of net is named like 'feat\*'",
        ),
    ],
)
def test_layers_that_do_not_exist_are_told(graph, tables, entries, told):
    document = graph.params.model_dump(exclude_unset=True)
    document["methods"]["wrong"] = {"factorize": TUCKER} | entries
    with pytest.raises(UserError, match=told):
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


def test_a_round_starts_from_the_network_of_the_last(graph):
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
    asked = wildcards(model="net", method="in_turn")
    folder = "build/net/in_turn"
    assert graph.last_state(asked) == f"{folder}/rounds/3/model.safetensors"
    assert graph.deliver.plans(asked) == [
        f"{folder}/first/ranks.json",
        f"{folder}/rounds/2/ranks.json",
        f"{folder}/rounds/3/ranks.json",
    ]
    assert graph.deliver.round_files(asked)[3:6] == [
        f"{folder}/rounds/2/metrics.json",
        f"{folder}/rounds/2/curve.json",
        f"{folder}/rounds/2/timing.json",
    ]
    assert len(graph.deliver.round_files(asked)) == 9


def test_a_round_too_many(graph):
    with pytest.raises(UserError, match="net_in_turn has 3 rounds; there is no round 4"):
        graph.layers_json(wildcards(model="net", method="in_turn", at="rounds/4"))


def test_dataset_of_a_model(graph):
    assert graph.dataset(wildcards(model="net")) == "data/datasets/cifar10"


def test_missing_weights_are_told(graph, tables):
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


def test_names_of_a_section(graph):
    pattern = re.compile(graph.one_of("methods"))
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
def test_unknown_variants(graph, path, unknown):
    pattern = rf"results/(?P<variant>{graph.unknown_variant})\.json"
    assert bool(re.fullmatch(pattern, path)) == unknown


def test_an_unknown_result_is_refused_with_the_nearest(graph):
    with pytest.raises(UserError, match=r"results/net_at_onse\.json: unknown result") as caught:
        graph.refuse(wildcards(variant="net_at_onse"))
    assert "Did you mean 'net_at_once'?" in str(caught.value)


@pytest.fixture
def run_in_process(monkeypatch):
    """Runs the command line that a new process would get in this one, which has PyTorch loaded."""

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "lowrank.cli"]
        done = CliRunner().invoke(main, command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)

    monkeypatch.setattr(subprocess, "run", run)  # Also that of lowrank.graph.processes.


def test_a_table_is_made_on_first_use(tmp_path, run_in_process):
    graph = Graph(Graph.from_document(DOCUMENT).params, tmp_path)
    rounds = graph.rounds("resnet20", "tucker")
    shipped = ROOT / "data/networks/resnet20.json"
    assert (tmp_path / "resnet20.json").read_bytes() == shipped.read_bytes()
    assert len(rounds[0]) == 20


def test_a_table_of_another_network_is_made_anew(tmp_path, run_in_process):
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
    ("entries", "told"),
    [
        ({"network": "alexnet"}, "Put bvlc_alexnet.caffemodel from the BVLC model zoo"),
        ({"network": "resnet18"}, "name its weights as `torchvision_weights`"),
    ],
)
def test_missing_weights_are_told_with_where_they_may_come_from(entries, told):
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["net"] = {"dataset": "cifar10", "weights": "net.pth"} | entries
    with pytest.raises(UserError, match=f"net.pth: no such checkpoint.*{told}"):
        Graph.from_document(document).networks.weights(wildcards(model="net"))


def test_weights_of_torchvision_need_not_be_there(tmp_path):
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


def test_a_network_that_is_not_registered_is_told(tmp_path, run_in_process):
    document = copy.deepcopy(DOCUMENT)
    document["checkpoint"]["vgg61"] = document["checkpoint"]["vgg16"]
    graph = Graph(Graph.from_document(document).params, tmp_path)
    with pytest.raises(UserError, match=r"unknown network 'vgg61'. Did you mean 'vgg16'"):
        graph.rounds("vgg61", "tucker")
    assert list(tmp_path.iterdir()) == []


def test_a_control_has_no_ranks_to_share_out():
    # A study's base says `ranks` for all of its variants.
    budget = {"select": "budget", "target": {"macs": 0.5}}
    methods = DOCUMENT["methods"] | {"control": {"factorize": {}, "ranks": budget}}
    graph = Graph(parse_params(DOCUMENT | {"methods": methods}), ROOT / "data/networks")
    first = wildcards(model="vgg16", method="control", at="first")
    assert graph.compress.measured_on(first) == graph.compress.measured_moments(first) == []
    assert graph.compress.all_layers_json(first) == "{}"


def test_the_overview_holds_the_matrix_and_other_results(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank.graph.report.RESULTS", tmp_path / "results")
    assert graph.report.overview_variants == "net:at_once"
    (tmp_path / "results").mkdir()
    for name in ("net_at_once", "net_in_turn", "net_unknown", "summary"):
        (tmp_path / f"results/{name}.json").write_text("{}")
    assert graph.report.overview_variants == "net:at_once net:in_turn"
    before = graph.report.compared
    assert before.keys() == {"net:in_turn"}
    # So that another result of that name is seen.
    (tmp_path / "results/net_in_turn.json").write_text("[]")
    assert graph.report.compared != before


def test_the_overview_leaves_studies_to_their_own_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank.graph.report.RESULTS", tmp_path)
    for name in ("vgg16_labels_both", "vgg16_musco"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert Graph.from_document(DOCUMENT).report.compared.keys() == {"vgg16:musco"}


def test_int8_alone_is_the_original(graph):
    at = wildcards(model="net", method="int8")
    assert graph.rounds("net", "int8") == []
    assert graph.last_state(at) == "build/net/original/model.safetensors"
    assert graph.deliver.round_files(at) == []
    assert graph.deliver.plans(at) == ["build/net/int8/first/ranks.json"]
    assert graph.layers_json(wildcards(model="net", method="int8", at="first")) == "{}"
    # One that is trained is a control, as it always was.
    assert graph.rounds("net", "control") == [{}]


def test_without_steps_there_is_nothing_to_learn_from(graph):
    assert graph.compress.teacher(wildcards(model="net", method="taught", round="1")) == [
        "build/net/original/outputs.safetensors"
    ]
    assert graph.compress.teacher(wildcards(model="net", method="untaught", round="1")) == []


def test_a_control_of_a_study_is_trained_by_the_budget_of_the_others(tables):
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
def test_a_control_has_one_round_by_any_schedule(tables, kind):
    document = copy.deepcopy(DOCUMENT)
    schedule = {"kind": kind} | ({"stages": 2} if kind == "multi_stage" else {})
    document["methods"]["control"] = {"factorize": None, "schedule": schedule}
    graph = Graph(parse_params(document), ROOT / "data/networks")
    assert graph.rounds("resnet20", "control") == [{}]
    at = wildcards(model="resnet20", method="control")
    assert graph.last_state(at) == "build/resnet20/control/rounds/1/model.safetensors"


def test_int8_files_are_timed_on_every_device_unless_that_is_off():
    """Without how often a device measures, which is no reason to quantize again."""
    document = copy.deepcopy(DOCUMENT)
    document["benchmark"]["board"] = {"kind": "ssh", "host": "pi", "threads": 4, "repeats": 7}
    document["matrix"] = {**DOCUMENT["matrix"], "devices": ["local", "board"]}
    at = wildcards(model="resnet20", method="tucker")
    for by_time, expected in (
        (True, {"local": {"kind": "local"}, "board": {"kind": "ssh", "host": "pi"}}),
        (False, {}),
    ):
        document["quantize"] = {**DOCUMENT.get("quantize", {}), "by_time": by_time}
        graph = Graph(parse_params(document), ROOT / "data/networks")
        assert json.loads(graph.deliver.connections_json(at)) == expected


def test_what_a_card_states_is_what_applies(graph):
    at = wildcards(model="net", method="hybrid")
    described = json.loads(graph.deliver.described_json(at))
    assert (described["name"], described["data"]) == ("net_hybrid", "cifar10")
    assert list(described["configuration"]["methods"]) == ["hybrid"]
    method = described["method"]
    # What the method says for this network, before what `finetune` says in general.
    assert method["finetune"]["total_steps"] == 60
    assert "steps" not in method["finetune"]
    assert method["finetune"]["last_share"] == 0.8
    assert method["finetune"]["batch_size"] == DOCUMENT["finetune"]["batch_size"]
    assert yaml.safe_load(graph.report.stated(at)) == method


def test_git_and_dvc_pass_over_single_variants_of_studies():
    studies = parse_params(DOCUMENT).studies
    for file, patterns in (
        (
            ".gitignore",
            ("/results/*_{}_*.json", "/results/metrics/*_{}_*.json", "/results/plots/*_{}_*/"),
        ),
        (".dvcignore", ("/results/plots/*_{}_*/",)),
    ):
        lines = (ROOT / file).read_text().splitlines()
        assert {each.format(name) for name in studies for each in patterns} <= set(lines)


def test_a_number_as_dvc_writes_it_reaches_a_factory(tmp_path):
    """`dvc exp run -S` writes 0.00001 as 1e-05, which Snakemake's reader takes for text."""
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
    as_snakemake_reads = yaml.load(path.read_text(), yaml.FullLoader)
    assert as_snakemake_reads["checkpoint"]["own"]["arguments"]["eps"] == "1e-05"
    graph = Graph.from_document(as_snakemake_reads, [path])
    source = json.loads(graph.network_json(wildcards(model="own")))
    assert source["arguments"] == {"eps": 1e-5, "name": "1e-05"}


def test_mistakes_have_lines(tmp_path):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("learning_rate: 0.01 ", "learning_rate: -0.01 "))
    line = 1 + text[: text.index("learning_rate: 0.01 ")].count("\n")
    config = yaml.safe_load(path.read_text())
    with pytest.raises(UserError, match=f"line {line}: `finetune.learning_rate` is -0.01"):
        Graph.from_document(config, [path])


def test_where_choices_are_made():
    document = copy.deepcopy(DOCUMENT)
    document["dataset"]["mine"] = {"kind": "imagefolder", "train": "a", "validation": "b"}
    network = {"dataset": "mine", "weights": "net.pth"}
    choices = {"a": None, "b": {"from": "test", "images": 50}, "c": {"folder": "own"}}
    document["checkpoint"] |= {
        name: network | ({"validation": choice} if choice else {})
        for name, choice in choices.items()
    }
    graph = Graph(parse_params(document))
    chosen = {
        name: json.loads(graph.networks.validation_json(wildcards(model=name))) for name in choices
    }
    assert chosen == choices | {"a": {"from": "train"}}
    # How images are decoded reaches what it decides alone.
    assert graph.networks.decoding_json(wildcards(model="b")) == "{}"
    assert json.loads(graph.networks.decoding_json(wildcards(model="c")))["store_pixels"] == 256
    document["checkpoint"]["c"] = network | {"validation": {"folder": "own", "images": 3}}
    with pytest.raises(UserError, match=r"checkpoint\.c\.validation.*cannot be combined"):
        parse_params(document)


def test_what_select_ranks_does_not_try_is_measured_before_training():
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
    limits, tries = {}, {}
    for method in methods:
        first = wildcards(model="vgg16", method=method, at="first", round="1")
        limits[method], tries[method] = (
            graph.compress.largest_drop(first),
            graph.compress.predict(first),
        )
    assert limits == {"closed": 1.0, "terms": 0.3, "in_turn": 0.5}
    assert tries == {"closed": "--predict", "terms": "--predict", "in_turn": "--no-predict"}
