"""The complete params.yaml: its sections, and the settings that apply to one network."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import Field, PrivateAttr, model_validator

from lowrank.config.benchmark import AnyDeviceSettings
from lowrank.config.checkpoint import CheckpointSettings
from lowrank.config.dataset import DatasetSettings
from lowrank.config.finetune import FinetuneSettings
from lowrank.config.matrix import Matrix
from lowrank.config.methods import MethodSettings
from lowrank.config.quantize import QuantizeSettings
from lowrank.config.stages import (
    CalibrateSettings,
    DecomposeSettings,
    ExportSettings,
    SelectRanksSettings,
    TeacherOutputsSettings,
)
from lowrank.config.studies import StudySettings
from lowrank.config.training import PretrainSettings
from lowrank.ranks.any_rule import AnyRankSettings
from lowrank.ranks.rank_settings import RankSettings
from lowrank.settings.choices import BUDGETS
from lowrank.settings.merging import merged
from lowrank.settings.mistakes import nearest, refused
from lowrank.settings.section import Name, Section


class Params(Section):
    """The complete params.yaml."""

    matrix: Matrix
    dataset: dict[Name, DatasetSettings]
    checkpoint: dict[Name, CheckpointSettings]
    methods: dict[Name, MethodSettings]
    select_ranks: SelectRanksSettings = SelectRanksSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    decompose: DecomposeSettings = DecomposeSettings()
    teacher_outputs: TeacherOutputsSettings = TeacherOutputsSettings()
    finetune: FinetuneSettings
    export_onnx: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    benchmark: dict[Name, AnyDeviceSettings]
    pretrain: dict[Name, PretrainSettings] = Field(default_factory=dict)
    studies: dict[Name, StudySettings] = Field(default_factory=dict)

    # Merged settings, by network and method. The graph of a large study asks for them many times.
    _ranks: dict[tuple[str, str], RankSettings] = PrivateAttr(default_factory=dict)
    _finetune: dict[tuple[str, str], FinetuneSettings] = PrivateAttr(default_factory=dict)

    def ranks_of(self, model: str, method: str) -> RankSettings:
        """Return the settings by which a method chooses the ranks of one network."""
        if (model, method) not in self._ranks:
            entries = self.ranks_entries(model, method)
            settings = cast(RankSettings, AnyRankSettings.model_validate(entries))
            self._ranks[model, method] = settings
        return self._ranks[model, method]

    def ranks_entries(self, model: str, method: str) -> dict[str, Any]:
        """Return the unchecked entries for `ranks_of`."""
        return self.methods[method].ranks.entries_of(model)

    def trial_of(self, method: str) -> tuple[str, int] | None:
        """Return the method whose search this method is a trial of, and the number of the trial.

        None if the method is not a trial.
        """
        return self._trials.get(method)

    @functools.cached_property
    def _trials(self) -> dict[str, tuple[str, int]]:
        return {
            trial_name(name, number): (name, number)
            for name, settings in self.methods.items()
            for number in range(1, settings.ranks.trials + 1)
        }

    def is_int8_alone(self, method: str) -> bool:
        """Return whether a method only quantizes: it factors nothing and sets no training budget.

        The variants of a study never count as such: a control in a study trains with the same
        budget as the other variants.
        """
        settings = self.methods[method]
        has_factors = any(settings.factorize.by_kind().values())
        budgets = BUDGETS & settings.finetune.keys()
        is_variant = any(method in study.methods(name) for name, study in self.studies.items())
        return settings.quantize is not None and not has_factors and not budgets and not is_variant

    @property
    def searching(self) -> list[str]:
        """Methods that find ranks by trials."""
        return [
            name
            for name, settings in self.methods.items()
            if settings.ranks.searches and not self.trial_of(name)
        ]

    def finetune_of(self, model: str, method: str) -> FinetuneSettings:
        """Return `finetune` with a method's entries for all networks and for one network."""
        if (model, method) not in self._finetune:
            entries = self.finetune_entries(model, method)
            self._finetune[model, method] = FinetuneSettings.model_validate(entries)
        return self._finetune[model, method]

    def finetune_entries(self, model: str, method: str) -> dict[str, Any]:
        """Return the unchecked entries for `finetune_of`."""
        general = self.finetune.model_dump(exclude_unset=True)
        of_method = dict(self.methods[method].finetune)
        of_model = of_method.pop("models", {}).get(model, {})
        entries = merged(general, of_method)
        if model in self.checkpoint and not self.checkpoint[model].learns_from_labels:
            # The outputs of the original are all that the network can learn from.
            distill = {"weight": 1.0, "images": "augmented"}
            entries = merged(entries, {"distill": distill, "label_smoothing": 0.0})
        if model in self.checkpoint and self.dataset[self.checkpoint[model].dataset].has_arrays:
            # The default of `augment` is for images. Training refuses other values for arrays.
            entries = merged({"augment": {"pad_pixels": 0, "flip": False}}, entries)
        if self.is_int8_alone(method):
            entries = merged(entries, {"steps": 0})
        return merged(entries, of_model)

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        for name, settings in self.dataset.items():
            try:
                settings.kind_of(name)
            except ValueError as error:
                raise refused(str(error), "dataset", name) from None
        references: list[tuple[str, Iterable[str], str, Mapping[str, object]]] = [
            ("matrix.models", self.matrix.models, "checkpoint", self.checkpoint),
            ("matrix.methods", self.matrix.methods, "methods", self.methods),
            ("matrix.devices", self.matrix.devices, "benchmark", self.benchmark),
        ]
        references += [
            (f"checkpoint.{name}.dataset", (settings.dataset,), "dataset", self.dataset)
            for name, settings in self.checkpoint.items()
        ]
        references += [
            (f"studies.{name}.models", settings.models, "checkpoint", self.checkpoint)
            for name, settings in self.studies.items()
        ]
        references += [
            (f"methods.{name}.{section}.models", tuple(models), "checkpoint", self.checkpoint)
            for name, settings in self.methods.items()
            for section, models in settings.of_models().items()
        ]
        for place, names, section, known in references:
            for name in names:
                if name not in known:
                    raise refused(
                        f"`{place}` names '{name}', which is not under `{section}`"
                        f"{nearest(name, known)}",
                        *place.split("."),
                    )
        return self


def trial_name(method: str, number: int) -> str:
    """Return the method name of trial `number` (from 1) of a method."""
    return f"{method}_trial{number}"
