"""The step that collects the measurements of a variant."""

import json
from dataclasses import replace
from importlib.metadata import version

import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import helper

from lowrank.core.layers import Layer, LayerTable, PlainLayer
from lowrank.core.metric import Metric
from lowrank.core.plans import Expected, Factored, Plan, PlannedLayer
from lowrank.core.stored import write_tensors
from lowrank.files import read_json, write_json
from lowrank.report.provenance import digest
from lowrank.steps.summarize import summarize
from lowrank.tasks.classification import Classification

TABLE = LayerTable(
    "net",
    (3, 8, 8),
    (
        Layer(3, 8, (3, 3), padding=(1, 1), name="first", input_map=(8, 8)),
        Layer(8, 8, (3, 3), padding=(1, 1), name="second", input_map=(8, 8)),
        Layer(8, 8, (3, 3), groups=8, name="third", input_map=(8, 8), not_factored="depthwise"),
        Layer(8, 10, bias=True, name="last", kind="linear"),
    ),
)
PLANS = [
    Plan(
        (
            PlannedLayer("first", "tucker1", (3,), (9,), (216, 216), (13824, 13824), "no gain"),
            PlannedLayer(
                "second", "tucker2", (2, 3), (1, 3), (576, 94), (36864, 6016), notes=("at least 2",)
            ),
        )
    ),
    Plan(()),
]
FACTORED = Factored(
    "tucker2",
    (2, 3),
    0.123456789,
    (PlainLayer(8, 2), PlainLayer(2, 3, (3, 3), padding=(1, 1)), PlainLayer(3, 8)),
)

SPEC = {
    "name": "net",
    "input_shape": [3, 8, 8],
    "num_classes": 10,
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
    "channel_order": "rgb",
    "resize": None,
    "interpolation": "bilinear",
}
DESCRIBED = {
    "name": "net_tucker",
    "data": "photos",
    "method": {"name": "tucker"},
    "configuration": {"finetune": {"steps": 10}},
}


def accuracies(**values):
    return {
        "accuracy": {
            name: {"validation": value + 1, "test": value} for name, value in values.items()
        }
    }


def export(scale, accuracy):
    return {
        "counts": {"parameters": 1000 * scale, "macs": 50_000 * scale, "size_bytes": 4000 * scale},
        "check": {
            "max_abs_error": 1e-6 * scale,
            "relative_error": 1e-7 * scale,
        },
        "accuracy": {"top1": accuracy},
    }


def measurement():
    times = {"p10": 0.5, "p50": 1.0, "p90": 2.0, "p99": 4.0}
    return {
        "original": {name: 3 * value for name, value in times.items()},
        "compressed": times,
        "speedup": 2.9,
        "speedup_low": 2.8,
        "speedup_high": 3.1,
        "repeats": 50,
        "conditions": {"load": 0.5, "warning": None},
        "layers_ms": {
            "original": {"first": 1.0, "second": 2.0, "rest": 0.5},
            "compressed": {"first": 1.0, "second.0": 0.25, "second.1": 0.5, "rest": 0.5},
        },
        "memory_mb": {"original": 30.0, "compressed": 20.0},
        "environment": {"processor": "any"},
        "agreement": {"images": 64, "relative_error": 1e-6, "warning": None},
        "control": {"int8": {"not_measured": "no int8 kernels"}},
    }


def controlled(over=2.0):
    """Return the measurement of all three networks on a device that runs int8."""
    control = measurement() | {"speedup": 2.5}
    measured = measured_in_int8(5.5) | {"control": {"int8": control}}
    measured["int8"] |= {
        "speedup_over_control": over,
        "speedup_over_control_low": over - 0.1,
        "speedup_over_control_high": over + 0.1,
    }
    return measured


def measured_in_int8(speedup):
    kernels = {"nodes": 3, "total": 4, "macs_share": 0.9, "warning": None}
    int8 = measurement() | {"speedup": speedup, "integer_kernels": kernels}
    return measurement() | {"int8": int8}


