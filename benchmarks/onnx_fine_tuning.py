"""Compress the text recognition network of PaddleOCR in the pipeline, and train it without labels.

    python benchmarks/onnx_fine_tuning.py [--targets macs latency] [--steps 160]

The network is an ONNX file of others; onnx_files.py downloads it. The training images are rendered
lines of text without labels, so the network learns from the outputs of the original. The metrics
are the share of test lines that are read without a mistake, and the share of wrong characters
(text_metrics.py).

This writes a project into build/onnx_fine_tuning, runs `snakemake` there and prints the results.
They are also in benchmarks/results/onnx_fine_tuning.json. Latencies are only meaningful on a quiet
machine.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import text_images
import text_metrics
import yaml

from lowrank.files import read_json, write_json

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/onnx_fine_tuning"
RESULTS = Path(__file__).parent / "results" / "onnx_fine_tuning.json"
# Costs of a target by the name of the method.
TARGETS = {"macs": "macs", "latency": "latency_ms"}
METRIC = {"function": "text_metrics:exact_match", "name": "lines read", "unit": "%"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160, help="steps of fine-tuning")
    parser.add_argument("--share", type=float, default=0.7, help="share of the cost to reach")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--lines", type=int, default=1200, help="training lines")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    onnx_files.fetch()
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_project(options.targets, options.steps, options.share, options.lines)
    program: str | Path = Path(sys.executable).with_name("snakemake")
    # The metric is a module of this folder.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent)])}
    if path := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += os.pathsep + path
    command = [program, "--snakefile", ROOT / "Snakefile", "--directory", FOLDER]
    command += ["--cores", "2", "--workflow-profile", ROOT / "profiles/default"]
    document = read_json(options.output) if options.output.exists() else {}
    for target in options.targets:
        result = f"results/reader_{target}.json"
        subprocess.run([*command, result], check=True, env=environment)
        document[target] = figures(read_json(FOLDER / result), target)
        write_json(options.output, document)
    print(json.dumps(document, indent=2))


def write_project(targets: Sequence[str], steps: int, share: float, lines: int) -> None:
    """Write the training lines and params.yaml."""
    images = FOLDER / f"lines_{lines}.npy"
    if not images.exists():
        np.save(images, text_images.lines(lines, seed=0).images)
    model = onnx_files.FOLDER / "rapidocr_onnxruntime/models"
    path = os.path.relpath(model / onnx_files.NETWORKS["recognition"].file, FOLDER)
    document: dict[str, Any] = {
        "matrix": {"models": ["reader"], "methods": list(targets), "devices": ["local"]},
        "dataset": {"lines": {"kind": "arrays", "train": images.name}},
        "checkpoint": {
            "reader": {
                "weights": path,
                "inputs": {"x": [1, 3, 48, 320]},
                "dataset": "lines",
                "metric": METRIC,
            }
        },
        "methods": {
            target: {
                "factorize": {
                    "first_conv": "tucker1",
                    "conv": "tucker2",
                    "pointwise_conv": "svd",
                    "linear": "svd",
                    "alternatives": ["spatial_svd"],
                    "norm": "activation",
                    "images": 256,
                },
                "ranks": {
                    "select": "budget",
                    "target": {cost: {"local": share} if cost == "latency_ms" else share},
                    "images": 64,
                    "largest_drop": 1,
                },
                "quantize": "int8",
            }
            for target, cost in TARGETS.items()
            if target in targets
        },
        "finetune": {
            "steps": steps,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 2e-5,
            "weight_decay": 0.0,
            "augment": {"pad_pixels": 0, "flip": False},
            "curve_every_steps": 10,
            "precision": "float32",
        },
        "quantize": {"images": 64, "tolerance": 2},
        "benchmark": {"local": {"kind": "local", "threads": 1}},
    }
    (FOLDER / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def figures(result: dict[str, Any], target: str) -> dict[str, Any]:
    """Return the figures of a result, with the wrong characters of each file in percent."""
    int8, control = result["int8"], result["control"]["int8"]
    build = FOLDER / "build/reader"
    latency = result["latency_ms"]["local"]
    original = {"accuracy": {"exported": result["accuracy"]["original"]}}
    records = {
        "original": (original, {}, build / "original/model.onnx"),
        "original_int8": (control, control["latency_ms"]["local"], build / "original/int8"),
        "fine_tuned": (result, latency, build / target / "model.onnx"),
        "fine_tuned_int8": (int8, int8["latency_ms"]["local"], build / target / "int8"),
    }
    document: dict[str, Any] = {
        "macs_share": 1 / result["macs"]["ratio"],
        "decomposed": {"exact_match": result["accuracy"]["decomposed"]},
    }
    for name, (record, times, path) in records.items():
        # The folder of int8 files has one for each kind of hardware, here one.
        file = next(path.glob("*.onnx")) if path.is_dir() else path
        document[name] = {
            "exact_match": record["accuracy"]["exported"],
            "character_errors": text_metrics.character_errors(onnx_files.evaluation(file)),
            "size_bytes": file.stat().st_size,
        }
        for key in ("speedup", "speedup_over_control"):
            if key in times:
                document[name][key] = [times[key + end] for end in ("", "_low", "_high")]
    return document


if __name__ == "__main__":
    main()
