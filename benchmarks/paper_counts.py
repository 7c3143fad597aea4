"""Count the parameters and multiply-accumulates of the papers' four networks in their ONNX files.

    python benchmarks/paper_counts.py

Each network is exported with random weights and counted in the graph. The counts are compared with
the sum over its layers and with Kim et al. 2016. This needs about 5 GB of memory and 1 GB of disk.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from papers_networks import PAPERS

from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.surgery.finding import find_layers
from lowrank.zoo import create_network, network_spec

RESULTS = Path(__file__).parent / "results" / "paper_counts.json"

# Millions of weights and of multiply-accumulates, according to the paper.
PAPER = {
    name: (figures["weights_millions"][0], figures["macs_millions"][0])
    for name, figures in PAPERS["kim"]["networks"].items()
}


def main() -> None:
    networks = {}
    print(f"{'network':16} {'parameters':>12} {'paper':>8} {'MACs':>15} {'paper':>8} {'ORT':>9}")
    for name, (paper_parameters, paper_macs) in PAPER.items():
        counts = networks[name] = measure(name)
        counts["parameters_over_paper"] = round(counts["parameters"] / paper_parameters / 1e6, 4)
        counts["macs_over_paper"] = round(counts["macs"] / paper_macs / 1e6, 4)
        print(
            f"{name:16} {counts['parameters']:12,} {counts['parameters_over_paper']:8.4f} "
            f"{counts['macs']:15,} {counts['macs_over_paper']:8.4f} "
            f"{counts['onnx_runtime_difference']:9.1e}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"torch": torch.__version__, "networks": networks}, indent=2) + "\n"
    )


def measure(name: str) -> dict[str, float]:
    """Return the counts of the exported graph, and the difference to PyTorch for a random image.

    The difference is the largest difference of the logits, relative to their range.
    """
    torch.manual_seed(0)
    network, spec = create_network(name).eval(), network_spec(name)
    images = 60 * torch.randn(1, *spec.input_shape)
    with torch.inference_mode():
        expected = network(images).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        start = time.monotonic()
        export_onnx(network, spec, path)
        seconds = time.monotonic() - start
        counts = count(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"images": images.numpy()})[0]
    layers = find_layers(network, spec.input_shape, name).layers
    assert counts.parameters == sum(p.numel() for p in network.parameters())
    assert [layer.macs for layer in counts.layers] == [layer.dense_macs for layer in layers]
    return {
        "parameters": counts.parameters,
        "macs": counts.macs,
        "size_bytes": counts.size_bytes,
        "onnx_runtime_difference": float(np.abs(logits - expected).max() / np.ptp(expected)),
        "export_seconds": round(seconds, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
