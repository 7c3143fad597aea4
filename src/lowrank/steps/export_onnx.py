"""Write a network as ONNX, count it, and check it against PyTorch on the whole test split."""

from dataclasses import asdict
from pathlib import Path

import click

from lowrank.steps.common import Step, say, use_threads


@click.command(cls=Step)
@click.option("--state", type=Path, required=True, help="The network, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--threads", type=int, required=True)
@click.option("--model", type=Path, required=True, help="Output: the ONNX file.")
@click.option("--report", type=Path, required=True, help="Output: counts and check, JSON.")
def export_onnx(state: Path, dataset: Path, threads: int, model: Path, report: Path) -> None:
    """Write a network as ONNX, count it, and check it against PyTorch."""
    use_threads(threads)
    import torch

    from lowrank.files import write_json
    from lowrank.networks.export import export_onnx as write_onnx
    from lowrank.networks.onnx_counts import count
    from lowrank.networks.states import read_state
    from lowrank.training.datasets import open_dataset
    from lowrank.training.exported import compare_with_pytorch

    torch.set_num_threads(threads)
    exported = read_state(state)
    data = open_dataset(dataset)
    write_onnx(exported.network, exported.spec, model)
    counts = count(model)
    say(
        f"{counts.parameters / 1e6:.2f} M parameters, {counts.macs / 1e6:.1f} M "
        f"multiply-accumulates, {counts.size_bytes / 1e6:.2f} MB"
    )
    check = compare_with_pytorch(model, exported.network, data.test, exported.spec, threads=threads)
    say(
        f"ONNX Runtime: {check['accuracy_percent']:.2f} % on the test split, logits within "
        f"{check['max_abs_error']:.1e} of PyTorch's"
    )
    write_json(report, {"counts": asdict(counts), "check": check})


if __name__ == "__main__":
    export_onnx()
