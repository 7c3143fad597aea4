"""Keep the files of the workflow on storage, such as S3: `--default-storage-provider`.

Snakemake copies the inputs of a job from there to a folder below `.snakemake/storage`, and its
outputs back. Files of the user, such as weights and images, stay in the folder of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank.errors import UserError
from lowrank.files import sha256_of
from lowrank.graph.code_digests import PACKAGE
from lowrank.graph.dvc_stages import running_stage


def storage_of(workflow: Any) -> str:
    """Return the address below which a run keeps its files; empty for the folder of the project.

    Raises UserError inside `dvc repro`, which expects the outputs in this folder.
    """
    settings = workflow.storage_settings
    provider = settings.default_storage_provider
    if not provider:
        return ""
    if stage := running_stage():
        raise UserError(
            f"--default-storage-provider {provider}: the stage `{stage}` of DVC expects its "
            "outputs in this folder. Run `snakemake` with this option, or `dvc repro` without it. "
            "It may come from a profile: SNAKEMAKE_PROFILE."
        )
    if provider == "s3":
        _ask_for_folders_again()
    return str(settings.default_storage_prefix or provider)


def copies_of(workflow: Any) -> str:
    """Return the prefix of the paths of stored files on this machine; see `prefix_of`.

    On storage, these are the local copies that Snakemake makes for the jobs that use them.
    """
    path: str = workflow.modifier.path_modifier.modify("results")
    return str(path).removesuffix("results")


def require_same_code(workflow: Any, sources: Path = Path("src/lowrank")) -> None:
    """Refuse a job whose image has another `lowrank` than the folder that started the run.

    Raises UserError. `sources` come with the files that Snakemake sends to machines that do not
    share the folder. A project that uses lowrank as a package has none.
    """
    from snakemake.settings.types import SharedFSUsage

    shares_sources = SharedFSUsage.SOURCES in workflow.storage_settings.shared_fs_usage
    if not workflow.remote_exec or shares_sources or not sources.is_dir():
        return
    for path in sorted(sources.rglob("*.py")):
        installed = PACKAGE / path.relative_to(sources)
        if not installed.is_file() or sha256_of(installed) != sha256_of(path):
            raise UserError(
                f"{path}: the lowrank of this job's image differs from the project in this file. "
                "The result would not be that of the project's code. Build the image again at the "
                "commit that you run."
            )


def in_this_folder(path: str) -> str:
    """Flag a file of the user, which Snakemake does not take from storage.

    On machines that do not share this folder, no job can read it, so the job runs here.
    """
    from snakemake.io import local

    flagged: str = local(path)
    return flagged


def updated(output: Any, *, stored_at: str) -> Any:
    """Flag an output that its job changes in place. On storage, it is made again.

    There, Snakemake would make a backup of a local copy that does not exist.
    """
    from snakemake.ioflags import update

    return output if stored_at else update(output)


def _ask_for_folders_again() -> None:
    """Let the S3 plugin list a folder whenever it is asked whether the folder exists.

    Version 0.3.6 lists it once. So Snakemake does not notice that a job on another machine has made
    the folder, and reports a missing output.
    """
    from snakemake_storage_plugin_s3 import StorageObject

    def is_dir(self: Any) -> bool:
        return any(True for _ in self.get_subkeys())

    StorageObject.is_dir = is_dir
