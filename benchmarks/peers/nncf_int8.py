"""Quantize the original network with NNCF, as an ONNX file, with both of its presets."""

from pathlib import Path

import nncf
import numpy as np
import onnx
import onnxruntime
from peer import BATCH, Clock, Work


def main() -> None:
    work = Work()
    # Its documentation recommends batches of one image.
    samples = [{"images": image[None]} for image in work.images.numpy()]
    wanted = _answers(work, work.original)
    files, tried, costs = {}, {}, {}
    for preset in nncf.QuantizationPreset:
        clock = Clock()
        quantized = nncf.quantize(
            onnx.load(work.original),
            nncf.Dataset(samples),
            preset=preset,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(samples),
        )
        costs[preset.value] = clock.cost()
        file = files[preset.value] = work.folder / f"{preset.value}.onnx"
        onnx.save(quantized, file)
        tried[preset.value] = round(100 * float((_answers(work, file) == wanted).mean()), 1)
    for name, file in files.items():
        work.add(file, name, f"preset {name}", costs[name], tried)


def _answers(work: Work, file: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batches = work.images.split(BATCH)
    logits = [session.run(None, {"images": batch.numpy()})[0] for batch in batches]
    return np.concatenate(logits).argmax(1)


if __name__ == "__main__":
    main()
