"""The handover from Snakemake to DVC: record what Snakemake built in dvc.lock."""

import click

from lowrank.steps.common import Step, run, say


@click.command(cls=Step)
@click.argument("results", nargs=-1)
def record(results: tuple[str, ...]) -> None:
    """Bring RESULTS up to date with Snakemake and record them in dvc.lock.

    RESULTS are names such as vgg16_tucker; by default the whole matrix of params.yaml.
    Recording only what Snakemake has nothing more to do for keeps stale files out of dvc.lock,
    which an untargeted `dvc commit --force` would bless.
    """
    from lowrank.graph.pipeline import Graph
    from lowrank.graph.recording import commit
    from lowrank.graph.run_lock import held_lock

    graph = Graph.load()
    variants = graph.variants(results)
    # DVC has what networks learn from as a stage, whether or not a method has `distill`.
    learnt_from = {f"build/{model}/original/outputs.safetensors" for model, _ in variants.values()}
    asked = [*(f"results/{name}.json" for name in variants), *sorted(learnt_from)]
    # Of the whole matrix, not of a part of it.
    asked += [] if results else ["results/summary.csv"]
    # Nothing may change between the two.
    with held_lock(say):
        run("snakemake", "--cores", "all", *asked)
        say(f"recording {', '.join(variants)}")
        stages = [f"summarize@{model}-{method}" for model, method in variants.values()]
        commit([*stages, *([] if results else ["overview"])], graph)


if __name__ == "__main__":
    record()
