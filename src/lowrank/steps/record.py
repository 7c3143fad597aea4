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
    from lowrank.workflow import Workflow

    variants = Workflow.load().variants(results)
    # DVC has what networks learn from as a stage, whether or not a method has `distill`.
    learnt_from = {f"build/{model}/original/outputs.safetensors" for model, _ in variants.values()}
    asked = [*(f"results/{name}.json" for name in variants), *sorted(learnt_from)]
    # Of the whole matrix, not of a part of it.
    asked += [] if results else ["results/summary.csv"]
    run("snakemake", "--cores", "all", *asked)
    for model, method in variants.values():
        say(f"recording {model}_{method}")
        run("dvc", "commit", "--force", "--with-deps", f"summarize@{model}-{method}")
    if not results:
        run("dvc", "commit", "--force", "overview")


if __name__ == "__main__":
    record()
