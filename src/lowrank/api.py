"""Compress a network in Python, without the workflow.

import lowrank

small = lowrank.compress(network, input_shape=(3, 224, 224))
small.network          # fine-tune it, then small.export("small.onnx")
small.layers           # ranks, MACs and parameters of each layer, before and after

small = lowrank.compress("model.onnx", images=batches)   # an ONNX file of any network
small.export("small.onnx")
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import ValidationError
from torch import Tensor, nn

from lowrank.compression.accuracy_search import AccuracySearch
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.in_memory import Compression
from lowrank.compression.module_network import ModuleNetwork
from lowrank.compression.recommended import RECOMMENDED, TUCKER, recommended_ranks
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.plans import Expected, Factored, PlannedLayer
from lowrank.errors import UserError
from lowrank.onnx_files.export import export_onnx
from lowrank.onnx_networks.model_file import write_model
from lowrank.ranks.any_rule import rank_settings
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.milder import nearest_that_keeps
from lowrank.ranks.rank_settings import RankSettings
from lowrank.ranks.rule import rule_of
from lowrank.settings.mistakes import described
from lowrank.tasks import DEFAULT_TASK, get_task
from lowrank.zoo.registry import NetworkSpec

# Number of samples on which milder settings are compared, after a drop that is too large.
_SAMPLES_OF_SEARCH = 64

# Inputs for one run: a batch for a network with one input, or batches by the name of an input.
Batch = Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]


@dataclass
class Compressed:
    """Compressed network, with the change of each layer that the method factors.

    `network` is a module, or an `onnx.ModelProto` for an ONNX file. A module from which channels
    are removed selects the others until it is exported; the file has only these. `expected` is the
    agreement of its answers with the original network, or the error of its outputs, on the images
    that were passed to `compress`. It is None without images. `macs` are the multiply-accumulates
    of all layers for one sample, before and after; layers that the method does not factor count
    too. `factored` are the factors by layer name. `ranks` are the settings of the rank rule; after
    a search, its target is the cost of the chosen network. `samples` are the images that were
    passed to `compress`.
    """

    network: Any
    layers: tuple[PlannedLayer, ...]
    input_shape: tuple[int, ...]
    expected: Expected | None = None
    macs: tuple[int, int] = (0, 0)
    factored: Mapping[str, Factored] = field(default_factory=dict)
    ranks: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Any] = field(default=(), repr=False)

    def export(self, path: str | os.PathLike, *, int8: bool = False) -> None:
        """Write the network to an ONNX file.

        A module is exported as by `lowrank.onnx_files.export.export_onnx`. Of an ONNX network,
        everything but the replaced layers is as in the original file.

        Parameters
        ----------
        path
            The file.
        int8
            Write the network in int8, for the processor of this machine. The ranges of activations
            are measured on `samples`. Nodes that are slower in int8 here stay in float.

        Raises
        ------
        UserError
            If the file cannot be written, or the network cannot be quantized.
        """
        if int8:
            self._export_int8(Path(path))
            return
        if isinstance(self.network, onnx.ModelProto):
            write_model(path, self.network)
            return
        name = type(self.network).__name__
        channels, height, width = self.input_shape
        spec = NetworkSpec(name, (channels, height, width), num_classes=0)
        export_onnx(self.network, spec, path)

    def _export_int8(self, path: Path) -> None:
        # Only here, because ONNX Runtime's quantization takes seconds to import.
        from lowrank.compression.int8_file import write_int8

        if not self.samples:
            raise UserError(
                f"{path}: int8 needs samples for the ranges of activations, but `compress` got no "
                "`images`. Pass some, or write the network in float."
            )
        with tempfile.TemporaryDirectory() as folder:
            in_float = Path(folder) / "float.onnx"
            self.export(in_float)
            write_int8(GraphNetwork.read(in_float, None, _arrays(self.samples)), path)


def compress(
    network: nn.Module | str | os.PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    factorize: Mapping[str, Any] | None = None,
    ranks: Mapping[str, Any] | None = None,
    images: Iterable[Batch] | None = None,
    sequential: bool | None = None,
    int8: bool = False,
) -> Compressed:
    """Decompose the layers of a copy of a network, without fine-tuning.

    Parameters
    ----------
    network
        Trained module with images as input, or the path of an ONNX file with any inputs. It is not
        changed.
    input_shape
        Shape of one image: (channels, height, width), any size that the network accepts. Needed for
        a module.
    inputs
        For an ONNX file that leaves sizes open: the shape of each input for one sample, with the
        batch axis, by name. By default, the shape of the first batch of `images`.
    factorize
        Same as `methods.<method>.factorize` in params.yaml: a factorization for each kind of layer,
        `include`, `exclude`, `norm` (default with images: `activation`), `sequential`, and, with a
        target, `alternatives`. The default is `RECOMMENDED` with a target, otherwise `TUCKER`.
    ranks
        Rank rule and its settings, same as `methods.<method>.ranks`. With
        `{"select": "budget", "target": {"macs": 0.25}}` and images, the costs have a target. A
        target of `{"latency_ms": {"local": 0.5}}` is measured on this machine with one thread,
        which takes minutes. With `{"accuracy_drop": 1.0}`, the cheapest network within an accuracy
        drop of 1 point is searched for, as set in `search`. It is measured on half of the images
        without labels, see `Expected.accuracy_drop`; if the outputs are not classes, it is the
        error of the outputs in percent.

        The default, with images and without `factorize`, is the lowest latency on this machine
        within a drop of 1 point, or within an output error of 10 %. Otherwise it is EVBMF. The
        cheapest layers stay dense, up to a share `negligible` (0.005) of the network.
    images
        Batches (N, channels, height, width) of a few hundred training images, as the network
        expects them, without labels. With images, the factors approximate the outputs of layers
        rather than their weights. The accuracy drop before fine-tuning is then much smaller, and
        the call takes seconds to minutes. The images are kept in memory. The agreement with the
        original network is printed. For an ONNX file, batches have the shape of its input; with
        several inputs, a batch is a mapping from their names.
    sequential
        Compensate in each layer for the error of the decomposed layers before it. This needs
        images. A module passes over them once more, an ONNX file once for each layer. The default
        is `sequential` in `factorize`.
    int8
        Whether you will quantize the result to int8. Targets of latency and of size then count the
        layers in int8; they are still shares of the original in float. A target of `accuracy_drop`
        holds for int8, unless int8 of the original already loses more. The result is in float.

    Returns
    -------
    Compressed
        The compressed network, its layers and its agreement with the original.

    Raises
    ------
    UserError
        If a name is unknown, a setting is out of range or has no effect, weights are not finite,
        the network does not accept the input shape, or `sequential` is set without images. With
        images, also if the drop of agreement is larger than `largest_drop` of the rule; the message
        then names the nearest setting that keeps enough.
    """
    is_recommended = ranks is None and factorize is None and images is not None
    rule = _rank_rule(recommended_ranks() if is_recommended else ranks or {})
    if factorize is None:
        has_target = rule_of(rule).compares_factorizations and images is not None
        factorize = RECOMMENDED if has_target else TUCKER
    settings = _factorize_settings(
        factorize, rule, images=images is not None, sequential=sequential
    )
    batches = None if images is None else list(images)
    original: ModuleNetwork | GraphNetwork
    if isinstance(network, nn.Module):
        original = _module_network(network, input_shape, batches or [])
    else:
        original = GraphNetwork.read(network, _shapes(inputs, input_shape), _arrays(batches or []))
    compression = Compression.of(original, settings)
    compression.int8 = int8
    compression.say = lambda line: print(f"lowrank: {line}", file=sys.stderr)
    if is_recommended:
        rule = _rank_rule(recommended_ranks(original))
    if isinstance(rule, BudgetSettings) and rule.searches:
        rule = AccuracySearch(compression, rule).settings()
    compressed, planned = compression.at(rule)
    expected = _checked_agreement(compression, rule, compressed, planned)
    result = compressed.module if isinstance(compressed, ModuleNetwork) else compressed.model
    return Compressed(
        result,
        planned,
        original.table.input_shape,
        expected,
        compression.macs(planned),
        compression.factored,
        rule.model_dump(exclude_unset=True, exclude={"search"}),
        batches or (),
    )


def _module_network(
    module: nn.Module, input_shape: tuple[int, ...] | None, batches: list[Any]
) -> ModuleNetwork:
    if input_shape is None or len(input_shape) != 3:
        raise UserError(
            f"input_shape: found {input_shape}; a module needs the shape of one image, (channels, "
            "height, width), such as (3, 224, 224)."
        )
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise UserError(
                f"images: a batch is a {type(batch).__name__}; expected a tensor of images, (N, "
                "channels, height, width). If your batches are pairs (images, labels), pass only "
                "the images: `images=[images for images, labels in batches]`."
            )
        if tuple(batch.shape[1:]) != tuple(input_shape):
            raise UserError(
                f"images: a batch has the shape {tuple(batch.shape)}, but `input_shape` is "
                f"{tuple(input_shape)}; expected (N, {', '.join(map(str, input_shape))})."
            )
    return ModuleNetwork.of(module, input_shape, get_task(DEFAULT_TASK), batches)


def _shapes(
    inputs: Mapping[str, Sequence[int]] | None, input_shape: tuple[int, ...] | None
) -> Mapping[str, Sequence[int]] | tuple[int, ...] | None:
    """Return the shapes of an ONNX network's inputs; a tuple is the shape of its only input."""
    if inputs and input_shape:
        raise UserError("inputs, input_shape: both are given. For an ONNX file, give `inputs`.")
    return inputs or (None if input_shape is None else (1, *input_shape))


