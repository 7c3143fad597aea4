"""Remove channels with Torch-Pruning: three importances, which of them, and where."""

import itertools
from collections.abc import Callable

import torch
import torch_pruning
from peer import BATCH, SHAPE, Work, largest_within, timed
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck

# Recommended by the documentation: 4 or 8.
_ROUND_TO = 8
_IMPORTANCES = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "scale of batch normalization": torch_pruning.importance.BNScaleImportance(),
    "Taylor": torch_pruning.importance.GroupTaylorImportance(),
}
# Options of the pruner. The documentation names isomorphic groups as the better global choice.
_RANKINGS: dict[str, dict[str, bool]] = {
    "per layer": {},
    "global": {"global_pruning": True, "isomorphic": True},
}
_PLACES = ("everywhere", "inside blocks")


def main() -> None:
    work = Work()
    gradients = {name: _gradients(work) if name == "Taylor" else {} for name in _IMPORTANCES}
    trials = []
    for importance, ranking, place in itertools.product(_IMPORTANCES, _RANKINGS, _PLACES):

        def pruned(
            share: float, importance: str = importance, ranking: str = ranking, place: str = place
        ) -> nn.Module:
            network = work.copy()
            for name, parameter in network.named_parameters():
                parameter.grad = gradients[importance].get(name)
            torch_pruning.pruner.BasePruner(
                network,
                torch.zeros(1, *SHAPE),
                importance=_IMPORTANCES[importance],
                pruning_ratio=1 - share,
                ignored_layers=_ignored(network, place),
                round_to=_ROUND_TO,
                **_RANKINGS[ranking],
            ).step()
            network.zero_grad()
            return network

        def within(build: Callable[[float], nn.Module] = pruned) -> nn.Module:
            return build(largest_within(work.limit, build))

        trials.append(timed(f"{importance}, {ranking}, {place}", within))
    work.keep_best(trials)


def _ignored(network: nn.Module, place: str) -> list[nn.Module]:
    """Return the layers whose outputs keep their channels.

    Inside blocks, the sums of the residual connections keep theirs.
    """
    layers = [network.get_submodule("fc")]
    if place == "inside blocks":
        layers.append(network.get_submodule("conv1"))
        for block in network.modules():
            if isinstance(block, Bottleneck):
                layers.append(block.conv3)
                if block.downsample is not None:
                    layers.append(block.downsample[0])
    return layers


def _gradients(work: Work) -> dict[str, torch.Tensor]:
    """Return the gradients of the loss on the network's own answers to the images."""
    network = work.copy()
    for batch in work.images.split(BATCH):
        logits = network(batch)
        loss = functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (loss / len(work.images)).backward()
    parameters = network.named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}


if __name__ == "__main__":
    main()
