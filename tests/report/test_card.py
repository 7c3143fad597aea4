"""The delivered files and their model cards."""

import json
import subprocess

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from lowrank.core.delivery import own_files, remove_own_files
from lowrank.errors import UserError
from lowrank.report.card import deliver, markdown, metadata
from lowrank.report.card import facts_of as facts_of_file
from lowrank.report.card_input import input_lines
from lowrank.tasks import get_task

METRICS = get_task("classification").metrics

SPEC = {
    "name": "net",
    "input_shape": [3, 8, 8],
    "num_classes": 10,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "channel_order": "rgb",
    "resize": None,
    "interpolation": "bilinear",
}
DESCRIBED = {
    "name": "net_tucker",
    "network": {"network": "net"},
    "input": SPEC,
    "data": "photos",
    "method": {"name": "tucker", "ranks": {"select": "vbmf"}},
    "configuration": {"finetune": {"steps": 3}},
}
LAYERS = [
    {"layer": "first", "form": "dense", "ranks": "", "macs_ratio": 1.0},
    {"layer": "second", "form": "tucker2", "ranks": "2 x 3", "macs_ratio": 4.0},
]


def latency(compressed):
    return {
        "original": {"p50": 4.0},
        "compressed": {"p50": compressed},
        "speedup": 4 / compressed,
        "speedup_low": 3.5 / compressed,
        "speedup_high": 4.5 / compressed,
    }


RESULT = {
    "accuracy": {"original": 93.0, "exported": 92.5},
    "parameters": {"original": 1000, "compressed": 500, "ratio": 2.0},
    "macs": {"original": 5000, "compressed": 1000, "ratio": 5.0},
    "size_bytes": {"original": 4000, "compressed": 2000, "ratio": 2.0},
    "latency_ms": {"board": latency(1.0) | {"others": {"threads_2": latency(0.8)}}},
    "energy_mj": {"board": {"original": 8.0, "compressed": 2.0}},
    "environment": {
        "board": {"cpu": "A72", "threads": 1, "provider": "CPU", "runtime_version": "1.31"}
    },
    "int8": {
        "accuracy": {"exported": 92.0},
        "size_bytes": {"original": 4000, "compressed": 500, "ratio": 8.0},
        "latency_ms": {"board": {"not_measured": "no int8 kernels"}},
    },
    "control": {
        "int8": {
            "accuracy": {"exported": 92.8},
            "size_bytes": {"original": 4000, "compressed": 1000, "ratio": 4.0},
            "latency_ms": {"board": latency(2.0)},
        }
    },
    "command": "snakemake results/net_tucker.json",
    "commit": "0123abc",
    "version": "1.2.3",
}


def facts_of(precision="float32", result=RESULT, **described):
    return facts_of_file(precision, result, DESCRIBED | described, LAYERS, METRICS)


@pytest.fixture
def model(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph), path)
    return path


def names_in(folder):
    return {path.name for path in folder.iterdir()} - {".gitignore"}


