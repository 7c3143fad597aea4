"""How far a network's answers move when one of its layers is decomposed."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.factorize import Decomposition
from lowrank.networks.states import replaced


class Divergence:
    """Measures how far the answers move, in nats: the mean Kullback-Leibler divergence.

    It is 0 for equal answers, grows with the square of small errors and needs no labels; a loss by
    labels can fall when a layer gets worse, by chance.

    Parameters
    ----------
    network
        It is left as it was.
    logits
        Runs it over the same images each time: batches of (N, outputs).
    """

    def __init__(self, network: nn.Module, logits: Callable[[], Iterable[Tensor]]) -> None:
        self._network, self._logits = network, logits
        self._answers = list(self._log_probabilities())

    def __call__(self, replacements: Iterable[tuple[str, Decomposition]]) -> list[float]:
        """The divergence for each replacement, a layer's name and its factors.

        An iterator that makes them one after the other saves memory.
        """
        found = []
        for name, factors in replacements:
            with replaced(self._network, name, factors):
                found.append(self._of_now())
        return found

    def _of_now(self) -> float:
        found = self._log_probabilities()
        total = sum(
            mean_divergence(answer, of_now) * len(answer)
            for of_now, answer in zip(found, self._answers, strict=True)
        )
        return total / sum(map(len, self._answers))

    def _log_probabilities(self) -> Iterator[Tensor]:
        # Around each batch alone: a generator must not switch gradients off for its caller.
        for batch in self._logits():
            with torch.no_grad():
                yield functional.log_softmax(batch, 1)


def mean_divergence(expected: Tensor, found: Tensor) -> float:
    """The mean Kullback-Leibler divergence of answers, log-probabilities (N, classes), in nats."""
    return float(functional.kl_div(found, expected, reduction="batchmean", log_target=True))
