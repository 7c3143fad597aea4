"""The container image in which Snakemake runs the steps, with `--sdm apptainer`."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import lowrank
from lowrank.errors import UserError

# Environment variable: the image, as a path or an address such as `docker://...`. Not a parameter,
# because the image changes no result, and is at another place on each machine.
IMAGE = "LOWRANK_CONTAINER"

# Environment variable with the digest of the package that runs Snakemake. Apptainer passes it on.
_CODE = "LOWRANK_CODE"

_PACKAGE = Path(lowrank.__file__).parent


def image_of_steps(workflow: Any) -> str | None:
    """Return the image that the user has chosen for the steps, or None.

    Raises UserError if Snakemake is told to use Apptainer and there is no image, or no such file.
    """
    image = os.environ.get(IMAGE) or None
    if not _uses_apptainer(workflow):
        return image  # Snakemake prints that it ignores the container.
    if image is None:
        # A workflow that uses this one as a module may have containers for its own rules.
        if workflow.modifier is not workflow.modifier_stack[0]:
            return None
        raise UserError(
            f"--sdm apptainer: no image for the steps. Set {IMAGE} to the path of an image or to "
            "an address such as `docker://<registry>/lowrank:cpu`, or leave out `--sdm`. "
            "docs/container.md shows how to build an image."
        )
    if not re.match(r"[\w.+-]+://", image) and not Path(image).exists():
        raise UserError(
            f"{IMAGE}={image}: no such file in {Path.cwd()}. Expected the path of an image, or an "
            "address that begins with `docker://` or `oras://`. docs/container.md shows how to "
            "build an image."
        )
    os.environ[_CODE] = _digest()
    return image


def check_code_of_image() -> None:
    """Check that this process has the same package as the Snakemake that chose its image.

    Raises UserError if the image was built from another commit: its steps would do something else
    than the workflow records.
    """
    expected = os.environ.get(_CODE)
    if expected and expected != (found := _digest()):
        raise UserError(
            f"the container image has another lowrank ({found}) than the workflow ({expected}). "
            "Build the image from the commit that the workflow runs: docs/container.md."
        )


def _uses_apptainer(workflow: Any) -> bool:
    from snakemake.settings.types import DeploymentMethod

    return DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method


def _digest() -> str:
    """Return a digest of all source files of the package."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