def test_files_and_cards_contain_the_same_facts(tmp_path, model):
    before = model.read_bytes()
    folder = tmp_path / "models/net_tucker"
    deliver(folder, {"float32": model, "int8": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    assert model.read_bytes() == before
    assert own_files(folder) == {path.name for path in folder.iterdir()}
    assert sorted(names_in(folder)) == [
        *("net_tucker.md", "net_tucker.onnx", "net_tucker_int8.md", "net_tucker_int8.onnx"),
        "params.yaml",
    ]
    assert yaml.safe_load((folder / "params.yaml").read_text()) == DESCRIBED["configuration"]
    for name, precision in (("net_tucker", "float32"), ("net_tucker_int8", "int8")):
        delivered = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(delivered)
        assert delivered.graph == onnx.load(model).graph
        facts = facts_of(precision)
        properties = {entry.key: entry.value for entry in delivered.metadata_props}
        assert properties == metadata(facts)
        assert (folder / f"{name}.md").read_text() == markdown(name, facts, METRICS)


def test_each_file_has_a_twin_with_a_fixed_batch_if_it_is_requested(tmp_path, model):
    described = DESCRIBED | {"fixed_batch": 4}
    open_model = onnx.load(model)
    for entry in (*open_model.graph.input, *open_model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(open_model, model)
    folder = tmp_path / "models/net_tucker"
    deliver(folder, {"float32": model, "int8": model}, RESULT, described, LAYERS, METRICS)
    twins = {"net_tucker_batch4.onnx", "net_tucker_int8_batch4.onnx"}
    assert {name for name in names_in(folder) if "batch" in name} == twins
    for name in twins:
        twin = onnx.load(folder / name)
        sizes = [entry.type.tensor_type.shape.dim[0].dim_value for entry in twin.graph.input]
        assert set(sizes) == {4}
        file = onnx.load(folder / name.replace("_batch4", ""))
        assert twin.metadata_props == file.metadata_props


def test_earlier_files_are_replaced(tmp_path, model):
    folder = tmp_path / "models/net_tucker"
    deliver(folder, {"float32": model, "int8": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    assert names_in(folder) == {"net_tucker.md", "net_tucker.onnx", "params.yaml"}


def test_files_of_the_user_are_kept(tmp_path, model):
    folder = tmp_path / "models/net_tucker"
    own = ("__init__.py", "net_tucker.py", "net_tucker_notes.md", "sub/net_tucker.onnx")
    for name in own:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    deliver(folder, {"float32": model, "int8": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    assert {name: (folder / name).read_text() for name in own} == {name: name for name in own}
    assert names_in(folder) == {
        *("net_tucker.md", "net_tucker.onnx", "params.yaml"),
        *("__init__.py", "net_tucker.py", "net_tucker_notes.md", "sub"),
    }
    # Git lists the user's files, but not those of lowrank.
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    command = ["git", "-C", tmp_path, "ls-files", "--others", "--exclude-standard", "models"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert listed == sorted(f"models/net_tucker/{name}" for name in own)


@pytest.mark.parametrize("name", ["params.yaml", "net_tucker.md", ".gitignore"])
def test_a_file_of_the_user_with_a_needed_name_is_an_error(tmp_path, model, name):
    folder = tmp_path / "models/net_tucker"
    folder.mkdir(parents=True)
    (folder / name).write_text("*.tmp\n")
    with pytest.raises(UserError, match=f"net_tucker: contains {name}. lowrank would write"):
        deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "*.tmp\n"


def test_files_of_an_earlier_version_are_replaced(tmp_path, model):
    folder = tmp_path / "models/net_tucker"
    folder.mkdir(parents=True)
    old = ("net_tucker.onnx", "net_tucker_int8_s8.onnx", "net_tucker.md", "params.yaml")
    for name in (*old, "notes.txt"):
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*\n")
    deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    assert names_in(folder) == {"net_tucker.md", "net_tucker.onnx", "params.yaml", "notes.txt"}


def test_a_line_added_to_the_list_cannot_name_a_file_outside_the_folder(tmp_path, model):
    folder = tmp_path / "models/net_tucker"
    deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    (tmp_path / "models/mine").touch()
    with (folder / ".gitignore").open("a") as listed:
        listed.write("/../mine\n")
    remove_own_files(folder)
    assert not folder.exists()
    assert (tmp_path / "models/mine").exists()


def test_a_failure_leaves_earlier_files_unchanged(tmp_path, model):
    folder = tmp_path / "models/net_tucker"
    deliver(folder, {"float32": model}, RESULT, DESCRIBED, LAYERS, METRICS)
    with pytest.raises(FileNotFoundError):
        deliver(
            folder,
            {"float32": model, "int8": tmp_path / "missing.onnx"},
            RESULT,
            DESCRIBED,
            LAYERS,
            METRICS,
        )
    assert names_in(folder) == {"net_tucker.md", "net_tucker.onnx", "params.yaml"}
    assert list(folder.parent.iterdir()) == [folder]


def test_metadata_values_are_texts():
    properties = metadata(facts_of())
    assert properties["lowrank.data"] == "photos"
    assert json.loads(properties["lowrank.latency_ms"])["board"]["speedup"] == 4.0
    assert json.loads(properties["lowrank.layers"])[1] == {
        "layer": "second",
        "form": "tucker2",
        "ranks": "2 x 3",
    }
    assert json.loads(properties["lowrank.configuration"]) == {"finetune": {"steps": 3}}
    assert "lowrank.commit" not in metadata(facts_of(result=RESULT | {"commit": None}))


def test_the_card_of_a_file_in_float():
    page = markdown("net_tucker", facts_of(), METRICS)
    assert "| top-1 on the test images, % | 93.00 | 92.80 | 92.50 |  |" in page
    assert "| multiply-accumulates for one image | 5,000 | 5,000 | 1,000 | 5.00x fewer |" in page
    assert "| 4.000 | 2.000 | 1.000 | 4.00x faster (3.50 to 4.50): A72, 1 thread, CPU, ONNX" in page
    assert "| energy of one run on board, mJ | 8.00 |  | 2.00 |  |" in page
    assert "(N, 3, 8, 8): rgb, pixels scaled to [0, 1], minus (0.5, 0.4, 0.3)" in page
    assert "  select: vbmf" in page
    assert "| second | tucker2 | 2, 3 |" in page
    assert "with lowrank 1.2.3, commit 0123abc.\n" in page
    assert "    snakemake results/net_tucker.json\n" in page
    assert "```yaml\nfinetune:\n  steps: 3\n```" in page
    assert "uncommitted" not in page


def test_the_card_of_uncommitted_changes():
    page = markdown("net", facts_of(result=RESULT | {"commit": "0123abc-dirty"}), METRICS)
    assert "commit 0123abc-dirty.\n\nTracked files had uncommitted changes." in page


def test_the_card_of_a_file_in_int8():
    page = markdown("net_tucker_int8", facts_of("int8"), METRICS)
    assert "in int8" in page
    assert "| top-1 on the test images, % | 93.00 | 92.80 | 92.00 |  |" in page
    assert "| size of the ONNX file, bytes | 4,000 | 1,000 | 500 | 8.00x smaller |" in page
    assert "| latency on board |  |  |  | not measured: no int8 kernels |" in page
    assert "energy" not in page


def test_the_card_shows_top5_and_resizing_if_they_exist():
    top5 = {"top5": {"original": 99.0, "exported": 98.5}}
    result = RESULT | {"accuracy": RESULT["accuracy"] | top5, "commit": None}
    page = markdown("net", facts_of(result=result, input=SPEC | {"resize": 10}), METRICS)
    assert "| top-5, % | 99.00 |  | 98.50 |  |" in page
    assert "shorter side resized to 10 (bilinear), centre-cropped, " in page
    assert "with lowrank 1.2.3.\n" in page


def test_the_card_shows_the_speedup_over_the_original_in_int8():
    values = {"": 2.0, "_low": 1.9, "_high": 2.2}
    over_control = {f"speedup_over_control{suffix}": value for suffix, value in values.items()}
    measured = {"board": latency(1.0) | over_control}
    page = markdown("net", facts_of(result=RESULT | {"latency_ms": measured}), METRICS)
    assert "(3.50 to 4.50), 2.00x faster (1.90 to 2.20) than the original in int8: A72" in page


def test_the_card_of_the_original_in_int8():
    answer = {"search": {"best": "control", "reason": "no trial keeps the target"}}
    facts = facts_of("control_int8", RESULT | answer)
    assert facts["method"]["name"] == "the original in int8"
    page = markdown("net_tucker_control_int8", facts, METRICS)
    assert "with all layers unchanged, in int8." in page
    assert "| top-1 on the test images, % | 93.00 | 92.80 |  |" in page
    assert "| size of the ONNX file, bytes | 4,000 | 1,000 | 4.00x smaller |" in page
    assert "| parameters | 1,000 | 1,000 | 1.00x fewer |" in page
    assert "| second | dense |" in page
    assert "is the original in int8, which is delivered next to" in page
    assert "no trial keeps the target." in page


def test_the_card_names_the_compressed_network_as_the_answer():
    answer = {"target": {"best": "compressed", "reason": "it is faster"}}
    page = markdown("net_tucker", facts_of(result=RESULT | answer), METRICS)
    assert "target of the method is the compressed network. Reason: it is faster." in page


def test_a_card_for_arrays_states_no_preparation_of_images():
    facts = facts_of(takes_arrays=True)
    assert facts["input"] == {"name": "net", "input_shape": [3, 8, 8], "num_classes": 10}
    text = markdown("net_tucker", facts, METRICS)
    assert (
        "- `images`, float32, (N, 3, 8, 8): arrays as they are in the dataset, not images." in text
    )
    assert "pixels" not in text
    assert "minus (0.5, 0.4, 0.3), divided by" in markdown("net_tucker", facts_of(), METRICS)


def test_a_card_lists_several_inputs():
    inputs = [
        {"name": "ids", "shape": [6], "type": "int64"},
        {"name": "n", "shape": [], "type": "float32"},
    ]
    spec = {"input_shape": [6], "num_classes": 0, "inputs": inputs}
    lines = input_lines({"onnx": "reader.onnx"}, spec)
    assert lines[0] == "- Names, types and open sizes are those of `reader.onnx`."
    assert "on `ids` (N, 6) of int64 and `n` (N) of float32: arrays as they are" in lines[1]
    spec = {"input_shape": [6], "num_classes": 2, "inputs": inputs[:1]}
    assert "`ids`, int64, (N, 6): arrays" in input_lines({"factory": "a:b"}, spec)[0]
