"""int8 networks on an x86 processor without VNNI: emulated, so its timing means nothing.

    python benchmarks/no_vnni.py [--models vgg16 resnet20] [--images 100]

A Python of this environment runs ONNX Runtime under user-mode emulation (Debian's qemu-user, 7.2
or later) of a processor with AVX2 and without AVX-512, whose kernels add two products of 8 bits in
16 bits. What it answers to test images, by weights of full and of reduced range, is compared with
what the files say, computed here by float kernels: full range saturates, reduced range does not.
The exit status is 1 where reduced range is off by more than rounding. Needs the original networks
(`snakemake build/vgg16/original/model.onnx`). Results: benchmarks/results/no_vnni.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.config.reading import load_params
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset
from lowrank.devices import MeasureSettings
from lowrank.devices.answers import agreement, expected_answers
from lowrank.devices.processor import IntegerTypes
from lowrank.files import write_json
from lowrank.onnx_files.int8 import Quantizer
from lowrank.surgery.states import read_spec

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "no_vnni.json"
EMULATOR = "qemu-x86_64"
# All that the emulator knows, which is no AVX-512.
PROCESSOR = "max,-avx512f"
# ONNX Runtime and NumPy alone: a whole package takes minutes to be imported under emulation.
ANSWER = """
import json, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
found = [session.run(None, {session.get_inputs()[0].name: images[i:i + 1]})[0][0].tolist()
         for i in range(len(images))]
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet20"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if not shutil.which(EMULATOR):
        sys.exit(f"there is no {EMULATOR}. Install it: `apt-get install qemu-user`.")
    rows = [row for model in asked.models for row in rows_of(model, asked.images)]
    write_json(asked.output, {"emulated": PROCESSOR, "rows": rows})
    sys.exit(any(row["reduce_range"] and row["warning"] for row in rows))


def rows_of(model: str, count: int) -> list[dict[str, Any]]:
    """A row for each range of the weights."""
    folder, params = ROOT / "build" / model / "original", load_params(ROOT / "params.yaml")
    spec = read_spec(folder / "model.safetensors")
    data = open_dataset(ROOT / "data/datasets" / params.checkpoint[model].dataset)
    sample = data.test.sample(count)
    batches, rows = EvaluationBatches(sample, spec), []
    given = [batches[number] for number in range(len(batches))]
    labels = np.concatenate([labels.numpy() for _, labels in given])
    training = EvaluationBatches(data.train.sample(params.quantize.images), spec)
    calibration = [{"images": training[number][0].numpy()} for number in range(len(training))]
    with tempfile.TemporaryDirectory() as work:
        images = Path(work) / "images.npy"
        np.save(images, np.concatenate([inputs.numpy() for inputs, _ in given]))
        quantizer = Quantizer(folder / "model.onnx", calibration, params.quantize, Path(work))
        for reduced in (False, True):
            types = IntegerTypes("uint8", reduce_range=reduced)
            path = Path(work) / types.file
            quantizer.write(path, types)
            expected = expected_answers(path, images, MeasureSettings())
            found = emulated_answers(path, images)
            accuracy = {
                name: 100 * float((np.argmax(each, 1) == labels).mean())
                for name, each in (("top1", found), ("expected_top1", expected))
            }
            row = {"model": model, "reduce_range": reduced} | accuracy
            row |= agreement(found, expected, in_int8=True)
            print(row, flush=True)
            rows.append(row)
    return rows


def emulated_answers(model: Path, images: Path) -> list[list[float]]:
    """What the emulated processor answers, (N, outputs)."""
    done = subprocess.run(
        [EMULATOR, "-cpu", PROCESSOR, sys.executable, "-c", ANSWER, str(model), str(images)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{EMULATOR} ended with status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
