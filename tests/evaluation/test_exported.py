from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SPEC, logits_of, small_network

from lowrank.data.datasets import Split
from lowrank.data.preprocessing import to_input
from lowrank.errors import UserError
from lowrank.evaluation.exported import ExportedNetworks
from lowrank.onnx_files.export import export_onnx
from lowrank.tasks import get_task

TASK = get_task("classification")


def compare_with_pytorch(path, network, split, spec, *, threads):
    return ExportedNetworks(TASK, spec, threads).compare_with_pytorch(path, network, split)


def exported_percent(path, split, spec, *, threads):
    return ExportedNetworks(TASK, spec, threads).values(path, split)


def random_split(images: int = 300) -> Split:
    generator = np.random.default_rng(0)
    return Split(
        images=generator.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8),
        labels=generator.integers(0, 5, images),
        rows=np.arange(images),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_onnx(small_network(), SPEC, path)
    return path


def test_comparison_uses_all_images(exported: Path):
    split = random_split()
    result = compare_with_pytorch(exported, small_network(), split, SPEC, threads=1)
    assert result["images"] == 300  # more than one batch
    assert result["max_abs_error"] < 1e-4
    assert result["same_top1_percent"] == 100.0


def test_accuracy_of_the_file(exported: Path):
    split = random_split()
    pixels = split.images / np.float32(255)
    images = (pixels - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    classes = logits_of(exported, torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1)
    split.labels[:] = classes
    split.labels[:30] = (classes[:30] + 1) % 5
    assert exported_percent(exported, split, SPEC, threads=1) == pytest.approx({"top1": 90.0})


def test_another_network_is_detected(exported: Path):
    with pytest.raises(UserError, match=r"small\.onnx: the outputs differ .* On 300 images"):
        compare_with_pytorch(exported, small_network(seed=1), random_split(), SPEC, threads=1)


def test_small_error_that_changes_no_class_is_detected(exported: Path):
    network, split = small_network(), random_split()
    unchanged = compare_with_pytorch(exported, network, split, SPEC, threads=1)
    logit_range = unchanged["max_abs_error"] / unchanged["relative_error"]
    with torch.no_grad():
        network[-1].bias += 0.9e-3 * logit_range  # every logit: no class changes
    result = compare_with_pytorch(exported, network, split, SPEC, threads=1)
    assert result["relative_error"] == pytest.approx(0.9e-3, rel=1e-2)
    assert result["max_abs_error"] == pytest.approx(0.9e-3 * logit_range, rel=1e-2)
    with torch.no_grad():
        network[-1].bias += 0.2e-3 * logit_range
    with pytest.raises(UserError, match=r"0\.0011 of their range .* 100\.00 % of the images have"):
        compare_with_pytorch(exported, network, split, SPEC, threads=1)


def test_class_changed_by_a_tiny_error_is_detected(tmp_path: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.zero_()
    export_onnx(network, SPEC, tmp_path / "ties.onnx")
    with torch.no_grad():
        network[-1].bias[3] = 1e-4
    with pytest.raises(UserError, match=r"0\.00 % of the images have the same top-1"):
        compare_with_pytorch(tmp_path / "ties.onnx", network, random_split(), SPEC, threads=1)


def test_nan_logits_are_detected(tmp_path: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].bias[0] = float("nan")
    export_onnx(network, SPEC, tmp_path / "nan.onnx")
    with pytest.raises(UserError, match="differ by up to"):
        compare_with_pytorch(tmp_path / "nan.onnx", network, random_split(), SPEC, threads=1)


def test_equal_logits_have_no_error(tmp_path: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.fill_(2.0)
    export_onnx(network, SPEC, tmp_path / "equal.onnx")
    result = compare_with_pytorch(tmp_path / "equal.onnx", network, random_split(), SPEC, threads=1)
    assert (result["max_abs_error"], result["relative_error"]) == (0.0, 0.0)


def test_subset_of_the_outputs_as_classes(exported: Path):
    split = random_split()
    logits = logits_of(exported, to_input(split.images, SPEC).contiguous())
    split.labels[:] = logits[:, [4, 1]].argmax(1)
    split.labels[:30] = 1 - split.labels[:30]
    subset = replace(split, outputs=(4, 1))
    result = compare_with_pytorch(exported, small_network(), subset, SPEC, threads=1)
    assert result["same_top1_percent"] == 100.0
    assert exported_percent(exported, subset, SPEC, threads=1) == pytest.approx({"top1": 90.0})


def test_top5_for_more_than_ten_classes(tmp_path: Path):
    network = small_network()
    network[-1] = torch.nn.Linear(32, 12)
    export_onnx(network, SPEC, tmp_path / "twelve.onnx")
    split = random_split()
    logits = logits_of(tmp_path / "twelve.onnx", to_input(split.images, SPEC).contiguous())
    split.labels[:] = np.argsort(-logits, axis=1)[:, 4]
    split.labels[:60] = np.argsort(-logits, axis=1)[:60, 5]
    accuracy = exported_percent(tmp_path / "twelve.onnx", split, SPEC, threads=1)
    assert accuracy == pytest.approx({"top1": 0.0, "top5": 80.0})


def test_images_are_resized_to_the_input(exported: Path):
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 16, 3), dtype=np.uint8)
    spec = replace(SPEC, resize=9)
    split = Split(images, np.zeros(20, np.int64), np.arange(20))
    result = compare_with_pytorch(exported, small_network(), split, spec, threads=1)
    assert result["images"] == 20
    assert result["relative_error"] < 1e-5


def test_long_evaluation_reports_progress(exported: Path, progress_lines):
    lines = progress_lines(
        lambda: exported_percent(exported, random_split(600), SPEC, threads=1), tick=6.0
    )
    assert [line.split(" images")[0] for line in lines] == ["250/600", "500/600"]