INT8 = {
    "kind": "int8",
    "devices": {"phone": "s8.onnx", "board": "u8_reduced.onnx"},
    "files": {
        "s8.onnx": {
            "activations": "int8",
            "reduce_range": False,
            "accuracy": {"validation": {"top1": 89.25}, "test": {"top1": 88.25}},
            "size_bytes": 1500,
            "nodes": 4,
            "kept_in_float": ["second"],
            "within_tolerance": True,
        },
        "u8_reduced.onnx": {
            "activations": "uint8",
            "reduce_range": True,
            "accuracy": {"validation": {"top1": 89.0}, "test": {"top1": 88.0}},
            "size_bytes": 1600,
            "nodes": 4,
            "kept_in_float": [],
            "within_tolerance": False,
        },
    },
    "float_accuracy": {"validation": {"top1": 89.5}},
}
CONTROL = INT8 | {
    "files": {
        name: file
        | {
            "accuracy": {"validation": {"top1": 92.5}, "test": {"top1": 91.5}},
            "size_bytes": 3000,
            "kept_in_float": [],
            "within_tolerance": True,
        }
        for name, file in INT8["files"].items()
    }
}
SEARCH = {
    "accuracy_drop": 4.0,
    "cost": "latency_ms.phone",
    "share": 0.1,
    "taken": 2,
    "drop": 3.0,
    "standard_error": 0.2,
    "within": True,
    "control": {"drop": 0.5, "standard_error": 0.1, "within": True},
}


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the step, with some of the documents replaced."""

    def invoke(**replacements):
        write_documents(tmp_path, replacements)
        return CliRunner().invoke(summarize, arguments(tmp_path))

    return invoke


@pytest.fixture
def outputs(run, tmp_path):
    result = run()
    assert result.exit_code == 0, result.output
    assert "92.00 % -> 88.50 % top-1, 3.00x fewer MACs" in result.stderr
    names = ("result", "headlines", "layers", "times", "curve")
    return {name: read_json(tmp_path / f"{name}.json") for name in names}


def write_documents(tmp_path, replacements):
    documents = {
        "table": TABLE.to_json(),
        "original": {"accuracy": {"validation": 93.0, "test": 92.0}},
        "before": export(3, 92.0),
        "after": export(1, 88.5),
        "phone": measured_in_int8(5.5) | {"others": {"threads_2": measured_in_int8(4.5)}},
        "board": measurement() | {"int8": {"not_measured": "no int8 kernels"}},
        "int8/report": INT8,
        "control/report": CONTROL,
        "search": SEARCH,
        "ranks1": PLANS[0].to_json(),
        "ranks2": PLANS[1].to_json(),
        "metrics1": accuracies(decomposed=20.0, finetuned=80.0),
        "metrics2": accuracies(decomposed=70.0, finetuned=88.0),
        "curve1": [{"round": 1, "step": 10, "loss": 0.5}],
        "curve2": [{"round": 2, "step": 10, "loss": 0.25}],
        "timing1": {"steps": 10, "seconds": 1.25},
        "timing2": {"steps": 20, "seconds": 2.5},
    }
    for name, document in (documents | replacements).items():
        write_json(tmp_path / f"{name}.json", document)
    write_tensors(
        tmp_path / "model.safetensors",
        {},
        {
            "network": {"network": "net"},
            "spec": SPEC,
            "factored": {"second": FACTORED.to_json()},
        },
    )
    files = [f"{folder}/{name}" for folder in ("int8", "control") for name in INT8["files"]]
    for name in ("model.onnx", *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        onnx.save_model(helper.make_model(helper.make_graph([], "net", [], [])), tmp_path / name)


NO_ROUNDS = ("--round-metrics=", "--round-curves=", "--round-timings=")


def arguments(tmp_path):
    def paths(*names):
        return " ".join(str(tmp_path / f"{name}.json") for name in names)

    files = {
        "table": paths("table"),
        "original": paths("original"),
        "original-export": paths("before"),
        "export": paths("after"),
        "state": str(tmp_path / "model.safetensors"),
        "plans": paths("ranks1", "ranks2"),
        "round-metrics": paths("metrics1", "metrics2"),
        "round-curves": paths("curve1", "curve2"),
        "round-timings": paths("timing1", "timing2"),
        "model": str(tmp_path / "model.onnx"),
        "quantized": str(tmp_path / "int8"),
        "control": str(tmp_path / "control"),
        "search": paths("search"),
        "benchmarks": paths("phone", "board"),
        "described": json.dumps(DESCRIBED),
        "delivered": str(tmp_path / "models/net_tucker"),
        "result": paths("result"),
        "metrics": paths("headlines"),
        "layers": paths("layers"),
        "times": paths("times"),
        "curve": paths("curve"),
    }
    return [f"--{name}={value}" for name, value in files.items()]


def test_accuracy_is_that_of_the_last_round(outputs):
    accuracy = outputs["result"]["accuracy"]
    assert accuracy == {
        "original": 92.0,
        "decomposed": 70.0,
        "finetuned": 88.0,
        "exported": 88.5,
        "validation": {"original": 93.0, "decomposed": 71.0, "finetuned": 89.0},
    }


@pytest.mark.parametrize(
    ("quantity", "compressed"), [("parameters", 1000), ("macs", 50_000), ("size_bytes", 4000)]
)
def test_ratios_are_original_divided_by_compressed(outputs, quantity, compressed):
    assert outputs["result"][quantity] == {
        "original": 3 * compressed,
        "compressed": compressed,
        "ratio": 3.0,
    }


def test_the_result_contains_the_int8_network(outputs):
    int8 = outputs["result"]["int8"]
    assert int8["accuracy"] == {"exported": 88.25, "validation": {"exported": 89.25}}
    assert int8["size_bytes"] == {"original": 12_000, "compressed": 1500, "ratio": 8.0}
    assert int8["latency_ms"]["phone"]["speedup"] == 5.5
    assert int8["latency_ms"]["board"] == {"not_measured": "no int8 kernels"}
    assert set(int8["memory_mb"]) == {"phone"}
    assert int8["integer_kernels"] == {
        "phone": {"nodes": 3, "total": 4, "macs_share": 0.9, "warning": None}
    }
    assert int8["agreement"]["phone"]["images"] == 64
    assert set(outputs["result"]["agreement"]) == {"phone", "board"}
    assert (int8["nodes"], int8["kept_in_float"]) == (4, 1)


def test_an_int8_file_beyond_the_tolerance_causes_a_warning(run, tmp_path):
    done = run(phone=controlled())
    assert done.exit_code == 0, done.output
    result = read_json(tmp_path / "result.json")
    assert result["int8"]["within_tolerance"] is False
    assert result["control"]["int8"]["within_tolerance"] is True
    assert "warning: int8 loses more validation accuracy than `quantize.tolerance`" in done.stderr
    assert "control.int8 loses" not in done.stderr
    folder = tmp_path / "models/net_tucker"
    warned = {path.name for path in folder.glob("*.md") if "quantize.tolerance" in path.read_text()}
    assert warned == {"net_tucker_int8_u8_reduced.md"}


def test_without_rounds_the_network_is_the_original(tmp_path):
    write_documents(tmp_path, {})
    # A later value of an option overrides an earlier one.
    done = CliRunner().invoke(summarize, [*arguments(tmp_path), "--plans=", *NO_ROUNDS])
    assert done.exit_code == 0, done.output
    result = read_json(tmp_path / "result.json")
    assert (result["rounds"], result["finetune"]["steps"]) == (0, 0)
    accuracy = result["accuracy"]
    assert accuracy["decomposed"] == accuracy["finetuned"] == accuracy["original"] == 92.0
    assert read_json(tmp_path / "curve.json") == []


def test_the_result_names_the_int8_file_of_each_device(outputs):
    int8 = outputs["result"]["int8"]
    assert int8["devices"] == {"phone": "s8.onnx", "board": "u8_reduced.onnx"}
    assert int8["files"]["u8_reduced.onnx"] == {
        "activations": "uint8",
        "reduce_range": True,
        "accuracy": {"exported": 88.0, "validation": {"exported": 89.0}},
        "size_bytes": 1600,
        "kept_in_float": 0,
        "within_tolerance": False,
    }
    assert int8["files"]["s8.onnx"]["accuracy"]["exported"] == int8["accuracy"]["exported"]


def test_the_result_contains_the_original_in_int8(run, tmp_path):
    done = run(phone=controlled())
    assert done.exit_code == 0, done.output
    result = read_json(tmp_path / "result.json")
    control = result["control"]["int8"]
    assert control["accuracy"] == {"exported": 91.5, "validation": {"exported": 92.5}}
    assert control["size_bytes"] == {"original": 12_000, "compressed": 3000, "ratio": 4.0}
    assert control["latency_ms"]["phone"]["speedup"] == 2.5
    assert control["latency_ms"]["board"] == {"not_measured": "no int8 kernels"}
    latency = result["int8"]["latency_ms"]["phone"]
    over_control = [latency[f"speedup_over_control{suffix}"] for suffix in ("", "_low", "_high")]
    assert over_control == pytest.approx([2.0, 1.9, 2.1])
    assert read_json(tmp_path / "headlines.json")["control"]["int8"] == {
        "accuracy": {"exported": 91.5},
        "size_bytes": {"ratio": 4.0},
    }
    assert "the original in int8: 91.50 % top-1, 4.00x smaller" in done.stderr


def test_the_compressed_network_is_the_answer_to_a_search(run, tmp_path):
    done = run(phone=controlled(over=2.0))
    assert done.exit_code == 0, done.output
    search = read_json(tmp_path / "result.json")["search"]
    assert SEARCH.items() <= search.items()
    assert search["best"] == "compressed"
    assert "the compressed network is the answer to the target" in done.stderr
    names = {path.name for path in (tmp_path / "models/net_tucker").iterdir()}
    assert not any("control" in name for name in names)


def test_the_original_in_int8_is_the_answer_to_a_search(run, tmp_path):
    done = run(phone=controlled(over=0.9))
    assert done.exit_code == 0, done.output
    search = read_json(tmp_path / "result.json")["search"]
    assert search["best"] == "control"
    assert "the original in int8 is the answer to the target" in done.stderr
    assert search["reason"] in done.stderr
    # Both the original in int8 and the compressed network are delivered.
    folder = tmp_path / "models/net_tucker"
    names = {path.name for path in folder.iterdir()}
    for name in ("net_tucker_int8", "net_tucker_control_int8"):
        assert {f"{name}.onnx", f"{name}.md"} <= names
        assert search["reason"] in (folder / f"{name}.md").read_text()
    page = (folder / "net_tucker_control_int8.md").read_text()
    assert "| top-1 on the test images, % | 92.00 | 91.50 |  |" in page


def test_the_original_in_int8_is_the_answer_to_a_target_of_milliseconds(tmp_path):
    write_documents(tmp_path, {"phone": controlled()})
    ranks = {"select": "budget", "target": {"latency_ms": {"phone": 0.5}}}
    described = DESCRIBED | {"method": {"name": "tucker", "ranks": ranks}}
    changed = ["--search=", f"--described={json.dumps(described)}"]
    done = CliRunner().invoke(summarize, [*arguments(tmp_path), *changed])
    assert done.exit_code == 0, done.output
    target = read_json(tmp_path / "result.json")["target"]
    assert (target["met"], target["met_by_control"], target["best"]) == (True, True, "control")
    assert target["latency_ms"]["phone"]["control"] == 0.4
    assert (tmp_path / "models/net_tucker/net_tucker_control_int8.onnx").exists()


def test_the_result_names_its_version_configuration_and_command(outputs, tmp_path):
    result = outputs["result"]
    assert result["version"] == version("lowrank")
    assert result["configuration"] == digest(DESCRIBED["configuration"])
    assert f" {tmp_path / 'result.json'}" in result["command"]
    folder = tmp_path / "models/net_tucker"
    assert yaml.safe_load((folder / "params.yaml").read_text()) == {"finetune": {"steps": 10}}
    assert result["command"] in (folder / "net_tucker.md").read_text()


def test_the_metrics_are_a_selection_of_the_result(outputs):
    assert outputs["headlines"] == {
        "accuracy": {"exported": 88.5, "original": 92.0},
        "size_bytes": {"ratio": 3.0},
        "parameters": {"ratio": 3.0},
        "macs": {"ratio": 3.0},
        "finetune": {"steps": 30},
        "latency_ms": {
            device: {"compressed": {"p50": 1.0}, "speedup": 2.9} for device in ("phone", "board")
        },
        "int8": {
            "accuracy": {"exported": 88.25},
            "size_bytes": {"ratio": 8.0},
            "latency_ms": {"phone": {"compressed": {"p50": 1.0}, "speedup": 5.5}},
        },
        "control": {"int8": {"accuracy": {"exported": 91.5}, "size_bytes": {"ratio": 4.0}}},
    }


def test_latency_by_device(outputs):
    latency = {
        "original": {"p50": 3.0, "p90": 6.0, "p99": 12.0},
        "compressed": {"p50": 1.0, "p90": 2.0, "p99": 4.0},
        "speedup": 2.9,
        "speedup_low": 2.8,
        "speedup_high": 3.1,
    }
    assert outputs["result"]["latency_ms"] == {
        "board": latency,
        "phone": latency | {"others": {"threads_2": latency}},
    }
    others = outputs["result"]["int8"]["latency_ms"]["phone"]["others"]
    assert others["threads_2"]["speedup"] == 4.5
    assert outputs["result"]["conditions"]["board"] == {"load": 0.5, "warning": None}


def test_times_by_layer(outputs):
    times = outputs["times"]
    assert [row["device"] for row in times] == ["phone"] * 5 + ["board"] * 5
    assert times[1] == {
        "device": "phone",
        "layer": "second",
        "original_ms": 2.0,
        "compressed_ms": 0.75,
        "pointwise_ms": 0.25,
        "speedup": 2.6667,
    }


def test_a_measurement_of_an_earlier_version_is_an_error(run):
    old = measurement()
    del old["layers_ms"]
    result = run(phone=old)
    assert result.exit_code == 1
    message = "phone.json: this file was written by an earlier version of lowrank. Delete it"
    assert message in result.output


def test_delivered_files_describe_themselves(outputs, tmp_path):
    folder = tmp_path / "models/net_tucker"
    page = (folder / "net_tucker.md").read_text()
    assert "| top-1 on the test images, % | 92.00 | 91.50 | 88.50 |  |" in page
    assert "| second | tucker2 | 2, 3 |" in page
    model = onnx.load(folder / "net_tucker_int8.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["lowrank.accuracy_percent"])["this_file"] == 88.25
    assert json.loads(facts["lowrank.latency_ms"]).keys() == {"phone"}
    # The file for other hardware has its own measurements.
    model = onnx.load(folder / "net_tucker_int8_u8_reduced.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["lowrank.accuracy_percent"])["this_file"] == 88.0
    assert json.loads(facts["lowrank.size_bytes"])["compressed"] == 1600
    assert json.loads(facts["lowrank.latency_ms"]).keys() == {"board"}
    assert json.loads(facts["lowrank.latency_ms"])["board"]["not_measured"] == "no int8 kernels"
    assert facts["lowrank.precision"] == "int8"


def test_totals_over_rounds(outputs):
    result = outputs["result"]
    assert result["rounds"] == 2
    assert result["finetune"]["steps"] == 30
    assert result["finetune"]["seconds"] == pytest.approx(3.75, abs=0.06)
    assert result["export"] == {"max_abs_error": 1e-6, "relative_error": 1e-7}
    assert outputs["curve"] == [
        {"round": 1, "step": 10, "loss": 0.5},
        {"round": 2, "step": 20, "loss": 0.25},  # Steps are counted over all rounds.
    ]


def test_the_result_contains_only_nested_scalars(outputs):
    def scalars(document):
        for value in document.values():
            if isinstance(value, dict):
                yield from scalars(value)
            else:
                yield value

    assert all(isinstance(value, int | float | str | None) for value in scalars(outputs["result"]))


def test_there_is_a_record_for_every_layer(outputs):
    first, second, third, last = outputs["layers"]
    assert [record["layer"] for record in outputs["layers"]] == ["first", "second", "third", "last"]
    assert len({tuple(record) for record in outputs["layers"]}) == 1
    assert (first["form"], first["notes"]) == ("dense", "no gain")
    assert (third["form"], third["notes"]) == ("dense", "depthwise")
    assert "the method leaves this layer dense" in last["notes"]
    assert second == {
        "layer": "second",
        "form": "tucker2",
        "ranks": "2 x 3",
        "rank_names": "input x output",
        "full_ranks": "8 x 8",
        "parameters_original": 576,
        "parameters_compressed": 94,
        "macs_original": 36864,
        "macs_compressed": 6016,
        "macs_ratio": 6.1277,
        "relative_error": 0.123457,
        "notes": "at least 2",
    }
    for record in (first, third, last):
        assert record["parameters_compressed"] == record["parameters_original"]
        assert record["macs_compressed"] == record["macs_original"]


def test_operators_that_are_not_counted_cause_a_warning(run, tmp_path):
    after = export(1, 88.5)
    after["counts"]["not_counted"] = ["Loop"]
    done = run(after=after)
    assert done.exit_code == 0, done.output
    assert "warning: the MACs do not include Loop, which cannot be counted" in done.stderr
    assert read_json(tmp_path / "result.json")["macs"]["not_counted"] == "Loop"
    run(after=export(1, 88.5))
    assert "not_counted" not in read_json(tmp_path / "result.json")["macs"]


def test_the_images_for_choices_and_reports_are_stated(run, tmp_path):
    before = accuracies(original=92.0)
    before |= {
        "accuracy": before["accuracy"]["original"],
        "validation": {"from": "test", "images": 60, "warning": "too good to be true"},
        "reported": {"from": "test", "images": 40},
    }
    done = run(original=before)
    assert done.exit_code == 0, done.output
    result = read_json(tmp_path / "result.json")
    assert result["validation"] == before["validation"]
    assert result["reported"] == before["reported"]
    assert "warning: too good to be true" in done.stderr
    page = (tmp_path / "models/net_tucker/net_tucker.md").read_text()
    assert "| top-1 on 40 test images, % | 92.00 | 91.50 | 88.50 |  |" in page
    assert "Choices were made on 60 test images that are not used for the reported" in page
    assert "**Warning:** too good to be true" in page


def test_the_result_contains_the_expected_and_the_measured_accuracy(run, tmp_path):
    plan = replace(PLANS[1], expected=Expected(1000, 93.0, 71.5, 10.0))
    done = run(ranks2=plan.to_json())
    assert done.exit_code == 0, done.output
    assert "expected before fine-tuning: 71.50 % on 1000 images" in done.stderr
    validation = read_json(tmp_path / "result.json")["accuracy"]["validation"]
    assert (validation["expected"], validation["decomposed"]) == (71.5, 71.0)


class Errors(Classification):
    """A task whose metric is an error in pixels."""

    metric = Metric(
        "mae", "mean error", "error", unit="px", higher_is_better=False, best=0.0, digits=1
    )
    more_metrics = ()


def test_the_result_of_another_task_has_its_metric_and_its_words(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank.steps.summarize.get_task", {"classification": Errors()}.get)

    def renamed(document):
        return json.loads(json.dumps(document).replace('"top1"', '"mae"'))

    int8, control = renamed(INT8), renamed(CONTROL)
    documents = {"before": export(3, 4.0), "after": export(1, 5.5)}
    done = run(
        **{name: renamed(document) for name, document in documents.items()},
        **{"int8/report": int8, "control/report": control},
        original={"accuracy": {"validation": 4.5, "test": 4.0}},
    )
    assert done.exit_code == 0, done.output
    assert "4.0 px -> 5.5 px mean error, 3.00x fewer MACs" in done.stderr
    accuracy = read_json(tmp_path / "result.json")["accuracy"]
    assert (accuracy["original"], accuracy["exported"]) == (4.0, 5.5)
    card = (tmp_path / "models/net_tucker/net_tucker.md").read_text()
    assert "mean error on the test images, px | 4.0 | 91.5 | 5.5 |" in card
    assert "top-1" not in card
    properties = onnx.load(tmp_path / "models/net_tucker/net_tucker.onnx").metadata_props
    keys = {prop.key for prop in properties}
    assert "lowrank.accuracy" in keys
    assert "lowrank.accuracy_percent" not in keys
