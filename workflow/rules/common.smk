# Check the configuration, declare the wildcards, and create GRAPH, which computes inputs and
# parameters of the rules. Its code is in lowrank.graph, where it can be tested.
import functools
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import available_cpu_count

from lowrank.errors import UserError
from lowrank.graph.container import image_of_steps
from lowrank.report.provenance import remember_profile
from lowrank.graph.recording import record_run
from lowrank.graph.snakemake_run import (
    begin_run,
    builds_outputs,
    end_steps_on_signal,
    prefix_of,
)
from lowrank.graph.names import FILES_OF_ROUND, LAYER_NAME
from lowrank.graph.pipeline import Graph, prefer_this_environment
from lowrank.graph.storage import copies_of, require_same_code, storage_of, updated
from lowrank.steps import options

prefer_this_environment()
remember_profile(sys.argv[1:])

# Limit the cores, because steps that train in parallel on the same cores are many times slower than
# one after the other: their threads wait for each other. On a cluster, the nodes run the jobs.
if workflow.nodes is None and (workflow.resource_settings.cores or 0) > available_cpu_count():
    logger.warning(
        f"--cores {workflow.cores}: this machine has only {available_cpu_count()} cores, which"
        " are used."
    )
    workflow.register_resource("_cores", available_cpu_count())

# params.yaml first: Snakemake lists the files of the command line before it. A workflow that uses
# this one as a module has its own configuration file.
files = sorted(workflow.configfiles, key=lambda path: path != "params.yaml")
try:
    require_same_code(workflow)
    PREFIX = prefix_of(workflow)
    # With `--default-storage-provider`: where the files are, and their local copies.
    STORAGE = storage_of(workflow)
    COPIES = copies_of(workflow)
    GRAPH = Graph.from_document(
        config,
        files,
        prefix=PREFIX,
        # Weights of the shipped networks, if this is a module or runs with `--directory`.
        shipped=lambda path: workflow.source_path(f"../../{path}"),
        # The executor is not known yet.
        on_cluster=workflow.nodes is not None or workflow.remote_exec,
        stored_at=STORAGE,
    )
except UserError as error:
    raise WorkflowError(str(error)) from None
PARAMS = GRAPH.params

# With `--sdm apptainer`, the steps run in this image: docs/container.md.
try:
    IMAGE = image_of_steps(workflow)
except UserError as error:
    raise WorkflowError(str(error)) from None
if IMAGE:

    envvars:
        "LOWRANK_CONTAINER",

    container: IMAGE


# The login node repeats a job, with more memory and time. The job itself does not repeat its steps.
TRAINING_RETRIES = 0 if workflow.remote_exec else GRAPH.resources.training_retries

# The shell command of a step.
command = functools.partial(options.command, prefix=PREFIX, copies=COPIES)

# An output that its job changes in place.
updated = functools.partial(updated, stored_at=STORAGE)

# Allow one run at a time in this folder. Take the lock before any file is read, because files that
# are missing or stale now may be made by the other run.
try:
    if begin_run(workflow, logger.warning, PREFIX, COPIES):
        GRAPH.begin_stage()
except UserError as error:
    raise WorkflowError(str(error)) from None


onstart:
    end_steps_on_signal(logger.warning)


# Record the outputs, so that a later `dvc repro` keeps them and builds nothing again.
onsuccess:
    if builds_outputs(workflow) and not PREFIX:
        record_run(workflow.dag.jobs, config, GRAPH, logger.warning)


wildcard_constraints:
    # Only known names, so that `mobilenet_v2_tucker` can be split in only one way.
    model=GRAPH.names_pattern("checkpoint"),
    # The folder of a method in `build`. In the names of results, it is the name of the method.
    method=GRAPH.method_folders,
    dataset=GRAPH.names_pattern("dataset"),
    device=GRAPH.names_pattern("benchmark"),
    study=GRAPH.names_pattern("studies") or "none",
    # Name of a layer in its network, such as `features.conv1_1`.
    layer=LAYER_NAME,
    # Rounds and trials count from 1.
    round=r"[1-9]\d*",
    number=r"[1-9]\d*",
    # Folder of a round's ranks and factors. The first round has its own folder. The later rounds
    # depend on fine-tuning, so they belong to the DVC stage `finetune`.
    at=r"first|rounds/[1-9]\d*",
