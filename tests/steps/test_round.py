"""The steps of one round, run one after the other on a toy network."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from photos import write_flat_photos
from toy import assert_same_weights, toy

from lowrank.cli import main
from lowrank.config.network_source import NetworkSource
from lowrank.core.plans import Factored, Plan, PlannedLayer
from lowrank.core.stored import read_header, read_tensors, write_tensors
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.files import read_json, write_json
from lowrank.surgery.finding import layer_table
from lowrank.surgery.input_moments import input_moments
from lowrank.surgery.states import State, put_factors, read_state, write_state
from lowrank.surgery.stored_moments import layer_moments, write_moments

TOY = NetworkSource(network="toy")
LAYERS = {"conv1": "tucker1", "conv2": "tucker2", "classifier": "svd"}
FULL_RANKS = {"conv1": (8,), "conv2": (8, 8), "classifier": (8,)}
RANKS = {"conv1": (4,), "conv2": (5, 6), "classifier": (3,)}
RECIPE = {
    "steps": 4,
    "batch_size": 40,
    "learning_rate": 0.01,
    "device": "cpu",
    "precision": "float32",
    "threads": 1,
    "curve_every_steps": 2,
}


def lowrank(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(tmp_path, register_network, restored_torch, monkeypatch):
    """Create a folder with the network before the round and its layer table."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    spec = register_network(toy, "toy")
    write_state(tmp_path / "original.safetensors", State(spec, toy(seed=2), {}))
    write_json(tmp_path / "table.json", layer_table("toy").to_json())
    return tmp_path


def plan_with(ranks):
    costs = {"parameters": (2, 1), "macs": (2, 1)}
    return Plan(
        tuple(
            PlannedLayer(name, LAYERS[name], layer_ranks, layer_ranks, **costs)
            for name, layer_ranks in ranks.items()
        )
    )


def calibrate(folder, dataset, images=40, splits=""):
    return lowrank(
        "calibrate",
        *("--network", "toy"),
        *("--state", folder / "original.safetensors"),
        *("--table", folder / "table.json"),
        *("--layers", json.dumps(LAYERS)),
        *("--dataset", dataset),
        *("--splits", splits),
        *("--images", images),
        *("--threads", 1),
        *("--moments", folder / "moments.safetensors"),
    )


def decompose(folder, plan, moments="", dataset=None, splits=""):
    """Decompose all layers of a plan. With a dataset, decompose them sequentially."""
    write_json(folder / "ranks.json", plan.to_json())
    before = []
    for layer in plan.layers:
        factors = folder / f"factors/{layer.name}.safetensors"
        sequential = {
            "--original": folder / "original.safetensors",
            "--before": " ".join(map(str, before)),
            "--splits": splits,
            "--dataset": dataset,
            "--images": 200,
        }
        before.append(factors)
        lowrank(
            "decompose",
            *("--network", "toy"),
            *("--moments", moments),
            *("--state", folder / "original.safetensors"),
            *("--table", folder / "table.json"),
            *("--plan", folder / "ranks.json"),
            *("--layer", layer.name),
            *("--threads", 1),
            *("--factors", factors),
            *(word for option in sequential.items() for word in option if dataset),
        )


def finetune(
    folder,
    dataset,
    outputs="after",
    round_=1,
    test=True,
    teacher="",
    layers=LAYERS,
    options=(),
    **changes,
):
    return lowrank(
        "finetune",
        *("--network", "toy"),
        *("--previous", folder / "original.safetensors"),
        *("--factors", " ".join(str(folder / f"factors/{name}.safetensors") for name in layers)),
        *("--round", round_),
        *("--method", "mine"),
        *("--dataset", dataset),
        *("--settings", json.dumps(RECIPE | changes)),
        *("--teacher", teacher),
        *("--resume", folder / "resume" / "state.pt"),
        *("--state", folder / outputs / "model.safetensors"),
        *("--metrics", folder / outputs / "metrics.json"),
        *("--curve", folder / outputs / "curve.json"),
        *("--timing", folder / outputs / "timing.json"),
        *options,
        *("--test", test),
    )


