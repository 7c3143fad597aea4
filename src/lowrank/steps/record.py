"""Hand over from Snakemake to DVC: record in dvc.lock what Snakemake has built."""

import click

from lowrank.steps.common import Step, run, say


@click.command(cls=Step)
@click.argument("results", nargs=-1)
def record(results: tuple[str, ...]) -> None:
    """Bring RESULTS up to date with Snakemake and record them in dvc.lock.

    RESULTS are names such as vgg16_tucker. By default, all results of the matrix in params.yaml are
    recorded. Only files that are up to date for Snakemake are recorded. `dvc commit --force`
    without targets would also record stale files.
    """
    from lowrank.graph.pipeline import Graph
    from lowrank.graph.recording import commit
    from lowrank.graph.run_lock import held_lock

    graph = Graph.load()
    variants = graph.variants(results)
    # In dvc.yaml, the teacher's outputs are a stage for every model, even if no method has
    # `distill`.
    teachers = {f"build/{model}/original/outputs.safetensors" for model, _ in variants.values()}
    targets = [*(f"results/{name}.json" for name in variants), *sorted(teachers)]
    # The overview is recorded only together with the whole matrix.
    targets += [] if results else ["results/summary.csv"]
    # Hold the lock, so that no file changes between the run and the recording.
    with held_lock(say):
        run("snakemake", "--cores", "all", *targets)
        say(f"recording {', '.join(variants)}")
        stages = [f"summarize@{model}-{method}" for model, method in variants.values()]
        commit([*stages, *([] if results else ["overview"])], graph)


if __name__ == "__main__":
    record()
