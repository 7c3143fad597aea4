"""How far a network's answers move when one of its layers is decomposed."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.factorize import Decomposition
from lowrank.surgery.replay import Replay
from lowrank.surgery.states import replaced
from lowrank.zoo.forward import evaluation_mode

# Images at once, by what a recorded pass over them takes in memory.
_RECORDED_BYTES = 400_000_000

# Replacements that are kept at once, likewise; each time the images pass the whole network again.
_KEPT_BYTES = 300_000_000


class Divergence:
    """Measures how far the answers move, in nats: the mean Kullback-Leibler divergence.

    It is 0 for equal answers, grows with the square of small errors and needs no labels; a loss by
    labels can fall when a layer gets worse, by chance.

    Parameters
    ----------
    network
        It is left as it was.
    images
        The same batches each time, as the network takes them: (N, C, H, W).
    of_classes
        The outputs that belong to classes, of all: (N, outputs) -> (N, classes).
    """

    def __init__(
        self,
        network: nn.Module,
        images: Callable[[], Iterable[Tensor]],
        of_classes: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        self._network, self._images, self._of_classes = network, images, of_classes

    @torch.no_grad()
    def __call__(self, replacements: Iterable[tuple[str, Decomposition]]) -> list[float]:
        """The divergence for each replacement, a layer's name and its factors.

        Several of them are kept at a time: so each batch of images passes the layers before a
        replaced one only once for all of these.
        """
        found: list[float] = []
        kept: list[tuple[str, Decomposition]] = []
        kept_bytes = 0
        for name, factors in replacements:
            kept.append((name, factors))
            kept_bytes += sum(tensor.nbytes for tensor in factors.tensors.values())
            if kept_bytes > _KEPT_BYTES:
                found += self._of(kept)
                kept.clear()
                kept_bytes = 0
        return found + self._of(kept)

    def _of(self, replacements: Sequence[tuple[str, Decomposition]]) -> list[float]:
        if not replacements:
            return []
        totals, count = [0.0] * len(replacements), 0
        with evaluation_mode(self._network), Replay(self._network) as replay:
            for images in self._pieces(replay):
                expected = self._answers(replay.record(images))
                for index, (name, factors) in enumerate(replacements):
                    with replaced(self._network, name, factors):
                        found = self._answers(replay.again(images, name))
                    totals[index] += mean_divergence(expected, found) * len(images)
                count += len(images)
        return [total / count for total in totals]

    def _pieces(self, replay: Replay) -> Iterator[Tensor]:
        """The batches, cut into what may be recorded at once."""
        most = None
        for batch in self._images():
            if most is None:
                replay.record(batch[:1])
                most = max(_RECORDED_BYTES // max(replay.recorded_bytes, 1), 1)
            yield from batch.split(most)

    def _answers(self, outputs: Tensor) -> Tensor:
        return functional.log_softmax(self._of_classes(outputs), 1)


def mean_divergence(expected: Tensor, found: Tensor) -> float:
    """The mean Kullback-Leibler divergence of answers, log-probabilities (N, classes), in nats."""
    return float(functional.kl_div(found, expected, reduction="batchmean", log_target=True))
