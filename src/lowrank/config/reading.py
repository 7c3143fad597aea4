"""Read and check params.yaml, add derived methods, and report errors."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowrank.config.finetune import FinetuneSettings
from lowrank.config.params import Params, trial_name
from lowrank.errors import UserError
from lowrank.ranks.any_rule import AnyRankSettings
from lowrank.settings.document import Document, Place, read_document
from lowrank.settings.mistakes import described


def parse_params(document: Mapping[str, Any] | Document) -> Params:
    """Check a configuration, and add the methods of its studies and searches.

    Raises UserError that names each wrong parameter, the expected value and, if known, the line.
    """
    file = document if isinstance(document, Document) else Document(document)
    entries: dict[str, Any] = dict(file.entries)
    origins: dict[str, Place] = {}
    try:
        params = Params.model_validate(entries)
        methods = dict(entries["methods"])
        entries["methods"] = methods
        origins |= {name: ("methods", name) for name in methods}
        for study, variants in params.studies.items():
            for variant, (name, method) in variants.methods_of_variants(study).items():
                _claim(file, origins, name, ("studies", study, "variants", variant))
                methods[name] = method
        params = Params.model_validate(entries)
        for name, settings in params.methods.items():
            for number in range(1, settings.ranks.trials + 1):
                trial = trial_name(name, number)
                _claim(file, origins, trial, origins[name], f"trial {number} of ")
                methods[trial] = methods[name]
        params = Params.model_validate(entries)
    except ValidationError as error:
        clauses = described(error, Params, entries, file=file, origins=origins)
        raise UserError(f"{file.source}: {clauses}") from error
    _check_names(file, params, origins)
    _check_resolved(file, params, origins)
    return params


def _claim(
    file: Document, origins: dict[str, Place], name: str, place: Place, prefix: str = ""
) -> None:
    """Record where a derived method comes from. Raises UserError if its name is already taken."""
    if name in origins:
        raise UserError(
            f"{file.source}: {prefix}{file.named(place)} is a method with the name '{name}', and "
            f"so is {file.named(origins[name])}. Rename one of them."
        )
    origins[name] = place


# Names of files next to networks in build/, and next to methods in build/<model>/ and in results.
_RESERVED = {
    "checkpoint": {
        "coverage",
        "devices",
        "first_run",
        "latencies",
        "moments",
        "pretrain",
        "resume",
    },
    "methods": {"original"},
}


def _check_names(file: Document, params: Params, origins: Mapping[str, Place]) -> None:
    """Raise UserError for a name that lowrank uses itself, or for two results with one name."""
    for section, reserved in _RESERVED.items():
        for name in getattr(params, section):
            if name in reserved:
                raise UserError(
                    f"{file.source}: {file.named((section, name))}: the name '{name}' is reserved "
                    "for files of lowrank. Choose another name."
                )
    results: dict[str, tuple[str, str]] = {}
    for pair in itertools.product(params.checkpoint, params.methods):
        name = "_".join(pair)
        if name in results:
            model, method = results[name]
            raise UserError(
                f"{file.source}: two results have the name '{name}': `checkpoint.{model}` with "
                f"{file.named(origins[method])} and `checkpoint.{pair[0]}` with "
                f"{file.named(origins[pair[1]])}. Rename a network or a method."
            )
        results[name] = pair


def _check_resolved(file: Document, params: Params, origins: Mapping[str, Place]) -> None:
    """Raise UserError if the settings of a method are wrong once merged for a network."""
    for method, settings in params.methods.items():
        if params.trial_of(method):
            continue
        for section, kind, resolve in (
            ("ranks", AnyRankSettings, params.ranks_entries),
            ("finetune", FinetuneSettings, params.finetune_entries),
        ):
            for model in ("", *settings.of_models()[section]):
                entries = resolve(model, method)
                try:
                    kind.model_validate(entries)
                except ValidationError as error:
                    place = (section, "models", model) if model else (section,)
                    prefix = ("methods", method, *place)
                    clauses = described(
                        error, kind, entries, prefix=prefix, file=file, origins=origins
                    )
                    raise UserError(f"{file.source}: {clauses}") from error
        for model in ("", *settings.of_models()["finetune"]):
            recipe = params.finetune_of(model, method)
            needs_mirrored = recipe.learns_stored_maps and recipe.augment.flip
            if needs_mirrored and not params.teacher_outputs.mirrored:
                raise UserError(
                    f"{file.source}: {file.named((*origins[method], 'finetune'))}: `distill.maps` "
                    "compares stored feature maps, and `augment.flip` mirrors images. Set "
                    "`teacher_outputs.mirrored: true`, or `distill.maps: 0`, or `augment.flip: "
                    "false`."
                )
        for model in settings.ranks.models:
            if settings.ranks.trials != params.ranks_of(model, method).trials:
                entry = file.named((*origins[method], "ranks", "models", model))
                raise UserError(
                    f"{file.source}: {entry}: `accuracy_drop` and `search.trials` must apply to "
                    "all networks of a method. Define another method for this network."
                )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml. Raises UserError if it is missing or wrong."""
    return parse_params(read_document(path))


def schema() -> str:
    """Return the JSON schema for workflow/schemas/, for editors and for Snakemake."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"
