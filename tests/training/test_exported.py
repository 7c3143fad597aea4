from pathlib import Path

import numpy as np
import pytest
import torch
from small import SPEC, logits_of, small_network

from lowrank.errors import UserError
from lowrank.networks.export import export_onnx
from lowrank.training.datasets import Split
from lowrank.training.exported import compare_with_pytorch


def random_split(images: int = 300) -> Split:
    random = np.random.default_rng(0)
    return Split(
        images=random.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8),
        labels=random.integers(0, 5, images),
        rows=np.arange(images),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_onnx(small_network(), SPEC, path)
    return path


def test_comparison_covers_the_whole_split(exported: Path):
    split = random_split()
    result = compare_with_pytorch(exported, small_network(), split, SPEC, threads=1)
    assert result["images"] == 300  # more than one batch
    assert result["max_abs_error"] < 1e-4
    assert result["same_top1_percent"] == 100.0


def test_accuracy_is_that_of_the_file(exported: Path):
    split = random_split()
    pixels = split.images / np.float32(255)
    images = (pixels - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    classes = logits_of(exported, torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1)
    split.labels[:] = classes
    split.labels[:30] = (classes[:30] + 1) % 5
    result = compare_with_pytorch(exported, small_network(), split, SPEC, threads=1)
    assert result["accuracy_percent"] == pytest.approx(90.0)


def test_another_network_is_found_out(exported: Path):
    with pytest.raises(UserError, match=r"small\.onnx: does not compute .* over 300 images"):
        compare_with_pytorch(exported, small_network(seed=1), random_split(), SPEC, threads=1)


def test_an_error_too_small_to_change_a_class_is_found_out(exported: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].bias += 2e-3  # every logit: no class changes
    with pytest.raises(UserError, match=r"up to 0\.002 .* 100\.00 % get the same class"):
        compare_with_pytorch(exported, network, random_split(), SPEC, threads=1)


def test_a_class_changed_by_a_tiny_error_is_found_out(tmp_path: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.zero_()
    export_onnx(network, SPEC, tmp_path / "ties.onnx")
    with torch.no_grad():
        network[-1].bias[3] = 1e-4
    with pytest.raises(UserError, match=r"0\.00 % get the same class"):
        compare_with_pytorch(tmp_path / "ties.onnx", network, random_split(), SPEC, threads=1)


def test_logits_that_are_no_numbers_are_found_out(tmp_path: Path):
    network = small_network()
    with torch.no_grad():
        network[-1].bias[0] = float("nan")
    export_onnx(network, SPEC, tmp_path / "nan.onnx")
    with pytest.raises(UserError, match="differ by up to"):
        compare_with_pytorch(tmp_path / "nan.onnx", network, random_split(), SPEC, threads=1)