def test_ranks_are_chosen_for_every_layer(folder):
    lowrank(
        "select_ranks",
        *("--network", "toy"),
        *("--state", folder / "original.safetensors"),
        *("--table", folder / "table.json"),
        *("--layers", json.dumps(LAYERS)),
        *("--settings", json.dumps({"select": "vbmf", "weaken": 0.5})),
        *("--threads", 1),
        *("--plan", folder / "ranks.json"),
    )
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    assert {layer.name: layer.factorization for layer in plan.layers} == LAYERS
    table = layer_table("toy")
    for layer in plan.layers:
        assert layer.macs[0] == table[layer.name].dense_macs
        assert layer.is_dense or layer.macs[1] < layer.macs[0]


def test_full_ranks_do_not_change_the_outputs(folder, tiny_folder):
    decompose(folder, plan_with(FULL_RANKS))
    finetune(folder, tiny_folder, steps=0)
    before = read_state(folder / "original.safetensors", TOY)
    after = read_state(folder / "after/model.safetensors", TOY)
    assert {name: f.factorization for name, f in after.factored.items()} == LAYERS
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected, actual = (state.network.eval()(images) for state in (before, after))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_header_contains_the_error_of_the_factors(folder):
    decompose(folder, plan_with({"classifier": (3,)}))
    weight = toy(seed=2).classifier.weight.detach().numpy()
    singular = np.linalg.svd(weight.astype(float), compute_uv=False)
    expected = np.sqrt((singular[3:] ** 2).sum() / (singular**2).sum())
    header = read_header(folder / "factors/classifier.safetensors")
    assert header["relative_error"] == pytest.approx(expected, rel=1e-3)


def test_factors_for_activations_have_a_smaller_error_of_outputs(folder, tiny_folder):
    calibrate(folder, tiny_folder)
    original = read_state(folder / "original.safetensors", TOY).network.eval()
    data = open_dataset(tiny_folder)
    images = EvaluationBatches(data.train, read_state(folder / "original.safetensors", TOY).spec)[
        0
    ][0]
    recorded, errors = {}, {}
    original.conv2.register_forward_pre_hook(
        lambda _, inputs: recorded.setdefault("inputs", inputs[0])
    )
    with torch.inference_mode():
        original(images)
        expected = original.conv2(recorded["inputs"])
    for norm, moments in (("weight", ""), ("activation", folder / "moments.safetensors")):
        decompose(folder, plan_with({"conv2": (5, 6)}), moments)
        finetune(folder, tiny_folder, norm, layers={"conv2": "tucker2"}, steps=0)
        small = read_state(folder / norm / "model.safetensors", TOY).network.eval()
        with torch.inference_mode():
            errors[norm] = float((small.conv2(recorded["inputs"]) - expected).norm())
    assert errors["activation"] < 0.95 * errors["weight"]


def test_too_few_images_cause_a_warning(folder, tiny_folder):
    assert "warning" not in calibrate(folder, tiny_folder).output
    output = calibrate(folder, tiny_folder, images=1).output
    assert "warning: classifier: only 1 samples for a covariance of" in output
    assert "moments of 3 layers on 1 images" in output


@pytest.fixture
def splits(tiny_folder, tmp_path):
    """Write the splits of a network with its own calibration images, which are red."""
    photos = write_flat_photos(tmp_path / "photos", 30)
    arguments = {"model": "toy", "dataset": tiny_folder, "validation": "{}"}
    arguments |= {"calibration": photos, "output": tmp_path / "splits"}
    output = lowrank("splits", *(f"--{key}={value}" for key, value in arguments.items())).output
    assert f"30 of {photos} for calibration" in output
    return tmp_path / "splits"


