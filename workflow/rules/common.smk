# Checks the configuration, names the wildcards, and answers what depends on both. The answers
# come from lowrank.graph, where they can be tested.
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import available_cpu_count

from lowrank.errors import UserError
from lowrank.report.provenance import remember_profile
from lowrank.graph.recording import record_run
from lowrank.graph.snakemake_run import (
    begin_run,
    builds_outputs,
    end_steps_on_signal,
    refuse_moved_files,
)
from lowrank.graph.names import LAYER_NAME
from lowrank.graph.pipeline import Graph, prefer_this_environment
from lowrank.steps.options import command

prefer_this_environment()
remember_profile(sys.argv[1:])

# Steps that train side by side on the same cores take many times as long as one after the other:
# the threads of each wait for one another. Not where a cluster's nodes run the jobs.
if workflow.nodes is None and (workflow.resource_settings.cores or 0) > available_cpu_count():
    logger.warning(
        f"--cores {workflow.cores}: this machine has {available_cpu_count()}; no more are used."
    )
    workflow.register_resource("_cores", available_cpu_count())

# Those of the command line come first there. A workflow that takes this one as a module brings a
# configuration of its own.
files = sorted(workflow.configfiles, key=lambda path: path != "params.yaml")
try:
    refuse_moved_files(workflow)
    GRAPH = Graph.from_document(config, files)
except UserError as error:
    raise WorkflowError(str(error)) from None
PARAMS = GRAPH.params

# One run at a time in this folder. Before any file is looked at: what is missing or stale now may
# be there when another run has ended.
try:
    if begin_run(workflow, logger.warning):
        GRAPH.begin_stage()
except UserError as error:
    raise WorkflowError(str(error)) from None


onstart:
    end_steps_on_signal(logger.warning)


# So that a `dvc repro` after this run keeps what it built and builds nothing twice.
onsuccess:
    if builds_outputs(workflow):
        record_run(workflow.dag.jobs, config, GRAPH, logger.warning)


wildcard_constraints:
    # Alternations of the known names, so that `mobilenet_v2_tucker` splits in one way only.
    model=GRAPH.names_pattern("checkpoint"),
    method=GRAPH.names_pattern("methods"),
    dataset=GRAPH.names_pattern("dataset"),
    device=GRAPH.names_pattern("benchmark"),
    study=GRAPH.names_pattern("studies") or "none",
    # A layer's name in its network: `features.conv1_1`.
    layer=LAYER_NAME,
    # Rounds and trials count from 1.
    round=r"[1-9]\d*",
    number=r"[1-9]\d*",
    # Where a round's ranks and factors are: the first round's apart from the later ones, which
    # depend on fine-tuning and so belong to the DVC stage `finetune`.
    at=r"first|rounds/[1-9]\d*",
