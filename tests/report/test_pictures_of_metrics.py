"""Pictures have the name, the unit and the direction of the task's metric."""

import pytest
from matplotlib.figure import Figure

from lowrank.core.metric import Metric
from lowrank.report.pareto import accuracy_picture
from lowrank.report.study_picture import study_picture
from lowrank.report.study_table import markdown
from lowrank.report.variant_pictures import curve_picture
from lowrank.tasks import get_task

ERROR = Metric("mae", "mean error", "error", unit="px", higher_is_better=False, best=0.0)
METRICS = {"net": get_task("classification").metric, "poses": ERROR}


def record(network, method, accuracy, latency, front):
    return {
        "network": network,
        "method": method,
        "precision": "float32",
        "device": "board",
        "cpu": None,
        "accuracy": accuracy,
        "relative_latency": latency,
        "front": front,
    }


def test_each_network_has_the_axis_of_its_metric(tmp_path, monkeypatch):
    limits = {}

    def record_limits(axes, records, metric, cost, front):
        original(axes, records, metric, cost, front)
        limits[metric.name] = axes.get_ylim()

    original = accuracy_picture.__globals__["_draw_panel"]
    monkeypatch.setitem(accuracy_picture.__globals__, "_draw_panel", record_limits)
    records = [
        record(network, method, value, latency, True)
        for network, values in (("net", (92.0, 90.0)), ("poses", (2.0, 3.0)))
        for method, value, latency in (("original", values[0], 1.0), ("tucker", values[1], 0.5))
    ]
    path = tmp_path / "picture.svg"
    accuracy_picture(path, records, METRICS, cost="relative_latency", label="cost", front="front")
    text = path.read_text()
    assert "top-1 on the test images, %" in text
    assert "mean error on the test images, px" in text
    assert limits["top-1"][0] < limits["top-1"][1]
    # Better networks are further up.
    assert limits["mean error"][0] > limits["mean error"][1]


def test_only_the_best_of_many_networks_have_names(tmp_path):
    path = tmp_path / "picture.svg"
    records = [record("net", "original", 92.0, 1.0, True)]
    records += [record("net", f"method{n}", 80.0 + n / 10, n / 100, n == 7) for n in range(5, 105)]
    accuracy_picture(path, records, METRICS, cost="relative_latency", label="cost", front="front")
    text = path.read_text()
    assert ">method7<" in text
    assert ">method8<" not in text
    accuracy_picture(
        path, records[:20], METRICS, cost="relative_latency", label="cost", front="front"
    )
    assert ">method8<" in path.read_text()


@pytest.mark.parametrize(("networks", "shape"), [(4, (4, 1)), (5, (2, 3)), (20, (7, 3))])
def test_panels_of_many_networks_share_rows(tmp_path, monkeypatch, networks, shape):
    shapes = []

    def record_shape(figure, rows, columns, **options):
        shapes.append((rows, columns))
        return original(figure, rows, columns, **options)

    original = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", record_shape)
    names = [f"net{number}" for number in range(networks)]
    records = [record(name, "original", 92.0, 1.0, True) for name in names]
    metrics = dict.fromkeys(names, METRICS["net"])
    path = tmp_path / "picture.svg"
    accuracy_picture(path, records, metrics, cost="relative_latency", label="cost", front="front")
    assert shapes == [shape]
    assert all(f">{name}<" in path.read_text() for name in names)


def test_the_training_curve_names_the_metric(tmp_path):
    curve = [
        {"round": 1, "step": step, "train_percent": 2.0, "validation_percent": 3.0}
        for step in (1, 2)
    ]
    curve_picture(tmp_path / "curve.svg", curve, ERROR, title="poses")
    assert "mean error, px" in (tmp_path / "curve.svg").read_text()


def row(model, value):
    return {
        "model": model,
        "variant": "short_1",
        "original_percent": value,
        "decomposed_validation_percent": value,
        "finetuned_validation_percent": value,
        "test_percent": value,
        "macs_ratio": 2.0,
        "parameters_ratio": 2.0,
        "device": "board",
        "speedup": 1.5,
        "rounds": 1,
        "steps": 10,
        "seconds": 1.0,
    }


@pytest.mark.parametrize("x", ["variant", "steps"])
def test_a_study_names_the_metric_of_each_network(tmp_path, x):
    rows = [row("net", 90.0), row("poses", 2.0)]
    study_picture(tmp_path / "study.svg", rows, METRICS, title="Study", x=x)
    text = (tmp_path / "study.svg").read_text()
    assert "mean error on the test images" in text
    assert "top-1 on the test images" in text


def test_the_table_of_a_study_states_the_unit():
    page = markdown("Study", [row("poses", 2.0)], METRICS)
    assert "Originals on the test images: poses 2.00 px." in page
    assert "| after, validation px | after, test px |" in page
    assert "| after, validation % | after, test % |" in markdown(
        "Study", [row("net", 2.0)], METRICS
    )
