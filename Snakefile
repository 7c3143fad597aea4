# Turn a trained network into a smaller and faster ONNX file, and measure both.
#
#   snakemake --cores 8 results/vgg16_tucker.json
#
# All parameters are in params.yaml. Helpers and wildcards are in workflow/rules/common.smk.
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from lowrank.errors import UserError
from lowrank.settings.document import read_document

min_version("9.0")

# Check params.yaml before Snakemake reads it, because Snakemake's own message has no line number.
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
        # Not `rules.draw.output.ranks`, which a storage provider may have changed to another path.
        expand(
            "results/pictures/{model}_{method}/ranks.svg",
            model=PARAMS.matrix.models,
            method=PARAMS.matrix.methods,
        ),
