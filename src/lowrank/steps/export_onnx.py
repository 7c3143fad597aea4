"""Write a network as ONNX, count it, check it against PyTorch, and measure its accuracy."""

from dataclasses import asdict
from pathlib import Path

import click

from lowrank.steps.common import Step, reuse_memory, say, use_threads


@click.command(cls=Step)
@click.option("--network", required=True, help="As params.yaml describes it: a name, or JSON.")
@click.option("--state", type=Path, required=True, help="The network, safetensors.")
@click.option("--dataset", type=Path, required=True, help="Folder that the dataset step wrote.")
@click.option("--splits", default="", help="Folder that the splits step wrote.")
@click.option("--threads", type=int, required=True)
@click.option("--images", type=int, required=True, help="Of the test split, for the check.")
@click.option("--accuracy/--no-accuracy", default=True, help="Measure it on the test split.")
@click.option("--model", type=Path, required=True, help="Output: the ONNX file.")
@click.option("--report", type=Path, required=True, help="Output: counts and check, JSON.")
def export_onnx(
    network: str,
    state: Path,
    dataset: Path,
    splits: str,
    threads: int,
    images: int,
    accuracy: bool,
    model: Path,
    report: Path,
) -> None:
    """Write a network as ONNX, count it, check it against PyTorch, and measure its accuracy."""
    use_threads(threads)
    reuse_memory()
    import torch

    from lowrank.config.network_source import NetworkSource
    from lowrank.data.datasets import open_dataset
    from lowrank.files import write_json
    from lowrank.onnx_files.counts import count
    from lowrank.onnx_files.export import export_onnx as write_onnx
    from lowrank.surgery.states import read_state
    from lowrank.tasks.exported import compare_with_pytorch, exported_percent

    torch.set_num_threads(threads)
    exported = read_state(state, NetworkSource.parse(network))
    data = open_dataset(dataset, splits)
    write_onnx(exported.network, exported.spec, model)
    counts = count(model)
    say(
        f"{counts.parameters / 1e6:.2f} M parameters, {counts.macs / 1e6:.1f} M "
        f"multiply-accumulates, {counts.size_bytes / 1e6:.2f} MB"
    )
    if counts.not_counted:
        say(
            f"warning: {', '.join(counts.not_counted)} not counted: the network costs more "
            "multiply-accumulates than that"
        )
    checked = data.test.sample(images)
    check = compare_with_pytorch(model, exported.network, checked, exported.spec, threads=threads)
    say(
        f"ONNX Runtime: logits within {check['max_abs_error']:.1e} of PyTorch's on "
        f"{check['images']} test images"
    )
    document = {"counts": asdict(counts), "check": check}
    if accuracy:
        percent = exported_percent(model, data.test, exported.spec, threads=threads)
        say(f"ONNX Runtime: {percent['top1']:.2f} % of the test split")
        document["accuracy"] = percent
    write_json(report, document)


if __name__ == "__main__":
    export_onnx()
