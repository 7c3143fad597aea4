"""Compare the latency model with measurements of whole networks.

    python benchmarks/latency_model.py [--networks resnet20 vgg16] [--float]

For each network, the layers are profiled as for a target of latency, in int8 or in float. Ten
random networks follow: each layer stays as it is or gets a random factorization of the recommended
method at random ranks. The error is that of the latency by the model against the latency in one
piece, which alternates with the original. One thread, one sample.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras_resnet50
import numpy as np
import torchvision_mobilenet
from data_aware import shipped
from torch import nn

import lowrank
from lowrank.compression.in_memory import Compression
from lowrank.compression.latency_target import HERE, export_of_network
from lowrank.compression.module_network import ModuleNetwork
from lowrank.config.device_kinds import create_device
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.layers import PlainLayer
from lowrank.factorize import grouped_sequence
from lowrank.files import read_json, write_json
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.latency_profile import Candidates, LatencyProfile
from lowrank.onnx_files.whole_networks import WholeNetworks
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.curves import rank_choices
from lowrank.ranks.negligible import leave_negligible
from lowrank.ranks.taken_layers import taken_layers
from lowrank.tasks import get_task

RESULTS = Path(__file__).parent / "results" / "latency_model.json"
IMAGENET = {"resnet50": keras_resnet50.trained, "mobilenet_v2": torchvision_mobilenet.trained}
COUNT = 10
SETTINGS: dict[str, Any] = {"threads": 1, "batch_size": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "vgg16"])
    parser.add_argument("--float", action="store_true")
    options = parser.parse_args()
    document = read_json(RESULTS) if RESULTS.exists() else {}
    for name in options.networks:
        form = Form.here(int8=not options.float)
        key = f"{name}, {'float' if options.float else 'int8'}"
        document[key] = errors_of(name, form)
        print(key, document[key], flush=True)
        write_json(RESULTS, document)


def errors_of(name: str, form: Form) -> dict[str, Any]:
    """Return the latencies of random networks by the model and by measurement, in ms."""
    module, shape = network_named(name)
    network = ModuleNetwork.of(module, shape, get_task("classification"))
    rule = rank_settings(
        {"select": "budget", "target": {"latency_ms": {HERE: 0.5}}, "multiple_of": "auto"}
    )
    assert isinstance(rule, BudgetSettings)
    factorize = FactorizeSettings.model_validate({**lowrank.RECOMMENDED, "norm": "activation"})
    layers = Compression.of(network, factorize).assigned
    table = network.table.with_obstacles(network.obstacles)
    candidates = Candidates(layers, list(factorize.alternatives), rule, HERE)
    device, export = create_device(HERE, SETTINGS), export_of_network(network)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.onnx"
        network.write_fixed(original)
        profile = LatencyProfile(device, SETTINGS, form, Path(folder) / "latencies.json", print)
        latencies = profile.measured(original, export, table, candidates)
        whole = WholeNetworks(
            original, export, table, latencies, form, device, SETTINGS, lambda _: None
        )
        taken = list(
            taken_layers(
                leave_negligible(table, rule.negligible_share), layers, factorize.alternatives
            )
        )
        rows = []
        for seed in range(COUNT):
            sequences = random_sequences(taken, rule, np.random.default_rng(seed))
            by_layers, measured = whole.milliseconds(sequences)
            rows.append([round(latencies.in_one_piece(by_layers), 4), round(measured, 4)])
    errors = [100 * abs(model / measured - 1) for model, measured in rows]
    return {
        "original_ms": round(latencies.original_ms, 4),
        "milliseconds": rows,
        "median_error_percent": round(float(np.median(errors)), 1),
        "largest_error_percent": round(max(errors), 1),
    }


def network_named(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a trained network and the shape of one image."""
    if name in IMAGENET:
        return IMAGENET[name](), (3, 224, 224)
    module, spec = shipped(name)
    return module, spec.input_shape


def random_sequences(
    taken: list[Any], rule: BudgetSettings, generator: np.random.Generator
) -> dict[str, tuple[PlainLayer, ...]]:
    """Return random plain layers for some of the layers, by name."""
    by_layer: dict[str, list[tuple[PlainLayer, ...]]] = {}
    for layer, method, full_ranks in taken:
        choices = rank_choices(layer, method, full_ranks, rule)
        if choices:
            ranks = choices[generator.integers(len(choices))]
            sequence = grouped_sequence(method, layer, ranks)
            by_layer.setdefault(layer.name, []).append(sequence)
    return {
        name: sequences[generator.integers(len(sequences))]
        for name, sequences in by_layer.items()
        if generator.random() < 0.75
    }


if __name__ == "__main__":
    main()
