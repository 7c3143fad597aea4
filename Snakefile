# A trained network in, a smaller and faster ONNX file out, measured.
#
#   snakemake --cores 8 results/vgg16_tucker.json
#
# Every choice is in params.yaml. Helpers and names are in workflow/rules/common.smk.
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from lowrank.config.document import read_document
from lowrank.errors import UserError

min_version("9.0")

# Before Snakemake reads it, whose own message names no line.
try:
    if Path("params.yaml").exists():
        read_document("params.yaml")
except UserError as error:
    raise WorkflowError(str(error)) from None


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/networks.smk"
include: "workflow/rules/compress.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/deliver.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/studies.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        GRAPH.report.matrix_results,
        rules.overview.output,
        # Not `rules.draw.output.ranks`, which a storage provider has as its own path by then.
        expand(
            "results/pictures/{model}_{method}/ranks.svg",
            model=PARAMS.matrix.models,
            method=PARAMS.matrix.methods,
        ),