def test_moments_of_the_users_calibration_images(folder, tiny_folder, splits):
    calibrate(folder, tiny_folder, splits=splits)
    state, data = (
        read_state(folder / "original.safetensors", TOY),
        open_dataset(tiny_folder, splits),
    )
    images = EvaluationBatches(data.calibration, state.spec)[0][0]
    expected = input_moments(state.network, [layer_table("toy")["conv1"]], [images])["conv1"]
    stored = layer_moments(folder / "moments.safetensors", "conv1")
    np.testing.assert_allclose(stored.covariance, expected.covariance, rtol=1e-6)
    calibrate(folder, tiny_folder)
    default = layer_moments(folder / "moments.safetensors", "conv1")
    assert not np.allclose(default.covariance, expected.covariance, rtol=0.1)


def test_sequential_decomposition_for_the_users_calibration_images(folder, tiny_folder, splits):
    factors = []
    for own in ("", splits):
        decompose(folder, plan_with({"conv2": (5, 6)}), dataset=tiny_folder, splits=own)
        factors.append((folder / "factors/conv2.safetensors").read_bytes())
    assert factors[0] != factors[1]


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["weights", "moments", "sequential"])
def test_one_job_for_all_layers_writes_the_same_factors(folder, tiny_folder, kind):
    moments = folder / "moments.safetensors" if kind == "moments" else ""
    if moments:
        calibrate(folder, tiny_folder)
    sequential = kind == "sequential"
    plan = plan_with({"conv1": (4,), "conv2": (5, 6), "classifier": None})
    dense = replace(plan["classifier"], dense_because="nothing would be saved")
    plan = replace(plan, layers=(*plan.layers[:2], dense))
    decompose(folder, plan, moments, dataset=tiny_folder if sequential else None)
    original = {"original": folder / "original.safetensors", "dataset": tiny_folder, "images": 200}
    output = lowrank(
        "decompose_round",
        *("--network", "toy"),
        *("--moments", moments),
        *("--state", folder / "original.safetensors"),
        *("--table", folder / "table.json"),
        *("--plan", folder / "ranks.json"),
        *("--threads", 1, "--layers-at-once", 2, "--factors", folder / "together"),
        *(f"--{name}={value}" for name, value in original.items() if sequential),
    ).output
    assert "conv2: ranks 5, 6: relative error" in output
    assert "classifier: not replaced: nothing would be saved" in output
    apart, together = (
        {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        for name in ("factors", "together")
    )
    assert together == apart
    assert len(together) == 3


def test_fine_tuning_takes_a_folder_of_factors(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    states = []
    for options in ((), ("--factors", folder / "factors")):
        finetune(folder, tiny_folder, options=options)
        states.append((folder / "after/model.safetensors").read_bytes())
    assert states[0] == states[1]


def test_moments_of_another_round_are_an_error(folder, tiny_folder):
    write_moments(folder / "moments.safetensors", {})
    with pytest.raises(AssertionError, match="holds no moments of layer 'conv2'"):
        decompose(folder, plan_with({"conv2": (5, 6)}), folder / "moments.safetensors")


def test_outputs_of_finetune(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    finetune(folder, tiny_folder)
    after = folder / "after"
    state = read_state(after / "model.safetensors", TOY)
    assert {name: f.ranks for name, f in state.factored.items()} == RANKS
    accuracy = read_json(after / "metrics.json")["accuracy"]
    assert accuracy.keys() == {"decomposed", "finetuned"}
    assert all(parts.keys() == {"validation", "test"} for parts in accuracy.values())
    curve = read_json(after / "curve.json")
    assert [(point["round"], point["step"]) for point in curve] == [(1, 2), (1, 4)]
    timing = read_json(after / "timing.json")
    assert timing["steps"] == 4
    assert timing["seconds"] >= 0
    assert not (folder / "resume/state.pt").exists()


def test_the_same_inputs_give_the_same_bytes(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    for outputs in ("first", "second"):
        finetune(folder, tiny_folder, outputs)
    for name in ("model.safetensors", "metrics.json", "curve.json"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()


def test_each_round_has_its_own_order_of_images(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    finetune(folder, tiny_folder, "one", round_=1)
    finetune(folder, tiny_folder, "two", round_=2)
    losses = [
        [point["loss"] for point in read_json(folder / name / "curve.json")]
        for name in ("one", "two")
    ]
    assert losses[0] != losses[1]


def test_a_round_learns_from_the_original(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    original, weight = folder / "original.safetensors", {"weight": 1.0}
    finetune(folder, tiny_folder, "labels")
    outputs = folder / "outputs.safetensors"
    lowrank(
        "teacher_outputs",
        *("--network", "toy"),
        *("--state", original),
        *("--dataset", tiny_folder),
        *("--settings", json.dumps({"threads": 1, "device": "cpu", "precision": "float32"})),
        *("--output", outputs),
    )
    finetune(folder, tiny_folder, "plain", distill=weight, teacher=outputs)
    on_augmented = weight | {"images": "augmented"}
    finetune(folder, tiny_folder, "augmented", distill=on_augmented, teacher=original)
    labels, plain, augmented = (
        read_json(folder / name / "curve.json")[-1]["loss"]
        for name in ("labels", "plain", "augmented")
    )
    assert max(plain, augmented) < labels
    assert plain != augmented
    for settings in ({"distill": weight}, {"teacher": original}):
        with pytest.raises(AssertionError, match=r"`distill\.weight` is [01] and --teacher is"):
            finetune(folder, tiny_folder, **settings)


def test_a_round_without_steps_only_measures(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    finetune(folder, tiny_folder, steps=0)
    accuracy = read_json(folder / "after/metrics.json")["accuracy"]
    assert accuracy["decomposed"] == accuracy["finetuned"]
    assert read_json(folder / "after/curve.json") == []


def test_a_layer_that_stays_dense(folder, tiny_folder):
    plan = Plan(
        tuple(
            PlannedLayer(name, LAYERS[name], (), (9,), (2, 2), (2, 2), "costs more than it does")
            for name in LAYERS
        )
    )
    decompose(folder, plan)
    header = read_header(folder / "factors/conv1.safetensors")
    assert header == {"dense_because": "costs more than it does"}
    finetune(folder, tiny_folder, steps=0)
    after = read_state(folder / "after/model.safetensors", TOY)
    assert after.factored == {}
    assert_same_weights(after.network, toy(seed=2))


def test_divergence_leaves_no_outputs(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    broken = read_header(folder / "factors/conv2.safetensors")
    tensors = {
        f"{index}.weight": np.full(
            (layer["out_channels"], layer["in_channels"], *layer["kernel"]), 1e30, np.float32
        )
        for index, layer in enumerate(broken["sequence"])
    } | {"2.bias": np.zeros(8, np.float32)}
    write_tensors(folder / "factors/conv2.safetensors", tensors, broken)
    with pytest.raises(AssertionError, match=r"loss is not finite at step 2 .*learning rate"):
        finetune(folder, tiny_folder)
    assert not list((folder / "after").glob("*"))


def test_a_missing_file_of_factors_is_named(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    (folder / "factors/conv2.safetensors").unlink()
    with pytest.raises(AssertionError, match=r"factors/conv2\.safetensors: no such file"):
        finetune(folder, tiny_folder)


def test_a_factored_layer_can_be_decomposed_again(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    finetune(folder, tiny_folder, steps=0)
    (folder / "after/model.safetensors").replace(folder / "original.safetensors")
    decompose(folder, plan_with(FULL_RANKS | RANKS))
    # At the ranks that the layers already have, nothing is lost.
    for layer in LAYERS:
        header = read_header(folder / f"factors/{layer}.safetensors")
        assert header["relative_error"] < 1e-5
    decompose(folder, plan_with({"conv2": (2, 2), "classifier": (1,)}))
    for layer in ("conv2", "classifier"):
        assert read_header(folder / f"factors/{layer}.safetensors")["relative_error"] > 0.1
    finetune(folder, tiny_folder, steps=0)
    after = read_state(folder / "after/model.safetensors", TOY)
    assert after.factored["conv2"].ranks == (2, 2)
    assert after.factored["classifier"].ranks == (1,)


def test_rounds_before_the_last_do_not_use_the_test_images(folder, tiny_folder):
    decompose(folder, plan_with(RANKS))
    finetune(folder, tiny_folder, test=False)
    accuracy = read_json(folder / "after/metrics.json")["accuracy"]
    assert set(accuracy["decomposed"]) == set(accuracy["finetuned"]) == {"validation"}


def select(
    folder,
    settings,
    dataset="",
    first="",
    layers=None,
    plan="ranks.json",
    moments="",
    others=(),
    options=(),
):
    return lowrank(
        "select_ranks",
        *("--network", "toy"),
        *("--state", folder / "original.safetensors"),
        *("--table", folder / "table.json"),
        *("--layers", json.dumps(LAYERS if layers is None else layers)),
        *("--all-layers", json.dumps(LAYERS)),
        *("--settings", json.dumps(settings)),
        *("--alternatives", json.dumps(others)),
        *("--dataset", dataset, "--moments", moments, "--first", first),
        *("--threads", 1),
        *("--plan", folder / plan),
        *("--method", "mine"),
        *options,
    )


def test_a_control_needs_no_images_for_a_target(folder):
    select(folder, {"select": "budget", "target": {"macs": 0.5}}, layers={})
    assert Plan.read(folder / "ranks.json").layers == ()


def share_of_macs(folder, plan):
    """Return the share of the original's MACs that the whole planned network has."""
    total = sum(layer.dense_macs for layer in layer_table("toy").layers)
    saved = sum(layer.macs[0] - layer.macs[1] for layer in plan.layers)
    return 1 - saved / total


@pytest.mark.parametrize("aware", [False, True])
def test_ranks_that_meet_a_target(folder, tiny_folder, aware):
    settings = {"select": "budget", "target": {"macs": 0.5}, "images": 20, "negligible": 0}
    moments = ""
    if aware:
        calibrate(folder, tiny_folder)
        moments = folder / "moments.safetensors"
    done = select(folder, settings, dataset=tiny_folder, moments=moments)
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    assert share_of_macs(folder, plan) <= 0.5
    assert set(plan.shares) == set(LAYERS)
    assert "conv2 alone, with tucker2 at " in done.stderr
    assert "sum of the divergences with one layer decomposed at a time:" in done.stderr
    one_layer = {"conv2": LAYERS["conv2"]}
    select(folder, settings, first=folder / "ranks.json", layers=one_layer, plan="later.json")
    later = Plan.from_json(read_json(folder / "later.json"))
    assert later["conv2"].ranks == plan["conv2"].ranks == plan.shares["conv2"].ranks


def test_a_layer_gets_the_factorization_with_the_smallest_loss(folder, tiny_folder):
    """The second convolution is a product of columns and rows, which spatial SVD represents."""
    before = read_state(folder / "original.safetensors", TOY)
    shape = before.network.conv2.weight.shape
    generator = torch.Generator().manual_seed(0)
    columns, rows = (torch.randn(1, size, 3, generator=generator) for size in shape[:2])
    with torch.no_grad():
        before.network.conv2.weight.copy_(torch.einsum("rtj,rsi->tsij", columns, rows) / 3)
    write_state(folder / "original.safetensors", before)
    settings = {"select": "budget", "target": {"macs": 0.45}, "images": 20, "negligible": 0}
    select(folder, settings, dataset=tiny_folder, others=["spatial_svd", "channel_svd"])
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    assert plan["conv2"].factorization == "spatial_svd"
    assert plan["classifier"].factorization == "svd"
    decompose(folder, plan)
    finetune(folder, tiny_folder, steps=0)
    after = read_state(folder / "after/model.safetensors", TOY)
    assert after.factored["conv2"].factorization == "spatial_svd"


def test_an_unreachable_target_leaves_no_plan(folder, tiny_folder):
    settings = {"select": "budget", "target": {"macs": 0.001}, "images": 20}
    with pytest.raises(AssertionError, match=r"ranks\.target\.macs: 0\.001 of the network"):
        select(folder, settings, dataset=tiny_folder)
    assert not (folder / "ranks.json").exists()


def test_ranks_by_sensitivity_are_chosen_once_for_all_rounds(folder, tiny_folder):
    settings = {"select": "sensitivity", "ratio": 1.5, "trial_ratio": 2.0, "images": 20}
    done = select(folder, settings, dataset=tiny_folder)
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    assert set(plan.sensitivity) == set(plan.shares) == set(LAYERS)
    order = ", ".join(sorted(plan.sensitivity, key=plan.sensitivity.get, reverse=True))
    assert f"most sensitive first: [{order}]" in done.stderr
    one_layer = {"conv2": LAYERS["conv2"]}
    select(folder, settings, first=folder / "ranks.json", layers=one_layer, plan="later.json")
    later = Plan.from_json(read_json(folder / "later.json"))
    assert later["conv2"].chosen == plan.shares["conv2"].ranks == plan["conv2"].chosen
    assert not later.sensitivity


def test_negligible_layers_stay_dense_and_get_no_share(folder, tiny_folder):
    settings = {"select": "sensitivity", "ratio": 1.5, "images": 20, "negligible": 0.3}
    select(folder, settings, dataset=tiny_folder)
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    dense = [
        layer.name for layer in plan.layers if "nothing to gain" in (layer.dense_because or "")
    ]
    assert dense
    assert set(plan.shares) == set(LAYERS) - set(dense)


def test_a_table_of_ranks_also_replaces_negligible_layers(folder):
    table = {"classifier": [3]}
    select(folder, {"select": "fixed", "table": table})
    plan = Plan.from_json(read_json(folder / "ranks.json"))
    assert plan["classifier"].ranks == (3,)
    assert not any("nothing to gain" in (layer.dense_because or "") for layer in plan.layers)


def test_sequential_decomposition_reduces_the_error_of_the_outputs(folder, tiny_folder):
    """The outputs are closer to the original's than if each layer is decomposed independently."""
    data = open_dataset(tiny_folder)
    original = read_state(folder / "original.safetensors", TOY)
    images, _ = EvaluationBatches(data.train.sample(200), original.spec)[0]
    expected = original.network.eval()(images).detach()
    plan = plan_with({"conv1": (4,), "conv2": (5, 6)})
    calibrate(folder, tiny_folder, images=200)
    errors = []
    for options in ({"moments": folder / "moments.safetensors"}, {"dataset": tiny_folder}):
        decompose(folder, plan, **options)
        network = read_state(folder / "original.safetensors", TOY).network
        for name in ("conv1", "conv2"):
            file = folder / f"factors/{name}.safetensors"
            sequence = Factored.from_json(read_header(file)).sequence
            put_factors(network, name, sequence, read_tensors(file), source=name)
        errors.append(float((network.eval()(images).detach() - expected).norm()))
    assert 0 < errors[1] < 0.9 * errors[0]


def test_a_layer_that_must_not_be_replaced_stays_dense_with_the_reason(folder, tiny_folder):
    write_json(folder / "replaceable.json", {"images": 8, "stays_dense": {"conv2": "it counts"}})
    for settings in (
        {"select": "vbmf", "weaken": 0.5},
        {"select": "budget", "target": {"macs": 0.7}},
    ):
        select(
            folder, settings, tiny_folder, options=("--replaceable", folder / "replaceable.json")
        )
        plan = Plan.read(folder / "ranks.json")
        assert plan["conv2"].dense_because == "it counts"
        assert any(not layer.is_dense for layer in plan.layers)


@pytest.fixture
def trained(folder, tiny_folder):
    """Train the network before the round on the tiny dataset."""
    (folder / "factors").mkdir()
    finetune(folder, tiny_folder, layers={}, steps=80, learning_rate=0.1)
    (folder / "after/model.safetensors").replace(folder / "original.safetensors")
    return folder


RUINOUS = {
    "ratio": {"select": "ratio", "ratio": 30.0},
    "energy": {"select": "energy", "energy": 0.05},
    "sensitivity": {"select": "sensitivity", "ratio": 30.0, "images": 40},
    "budget": {"select": "budget", "target": {"macs": 0.16}, "images": 40},
    "fixed": {"select": "fixed", "table": {name: [1] * len(r) for name, r in RANKS.items()}},
}


@pytest.mark.parametrize("rule", RUINOUS)
def test_the_error_for_ruinous_ranks_names_the_nearest_milder_setting(trained, tiny_folder, rule):
    settings = RUINOUS[rule] | ({} if rule == "fixed" else {"negligible": 0})
    with pytest.raises(AssertionError, match="is expected to fall from") as refused:
        select(trained, settings, tiny_folder)
    message = str(refused.value)
    assert "`largest_drop` allows only 50%" in message
    assert "`methods.mine.ranks.largest_drop: 1`" in message
    assert not (trained / "ranks.json").exists()
    # The milder setting is accepted.
    pattern = r"nearest setting that keeps enough accuracy is `(.*?)` "
    milder = re.search(pattern, message).group(1)
    select(trained, settings | yaml.safe_load(f"{{{milder}}}"), tiny_folder)
    expected = Plan.read(trained / "ranks.json").expected
    assert expected is None or expected.drop <= 0.5
    done = select(trained, settings | {"largest_drop": 1}, tiny_folder)
    expected = Plan.read(trained / "ranks.json").expected
    assert expected.drop > 0.5
    line = f"accuracy {expected.before:.2f} % -> {expected.after:.2f} % on {expected.images} images"
    assert line in done.stderr


def test_the_expected_accuracy_is_that_of_the_factors(trained, tiny_folder):
    settings = {"select": "fixed", "table": RANKS, "largest_drop": 1}
    for moments in ("", trained / "moments.safetensors"):
        if moments:
            calibrate(trained, tiny_folder)
        select(trained, settings, tiny_folder, moments=moments)
        plan = Plan.read(trained / "ranks.json")
        decompose(trained, plan, moments)
        finetune(trained, tiny_folder, steps=0)
        accuracy = read_json(trained / "after/metrics.json")["accuracy"]
        assert plan.expected.after == accuracy["decomposed"]["validation"]


def test_ranks_are_not_evaluated_without_images_or_on_request(folder, tiny_folder):
    settings = {"select": "fixed", "table": RANKS}
    select(folder, settings)
    assert Plan.read(folder / "ranks.json").expected is None
    select(folder, settings, tiny_folder, options=("--predict", False))
    assert Plan.read(folder / "ranks.json").expected is None


def test_factors_that_ruin_the_network_are_refused_before_training(trained, tiny_folder):
    """`finetune` checks the drop if `select_ranks` has not evaluated the ranks."""
    decompose(trained, plan_with({name: (1,) * len(ranks) for name, ranks in RANKS.items()}))
    options = ("--largest-drop", 0.5, "--method", "mine")
    with pytest.raises(
        AssertionError, match=r"expected to fall from .*mine\.ranks\.largest_drop: 1"
    ):
        finetune(trained, tiny_folder, "ruined", options=options)
    assert not (trained / "ruined").exists()
    finetune(trained, tiny_folder, "ruined", options=("--largest-drop", 1))
    decompose(trained, plan_with({"conv2": (8, 8)}))
    done = finetune(trained, tiny_folder, "kept", layers={"conv2": "tucker2"}, options=options)
    assert "expected before any fine-tuning: accuracy" in done.stderr


def test_training_that_makes_the_network_worse_causes_a_warning(trained, tiny_folder):
    done = finetune(trained, tiny_folder, layers={}, steps=6, learning_rate=2.0)
    accuracy = read_json(trained / "after/metrics.json")["accuracy"]
    lost = accuracy["decomposed"]["validation"] - accuracy["finetuned"]["validation"]
    assert lost > 0
    assert f"warning: training made the network worse, by {lost:.2f} points" in done.stderr
