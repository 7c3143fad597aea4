"""Build the files of the papers' tables: the original and its compressed networks, also in int8.

Files stay in `build/papers_tables/<network>/`, with a JSON document for each row that says how it
was built. A row whose document exists is not built again.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import papers_networks
import yaml
from papers_networks import PAPERS

import lowrank
from lowrank.api import TUCKER
from lowrank.compression.graph_network import GraphNetwork
from lowrank.compression.in_memory import Compression
from lowrank.compression.int8_file import write_int8
from lowrank.compression.module_network import ModuleNetwork
from lowrank.config.factorize import FactorizeSettings
from lowrank.core.plans import PlannedLayer
from lowrank.errors import UserError
from lowrank.factorize import get_factorization, one_group
from lowrank.files import read_json, write_json
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.any_rule import rank_settings
from lowrank.tasks import get_task

ROOT = Path(__file__).parent.parent

# What `lowrank.compress` does with images.
RECOMMENDED = {**lowrank.RECOMMENDED, "norm": "activation"}
CP = {"first_conv": "channel_svd", "conv": "cp_tpm", "pointwise_conv": "svd", "linear": "svd"}

TITLES = {
    "original": "original",
    "kim": "EVBMF at the paper's MAC ratio",
    "kim_same_macs": "recommended, the same MACs",
    "kim_same_time": "recommended, the same time",
    "astrid": "CP and SVD at the paper's ratio of parameters",
    "astrid_same_macs": "recommended, the MACs of CP",
    "astrid_same_time": "recommended, the time of CP",
}

# Speed-up over the original of a row that is already built.
Speedup = Callable[[str], float]


def rows_of(name: str) -> dict[str, str]:
    """Return the titles of the rows of a network."""
    papers = [paper for paper in ("kim", "astrid") if name in PAPERS[paper]["networks"]]
    papers = papers or ["kim"]
    titles = {
        row: title
        for row, title in TITLES.items()
        if row == "original" or row.partition("_")[0] in papers
    }
    return titles | ({"kim": "the paper's ranks"} if name == "alexnet" else {})


class Files:
    """The files of one network, built as they are needed.

    Parameters
    ----------
    name
        Name of the network.
    paths
        Images for the calibration of networks with trained convolutions.
    count
        Number of images for the calibration.
    """

    def __init__(self, name: str, paths: list[Path], count: int) -> None:
        self.name, self._paths, self._count = name, paths, count
        self._folder = papers_networks.FOLDER / name

    def in_float(self, row: str) -> Path:
        """Path of a row's file in float."""
        return self._folder / f"{row}.onnx"

    def in_int8(self, row: str) -> Path:
        """Path of a row's file in int8."""
        return self._folder / f"{row}_int8.onnx"

    def facts(self, row: str) -> dict[str, Any]:
        """Return how a row was built. Raises UserError if it was not."""
        path = self._folder / f"{row}.json"
        if not path.exists():
            raise UserError(f"{path}: missing. Run once without --measure-only to build the files.")
        facts: dict[str, Any] = read_json(path)
        return facts

    def build(self, row: str, speedup: Speedup) -> None:
        """Build the files of a row, unless they exist. The rows it refers to must exist."""
        document = self._folder / f"{row}.json"
        if document.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        paper, _, same = row.partition("_")
        try:
            if row == "original":
                export_onnx(self._module, self._spec, self.in_float(row))
                facts: dict[str, Any] = {"images": self._images[0]}
            elif same:
                facts = self._recommended(row, paper, same, speedup)
            else:
                facts = self._by_kim() if paper == "kim" else self._by_astrid()
        except UserError as error:
            # For example, no factors reach a target of latency.
            facts = {"not_built": str(error)}
        else:
            facts["nodes_in_float"] = list(self._quantize(row))
        facts["seconds"] = round(time.perf_counter() - started, 1)
        write_json(document, facts)

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        return papers_networks.network_with_weights(self.name)

    @property
    def _spec(self) -> Any:
        return self._network[0]

    @property
    def _module(self) -> Any:
        return self._network[1]

    @cached_property
    def _images(self) -> tuple[str, list[Any]]:
        return papers_networks.calibration_images(self.name, self._spec, self._paths, self._count)

    @property
    def _paper_shares(self) -> dict[str, float]:
        """Share of the costs that stays according to the papers."""
        # torchvision's AlexNet is a variant of the papers' network.
        name = self.name.removeprefix("torchvision_")
        before, after = PAPERS["kim"]["networks"][name]["macs_millions"]
        astrid = PAPERS["astrid"]["networks"].get(name)
        shares = {"macs": after / before}
        return shares | ({"parameters": 1 / astrid["weights_ratio"]} if astrid else {})

    def _compression(self, factorize: Mapping[str, Any], *, images: bool = False) -> Any:
        batches = self._images[1] if images else []
        task = get_task("classification")
        network = ModuleNetwork.of(self._module, self._spec.input_shape, task, batches)
        compression = Compression.of(network, FactorizeSettings.model_validate(factorize))
        compression.say = lambda line: print(f"  {line}", flush=True)
        return compression

    @cached_property
    def _recommending(self) -> Any:
        """The compression of the recommended method; its targets share the measured losses."""
        return self._compression(RECOMMENDED, images=True)

    def _recommended(self, row: str, paper: str, same: str, speedup: Speedup) -> dict[str, Any]:
        """Compress to the MACs or to the latency of a paper's row."""
        if same == "same_macs":
            target: dict[str, Any] = {"macs": self.facts(paper)["macs_share"]}
        else:
            share = round(1 / speedup(paper), 4)
            if share >= 1:
                raise UserError(f"the row '{paper}' is no faster than the original")
            target = {"latency_ms": {"local": share}}
        rule = {"select": "budget", "target": target, "multiple_of": "auto"}
        return {"target": target} | self._write(row, self._recommending, rule)

    def _by_kim(self) -> dict[str, Any]:
        """Compress by the paper's ranks, or by EVBMF ranks scaled to the paper's MACs."""
        if self.name == "alexnet":
            method = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]["tucker_alexnet"]
            return self._write("kim", self._compression(method["factorize"]), method["ranks"])
        # The paper's number of weights says that the linear layers of its VGG-16 stayed dense.
        left = ["fc*"] if self.name == "vgg16_imagenet" else []
        compression = self._compression({**TUCKER, "exclude": left})
        evbmf = compression.plan(rank_settings({"select": "vbmf", "negligible": 0}))

        def rule(thousandths: int) -> dict[str, Any]:
            return {"select": "fixed", "table": scaled(compression, evbmf, thousandths / 1000)}

        def share(thousandths: int) -> float:
            before, after = compression.macs(compression.plan(rank_settings(rule(thousandths))))
            return float(after / before)

        scale = largest_within(self._paper_shares["macs"], range(20, 6000), share)
        facts = {"scale": scale / 1000, "evbmf": {layer.name: layer.chosen for layer in evbmf}}
        return facts | self._write("kim", compression, rule(scale))

    def _by_astrid(self) -> dict[str, Any]:
        """Compress by CP and SVD, with the parameters of each layer divided by the same factor."""
        compression = self._compression(CP)

        def rule(hundredths: int) -> dict[str, Any]:
            return {"select": "ratio", "cost": "parameters", "ratio": -hundredths / 100}

        def share(hundredths: int) -> float:
            planned = compression.plan(rank_settings(rule(hundredths)))
            total = sum(layer.parameters for layer in compression.network.table.layers)
            saved = sum(layer.parameters[0] - layer.parameters[1] for layer in planned)
            return float(1 - saved / total)

        # Negative, because a higher ratio leaves fewer parameters.
        ratio = largest_within(self._paper_shares["parameters"], range(-3000, -101), share)
        return {"ratio": -ratio / 100} | self._write("astrid", compression, rule(ratio))

    def _write(self, row: str, compression: Any, rule: Mapping[str, Any]) -> dict[str, Any]:
        """Write the compressed network in float, and return its ranks."""
        compressed, planned = compression.at(rank_settings(rule))
        before, after = compression.macs(planned)
        export_onnx(compressed.module, self._spec, self.in_float(row))
        ranks = {
            layer.name: {"factorization": layer.factorization, "ranks": list(layer.ranks)}
            for layer in planned
            if not layer.is_dense
        }
        return {"macs_share": round(after / before, 6), "ranks": ranks}

    def _quantize(self, row: str) -> tuple[str, ...]:
        """Write a row in int8, and return the nodes that stay in float because they are faster."""
        batches = [batch.numpy() for batch in self._images[1]]
        shapes = {"images": (1, *self._spec.input_shape)}
        network = GraphNetwork.read(self.in_float(row), shapes, batches)
        return write_int8(network, self.in_int8(row))


def scaled(
    compression: Any, planned: tuple[PlannedLayer, ...], scale: float
) -> dict[str, tuple[int, ...]]:
    """Return a table of ranks: those of a plan times a factor, from 1 to full rank.

    Layers whose ranks are 0, because their weights are only noise, are not in it.
    """
    table = compression.network.table
    return {
        layer.name: tuple(
            min(max(round(scale * rank), 1), full)
            for rank, full in zip(
                layer.chosen,
                get_factorization(layer.factorization).full_ranks(one_group(table[layer.name])),
                strict=True,
            )
        )
        for layer in planned
        if layer.chosen and 0 not in layer.chosen
    }


def largest_within(limit: float, numbers: range, share: Callable[[int], float]) -> int:
    """Return the largest number whose share is at most `limit`. Shares rise with the number."""
    return numbers[max(bisect_right(numbers, limit, key=share) - 1, 0)]