def _arrays(batches: Sequence[Any]) -> list[Any]:
    """Return batches of tensors as batches of arrays."""

    def array(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {name: array(inner) for name, inner in batch.items()}
        return batch.detach().cpu().numpy() if isinstance(batch, Tensor) else np.asarray(batch)

    return [array(batch) for batch in batches]


def _checked_agreement(
    compression: Compression[Any],
    rule: RankSettings,
    compressed: Any,
    planned: tuple[PlannedLayer, ...],
) -> Expected | None:
    """Measure and print the agreement with the original. Raises UserError if it drops too far."""
    expected = compressed.expected_from(compression.network)
    if expected:
        print(f"lowrank: {expected.sentence()}", file=sys.stderr)
        if expected.exceeds(rule.largest_drop):
            print(
                "lowrank: the drop is larger than `largest_drop` allows; searching for the nearest "
                "milder setting, which can take minutes",
                file=sys.stderr,
            )
            raise UserError(_excessive_drop(compression, rule, expected))
    elif not compression.network.batches and any(not layer.is_dense for layer in planned):
        print(
            "lowrank: the accuracy drop is not known; pass `images` to measure it",
            file=sys.stderr,
        )
    return expected


def _excessive_drop(compression: Compression[Any], rule: RankSettings, expected: Expected) -> str:
    """Return a message that the drop is too large, with the nearest setting that is allowed."""

    def keeps_enough(milder: RankSettings) -> bool:
        expected = compression.at(milder)[0].expected_from(compression.network, _SAMPLES_OF_SEARCH)
        return expected is not None and not expected.exceeds(rule.largest_drop)

    nearest = nearest_that_keeps(rule, keeps_enough)
    advice = f"The nearest setting that keeps enough is `{nearest.written}`. " if nearest else ""
    metric = expected.metric
    return (
        f"ranks: at these ranks, the {metric.noun} is {metric.text(expected.after, 1)} on "
        f"{expected.images} images (original: {metric.text(expected.before, 1)}, chance: "
        f"{expected.chance_text}). `largest_drop` allows a loss of "
        f"{rule.largest_drop:.0%} of the distance from chance before fine-tuning. "
        f"{advice}To continue anyway, set `largest_drop` to 1."
    )


def _rank_rule(ranks: Mapping[str, Any]) -> RankSettings:
    """Check the settings of the rank rule. Raises UserError if one is wrong or not possible."""
    if not isinstance(ranks, Mapping):
        raise UserError(
            f"ranks: found {ranks!r}; expected a mapping of settings, such as "
            '{"select": "energy", "energy": 0.9}.'
        )
    return rank_settings(ranks)


def _factorize_settings(
    factorize: Mapping[str, Any], rule: RankSettings, *, images: bool, sequential: bool | None
) -> FactorizeSettings:
    """Check the settings. Raises UserError if one is wrong or has no effect."""
    if not isinstance(factorize, Mapping):
        raise UserError(
            f"factorize: found {factorize!r}; expected a factorization for each kind of layer, "
            'such as {"conv": "tucker2", "linear": "svd"}.'
        )
    entries = dict(factorize)
    if "images" in entries:
        raise UserError(
            "factorize.images: not supported here. Pass the images to `compress` as `images`."
        )
    if sequential:
        entries["sequential"] = True
    elif sequential is not None:
        entries.pop("sequential", None)
    if not images and entries.get("sequential"):
        raise UserError(
            "sequential: layers are compared on images, but `images` is None. Pass `images`."
        )
    if not images and entries.get("norm") == "activation":
        raise UserError(
            "factorize.norm: 'activation' approximates the outputs of layers on images, but "
            "`images` is None. Pass `images`."
        )
    if images:
        entries.setdefault("norm", "activation")
    try:
        settings = FactorizeSettings.model_validate(entries)
    except ValidationError as error:
        message = described(error, FactorizeSettings, entries, prefix=("factorize",))
        raise UserError(message) from error
    if settings.alternatives and not rule_of(rule).compares_factorizations:
        raise UserError(
            "factorize.alternatives: only `ranks={'select': 'budget', ...}` compares them, but "
            f"`select` is '{rule.select}'. Remove `alternatives`, or use 'budget'."
        )
    return settings
