"""`checkpoint.<network>.metric`: a metric of the user."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from lowrank.core.metric import Metric
from lowrank.settings.section import OwnFunction, Section


class MetricSettings(Section):
    """A metric of your own: a function, and what its number is called."""

    function: OwnFunction = Field(
        description="The function, as `package.module:function`, imported with the current folder "
        "on the path. It gets a function `evaluate`, which takes a batch as a NumPy array and "
        "returns the network's output as an array (several outputs: a dictionary of arrays). It "
        "returns a number. A second parameter, if any, is the split: `validation` or `test`.",
    )
    name: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Name in tables and sentences. Default: the name of the function."
    )
    unit: str = Field("", description="Unit, such as `%` or `px`.")
    higher_is_better: bool = Field(True, description="Direction of the metric.")
    best: float | None = Field(
        None,
        description="Value of a network without errors. Default: 100 for `%`, else 1, and 0 if "
        "lower is better.",
    )
    chance: float | None = Field(
        None,
        description="Value of a useless network, from which `largest_drop` counts. Default: 0 if "
        "higher is better; else it is not known, and no drop is too large.",
    )

    @model_validator(mode="before")
    @classmethod
    def _function_alone(cls, document: Any) -> Any:
        return {"function": document} if isinstance(document, str) else document

    def to_document(self, code: str) -> dict[str, Any]:
        """Return the document of `lowrank.tasks.user_metric.UserMetric`."""
        name = self.name or self.function.rpartition(":")[2].rpartition(".")[2].replace("_", " ")
        best = self.best
        if best is None:
            best = (100.0 if self.unit == "%" else 1.0) if self.higher_is_better else 0.0
        chance = self.chance
        if chance is None and self.higher_is_better:
            chance = 0.0
        metric = Metric("value", name, name, self.unit, self.higher_is_better, best, is_own=True)
        return {
            "function": self.function,
            "metric": vars(metric),
            "chance": chance,
            "code": code,
        }
