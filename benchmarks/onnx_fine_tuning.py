"""Compress the text recognition network of PaddleOCR in the pipeline, and train it without labels.

    python benchmarks/onnx_fine_tuning.py [--steps 160] [--target 0.7]

The network is an ONNX file of others; onnx_files.py downloads it. The training images are rendered
lines of text without labels, so the network learns from the outputs of the original. The metric is
the share of test lines that are read without a mistake (text_metrics.py).

This writes a project into build/onnx_fine_tuning, runs `snakemake` there and prints the result. It
is also in benchmarks/results/onnx_fine_tuning.json.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import text_images
import yaml

from lowrank.files import read_json, write_json

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/onnx_fine_tuning"
RESULTS = Path(__file__).parent / "results" / "onnx_fine_tuning.json"
RESULT = "results/reader_small.json"
METRIC = {"function": "text_metrics:exact_match", "name": "lines read", "unit": "%"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160, help="steps of fine-tuning")
    parser.add_argument("--target", type=float, default=0.7, help="share of the MACs")
    parser.add_argument("--lines", type=int, default=1200, help="training lines")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    onnx_files.fetch()
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_project(options.steps, options.target, options.lines)
    program = Path(sys.executable).with_name("snakemake")
    # The metric is a module of this folder.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent)])}
    if path := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += os.pathsep + path
    command = [program, "--snakefile", ROOT / "Snakefile", "--directory", FOLDER, "--cores", "2"]
    command += ["--workflow-profile", ROOT / "profiles/default", RESULT]
    subprocess.run(command, check=True, env=environment)
    result = read_json(FOLDER / RESULT)
    write_json(options.output, result)
    print("\n".join(rows(result)))


def write_project(steps: int, target: float, lines: int) -> None:
    """Write the training lines and params.yaml."""
    np.save(FOLDER / "lines.npy", text_images.lines(lines, seed=0).images)
    model = onnx_files.FOLDER / "rapidocr_onnxruntime/models"
    path = os.path.relpath(model / onnx_files.NETWORKS["recognition"].file, FOLDER)
    document: dict[str, Any] = {
        "matrix": {"models": ["reader"], "methods": ["small"], "devices": ["local"]},
        "dataset": {"lines": {"kind": "arrays", "train": "lines.npy"}},
        "checkpoint": {
            "reader": {
                "weights": path,
                "inputs": {"x": [1, 3, 48, 320]},
                "dataset": "lines",
                "metric": METRIC,
            }
        },
        "methods": {
            "small": {
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
                    "target": {"macs": target},
                    "images": 64,
                    "largest_drop": 1,
                },
                "quantize": "int8",
            }
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


def rows(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    accuracy, int8, control = result["accuracy"], result["int8"], result["control"]["int8"]
    latency = result["latency_ms"]["local"]
    return [
        f"original: {accuracy['original']:.2f} % of the lines",
        f"decomposed: {accuracy['decomposed']:.2f} %",
        f"fine-tuned: {accuracy['finetuned']:.2f} %, {latency['speedup']:.2f}x as fast, "
        f"{result['macs']['ratio']:.2f}x fewer MACs, {result['size_bytes']['ratio']:.2f}x smaller",
        f"fine-tuned, int8: {int8['accuracy']['exported']:.2f} %, "
        f"{int8['latency_ms']['local']['speedup']:.2f}x",
        f"original in int8: {control['accuracy']['exported']:.2f} %, "
        f"{control['latency_ms']['local']['speedup']:.2f}x",
    ]


if __name__ == "__main__":
    main()
