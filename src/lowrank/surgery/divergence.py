"""Measure how much the outputs of a network change when one of its layers is decomposed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.core.tensors import length, pieces
from lowrank.factorize import Decomposition
from lowrank.surgery.replay import Replay
from lowrank.surgery.states import replaced
from lowrank.zoo.forward import evaluation_mode

# Memory limit for recorded outputs. It limits the number of images per forward pass.
_RECORDED_BYTES = 400_000_000

# Memory limit for the factors of a group of replacements. Each group needs one complete forward
# pass over the images.
_GROUP_BYTES = 300_000_000


class Divergence:
    """Mean divergence between the outputs of the original and of the changed network.

    Parameters
    ----------
    network
        Network to measure. It is not changed.
    images
        Returns the same batches on each call, as the network expects them: (N, C, H, W), or other
        inputs.
    difference
        Returns the divergence of outputs from the expected outputs, the mean over a batch. See
        `lowrank.tasks.task.Task.divergence`.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Callable[[], Iterable[Any]],
        difference: Callable[[Any, Any], Tensor],
    ) -> None:
        self._network, self._images, self._difference = network, images, difference

    @torch.no_grad()
    def __call__(self, replacements: Iterable[tuple[str, Decomposition]]) -> list[float]:
        """Return the divergence for each replacement: the name of a layer and its factors.

        Replacements are measured in groups. For each group, each batch of images passes the layers
        before a replaced layer only once.
        """
        divergences: list[float] = []
        group: list[tuple[str, Decomposition]] = []
        group_bytes = 0
        for name, factors in replacements:
            group.append((name, factors))
            group_bytes += sum(tensor.nbytes for tensor in factors.tensors.values())
            if group_bytes > _GROUP_BYTES:
                divergences += self._divergences(group)
                group.clear()
                group_bytes = 0
        return divergences + self._divergences(group)

    def _divergences(self, replacements: Sequence[tuple[str, Decomposition]]) -> list[float]:
        if not replacements:
            return []
        totals, count = [0.0] * len(replacements), 0
        with evaluation_mode(self._network), Replay(self._network) as replay:
            for images in self._recordable_batches(replay):
                expected = replay.record(images)
                for index, (name, factors) in enumerate(replacements):
                    with replaced(self._network, name, factors):
                        changed = replay.again(images, name)
                    totals[index] += float(self._difference(changed, expected)) * length(images)
                count += length(images)
        return [total / count for total in totals]

    def _recordable_batches(self, replay: Replay) -> Iterator[Any]:
        """Yield the batches, split so that recorded outputs stay within the memory limit."""
        batch_size = None
        for batch in self._images():
            if batch_size is None:
                replay.record(next(pieces(batch, 1)))
                batch_size = max(_RECORDED_BYTES // max(replay.recorded_bytes, 1), 1)
            yield from pieces(batch, batch_size)
