"""Answers for workflow/rules/networks.smk: datasets, splits, weights and recipes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from lowrank.config.dataset import DatasetSettings
from lowrank.config.training import PretrainSettings
from lowrank.errors import UserError
from lowrank.graph.code_digests import digest_of_module
from lowrank.graph.folder_digests import digest_of_folder
from lowrank.graph.names import (
    Wildcards,
)
from lowrank.graph.rules import Rules
from lowrank.graph.storage import in_this_folder

# Sources of published weights, for networks that lowrank defines and no registry offers.
WEIGHTS_ELSEWHERE = {
    "alexnet": "bvlc_alexnet.caffemodel from the BVLC model zoo of Caffe",
    "googlenet": "bvlc_googlenet.caffemodel from the BVLC model zoo of Caffe",
    "vgg_s": "VGG_CNN_S.caffemodel from the Visual Geometry Group, Oxford (deep_eval)",
    "vgg16_imagenet": "VGG_ILSVRC_16_layers.caffemodel from the Visual Geometry Group, Oxford",
    "squeezenet": "squeezenet_v1.1.caffemodel from the authors' repository (SqueezeNet_v1.1)",
}

# Weights that come with the workflow. tests/graph/test_networks.py compares them with the folder.
SHIPPED_WEIGHTS = tuple(
    f"data/checkpoints/{name}.safetensors" for name in ("resnet20", "resnet56", "vgg16")
)


class NetworkRules(Rules):
    """Inputs and settings of the rules that provide data and trained networks."""

    def image_files(self, wildcards: Any) -> str:
        """Return the digests of the files of a dataset, or of the code of its function.

        Empty for CIFAR-10 and Fashion-MNIST. Their contents are verified, so it does not matter
        which file they come from.

        Raises UserError if a folder or file is missing that is still to be read.
        """
        name = wildcards.dataset
        settings = self.params.dataset[name]
        if settings.function is not None:
            return digest_of_module(settings.function.partition(":")[0])
        files = settings.own_files
        is_ready = Path(self.graph.prefix, "data/datasets", name).exists()
        # With storage, the dataset may be there. If it is not, the step reports the missing file.
        if not is_ready and not self.graph.stored_at:
            for key, file in files.items():
                _require_exists(file, f"dataset.{name}.{key}", settings.kind)
        return " ".join(map(digest_of_folder, files.values()))

    def own_image_files(self, wildcards: Wildcards) -> str:
        """Return the digests of a network's own folders of images; empty without one."""
        folders = self.params.checkpoint[wildcards.model].own_folders
        return " ".join(map(digest_of_folder, folders.values()))

    def calibration(self, wildcards: Wildcards) -> str:
        """Return a network's own folder of calibration images; empty without one."""
        return self.params.checkpoint[wildcards.model].calibration or ""

    def validation_json(self, wildcards: Wildcards) -> str:
        """Return the setting that selects the images for choices about a network, as JSON."""
        return json.dumps(self.params.checkpoint[wildcards.model].validation.to_document())

    def decoding_json(self, wildcards: Wildcards) -> str:
        """Return the settings for reading a network's own folders, as JSON; `{}` without one."""
        if not self.params.checkpoint[wildcards.model].own_folders:
            return "{}"
        return self._dataset_settings(wildcards).model_dump_json()

    def threads_of_splits(self, wildcards: Wildcards) -> int:
        """Return the number of CPU threads that decode the images of a network's own folders."""
        if not self.params.checkpoint[wildcards.model].own_folders:
            return 1
        return self._dataset_settings(wildcards).threads

    def _dataset_settings(self, wildcards: Wildcards) -> DatasetSettings:
        return self.params.dataset[self.params.checkpoint[wildcards.model].dataset]

    def weights(self, wildcards: Wildcards) -> str:
        """Return the file of a model's trained weights.

        The weights of a shipped network may be missing from this folder, if the workflow is used as
        a module or with `--directory`. They come from the folder of the workflow then.

        Raises UserError if the file does not exist and no rule makes it.
        """
        model = wildcards.model
        settings = self.params.checkpoint[model]
        path = settings.weights
        is_built = path == f"build/pretrain/{model}.safetensors" or (
            settings.torchvision_weights and path == self.downloaded(model)
        )
        if is_built:
            return path
        if not Path(path).is_file():
            if self.graph.shipped and path in SHIPPED_WEIGHTS:
                # They may have been removed from the folder of the workflow, too.
                with contextlib.suppress(FileNotFoundError):
                    return self._here(self.graph.shipped(path))
            raise UserError(
                f"{path}: no such checkpoint (`checkpoint.{model}.weights` in params.yaml). "
                f"{self._advice(model)}"
            )
        return self._of_user(path)

    def _of_user(self, path: str) -> str:
        """Return the path of a user's file, which is never below the prefix of a module."""
        return self._here(str(Path(path).absolute()) if self.graph.prefix else path)

    def _here(self, path: str) -> str:
        """Return the path of a file that is on this machine, whether there is storage or not."""
        return in_this_folder(path) if self.graph.stored_at else path

    @staticmethod
    def downloaded(model: str) -> str:
        """Return the path where weights from torchvision are stored."""
        return f"data/weights/{model}.pth"

    def _advice(self, model: str) -> str:
        """Return advice on where a model's weights can come from."""
        network = self.graph.source(model).network
        if network in WEIGHTS_ELSEWHERE:
            return f"Put {WEIGHTS_ELSEWHERE[network]} there, or name another file."
        if model in self.params.pretrain:
            return (
                "Put the trained weights there, name another file, or train them: "
                f"`snakemake --cores 2 build/pretrain/{model}.safetensors`."
            )
        return (
            "Put the trained weights there, or name another file. To download the weights of a "
            "torchvision network, set `torchvision_weights` to their name and `weights` to "
            f"{self.downloaded(model)}."
        )

    def start(self, wildcards: Wildcards) -> list[str]:
        """Return the weights that a recipe starts from; none if it starts from random weights."""
        start = self.pretrain(wildcards).start
        if not start:
            return []
        return [self._of_user(start) if Path(start).is_file() else start]

    def pretrain(self, wildcards: Wildcards) -> PretrainSettings:
        """Return the recipe of a model. Raises UserError if there is none."""
        if wildcards.model not in self.params.pretrain:
            raise UserError(
                f"params.yaml: `pretrain` has no recipe for {wildcards.model}. Add one under this "
                "name, or use existing weights."
            )
        return self.params.pretrain[wildcards.model]


def _require_exists(path: str, place: str, kind: str | None) -> None:
    """Raise UserError if the files of a dataset are missing."""
    if kind == "arrays" and not Path(path).is_file():
        raise UserError(
            f"{path}: no such file (`{place}` in params.yaml). Set it to an .npy or .npz file."
        )
    if kind != "arrays" and not Path(path).is_dir():
        raise UserError(
            f"{path}: no such folder (`{place}` in params.yaml). Set it to a folder of images, or "
            "to a folder with one sub-folder of images for each class."
        )
