"""A metric of the user: a function that measures a network on the user's own data."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank.core.metric import Metric
from lowrank.core.user_code import imported_function, reason_of
from lowrank.errors import UserError
from lowrank.tasks.agreement import Agreement
from lowrank.tasks.outputs import mapped
from lowrank.tasks.task import Measured

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lowrank.tasks.outputs import Outputs

    # Takes a batch as the network expects it, (N, ...), or several inputs by name; returns the
    # output, or outputs by name.
    Arrays = NDArray[np.generic] | dict[str, NDArray[np.generic]]
    Evaluate = Callable[[Arrays], Arrays]

#: Name of the task of a network with its own metric.
NAME = "metric"


@dataclass(frozen=True)
class UserMetric(Agreement):
    """A network whose metric is a function of the user.

    The function gets another function, `evaluate`, which runs the network on a batch. It returns a
    number. If it has a second parameter, that is the name of the split, `validation` or `test`. The
    network learns from the outputs of the original, and ranks are chosen by them, as for the task
    `agreement`.

    Parameters
    ----------
    function
        The function, as `package.module:function`. It is imported with the current folder on the
        path.
    metric
        Name, unit and direction of the number.
    chance
        Value of a useless network; None if it is not known.
    code
        Digest of the code of the function, which only tells when a result is stale.
    """

    function: str
    metric: Metric  # type: ignore[misc]
    chance: float | None = None
    code: str = field(default="", compare=False)

    name = NAME
    more_metrics: ClassVar[tuple[Metric, ...]] = ()
    has_scores = False

    @classmethod
    def from_json(cls, text: str) -> UserMetric:
        """Read the document of `to_json`."""
        document = json.loads(text)
        return cls(**(document | {"metric": Metric(**document["metric"])}))

    @property
    def depends_on_split(self) -> bool:
        """Whether the function has a second parameter, the name of the split."""
        return _takes_split(self._imported)

    @property
    def _imported(self) -> Callable[..., Any]:
        return imported_function(self.function, f"metric '{self.function}'")

    def useless_value(self, labels: Any) -> float | None:
        """Return the value of a useless network, or None if it is not known."""
        return self.chance

    def measure(
        self,
        network: Callable[[Any], Outputs],
        batches: Iterable[tuple[Any, Any]],
    ) -> Measured:
        """Return the number of the user's function for the test images."""
        return self.measure_split("test", network, batches)

    def measure_split(
        self,
        split: str,
        network: Callable[[Any], Outputs],
        batches: Iterable[tuple[Any, Any]],
    ) -> Measured:
        """Return the number of the user's function; `batches` are not used.

        Raises UserError if the function cannot be imported, raises an error, or returns no finite
        number.
        """
        function = self._imported
        arguments: tuple[Any, ...] = (_evaluation(network),)
        if _takes_split(function):
            arguments += (split,)
        try:
            value = function(*arguments)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"metric '{self.function}': the function fails: {reason_of(error)}. It gets a "
                "function that runs the network on a batch, and returns a number. Correct the "
                "function."
            ) from error
        return Measured({self.metric.key: self._number(value)})

    def _number(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"metric '{self.function}': the function returns {type(value).__name__}; expected "
                "a number. Correct the function."
            ) from None
        if not math.isfinite(number):
            raise UserError(
                f"metric '{self.function}': the function returns {number}; expected a finite "
                "number. Correct the function, for example for a network that finds nothing."
            )
        return number


def _evaluation(network: Callable[[Any], Outputs]) -> Evaluate:
    """Return a function from arrays to arrays that runs a network."""
    import numpy as np
    import torch

    def evaluate(batch: Any) -> Any:
        def as_tensor(array: Any) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            return tensor.float() if tensor.is_floating_point() else tensor

        with torch.inference_mode():
            return mapped(_to_array, network(mapped(as_tensor, batch)))

    return evaluate


def _to_array(tensor: Tensor) -> Any:
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.cpu().numpy()


def _takes_split(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # Some functions written in C have no signature.
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in parameters) > 1
