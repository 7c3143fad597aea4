"""The comparison of the network found for a target with int8 of the original."""

from functools import partial

import pytest

from lowrank.report import targets
from lowrank.tasks import get_task

METRIC = get_task("classification").metric
best_for_latency = partial(targets.best_for_latency, metric=METRIC)
best_of_search = partial(targets.best_of_search, metric=METRIC)


def result(over=2.0, bounds=(1.9, 2.1), speedups=(8.0, 4.0), percents=(89.0, 91.0)):
    compressed, control = (
        {
            "accuracy": {"validation": {"exported": percent}},
            "size_bytes": {"compressed": size},
            "latency_ms": {"board": {"speedup": speedup}},
        }
        for percent, speedup, size in zip(percents, speedups, (100, 400), strict=True)
    )
    if over:
        compressed["latency_ms"]["board"] |= {
            "speedup_over_control": over,
            "speedup_over_control_low": bounds[0],
            "speedup_over_control_high": bounds[1],
        }
    return {"int8": compressed, "control": {"int8": control}}


def search(drop=0.8, within=True, control=0.1, cost="latency_ms.board"):
    report = {"accuracy_drop": 1.0, "cost": cost, "drop": drop, "standard_error": 0.1}
    report |= {"within": within}
    if control is not None:
        report["control"] = {"drop": control, "standard_error": 0.2, "within": control < 1}
    return report


@pytest.mark.parametrize(
    ("report", "measured", "best", "reason"),
    [
        (search(), result(), "compressed", "is faster than int8 of the original on board: 2.00"),
        (search(), result(0.9, (0.8, 0.95)), "control", "not clearly faster"),
        # A network that is only as fast as the control has no advantage, as the control is free.
        (search(), result(1.1, (0.98, 1.2)), "control", "1.10 times (0.98 to 1.20)"),
        (search(), result(over=None), "compressed", "was not measured on board"),
        (search(drop=2.0, within=False), result(), "control", "but all trials lose more"),
        (search(control=3.0), result(), "compressed", "loses more than 1 points"),
        (search(control=None), result(), "compressed", "delivers no int8"),
        (search(cost="macs"), result(0.9, (0.8, 0.95)), "compressed", "does not reduce the macs"),
        (search(cost="size_bytes"), result(), "compressed", "has 100 bytes"),
    ],
)
def test_the_answer_of_a_search(report, measured, best, reason):
    answer = best_of_search(report, measured)
    assert answer["best"] == best
    assert reason in answer["reason"]


def test_the_reason_states_both_losses():
    reason = best_of_search(search(), result())["reason"]
    assert "it loses 0.10 +- 0.20 points, the compressed network 0.80 +- 0.10" in reason


@pytest.mark.parametrize(
    ("allowed", "measured", "met", "best"),
    [
        (0.15, result(), (True, False), "compressed"),
        (0.3, result(), (True, True), "control"),
        (0.3, result(percents=(92.0, 91.0)), (True, True), "compressed"),
        (0.3, result(speedups=(3.0, 4.0), percents=(92.0, 91.0)), (False, True), "control"),
        (0.1, result(), (False, False), "compressed"),
    ],
)
def test_the_answer_to_a_target_of_milliseconds(allowed, measured, met, best):
    answer = best_for_latency({"board": allowed}, measured)
    assert (answer["met"], answer["met_by_control"]) == met
    assert answer["best"] == best
    assert answer["latency_ms"]["board"]["allowed"] == allowed
    assert answer["latency_ms"]["board"]["control"] == 0.25
    assert f"0.250 on board ({allowed:g} allowed)" in answer["reason"]


def test_a_control_that_was_not_measured_is_never_the_answer():
    measured = result()
    measured["control"]["int8"]["latency_ms"]["board"] = {"not_measured": "no int8 kernels"}
    answer = best_for_latency({"board": 0.3}, measured)
    assert (answer["met_by_control"], answer["best"]) == (False, "compressed")
    assert answer["latency_ms"]["board"] == {"allowed": 0.3, "compressed": 0.125}
