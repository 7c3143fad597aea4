import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from toy import assert_same_weights, toy

from lowrank.errors import UserError
from lowrank.networks import NetworkSpec
from lowrank.params import Augmentation, Distillation, RoundSettings
from lowrank.training.batches import AugmentedBatches
from lowrank.training.distillation import (
    AugmentedTeacher,
    PlainTeacher,
    read_outputs,
    write_outputs,
)
from lowrank.training.loop import train

SPEC = NetworkSpec("toy", (3, 32, 32), 10)


def teacher_of(network, weight=0.5, temperature=4.0):
    return AugmentedTeacher(network, Distillation(weight=weight, temperature=temperature))


def recipe(weight, steps=60):
    return RoundSettings(
        steps=steps,
        batch_size=40,
        learning_rate=0.05,
        precision="float32",
        device="cpu",
        distill={"weight": weight},
    )


def gap(network, teacher, data):
    """Mean Kullback-Leibler divergence on the test images."""
    pixels = torch.tensor(data.test.images).float().movedim(3, 1) / 255
    with torch.inference_mode():
        found, wanted = (n.eval()(pixels).log_softmax(1) for n in (network, teacher))
    return float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_of_the_softened_outputs(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, outputs = torch.randn(2, 6, 5, generator=generator)
    ours, theirs = ((x / temperature).softmax(1) for x in (logits, outputs))
    expected = temperature**2 * (theirs * (theirs / ours).log()).sum(1).mean()
    teacher = teacher_of(nn.Identity(), weight=1.0, temperature=temperature)
    torch.testing.assert_close(teacher.mixed(torch.tensor(9.0), logits, outputs), expected)
    torch.testing.assert_close(
        teacher.mixed(torch.tensor(9.0), logits, logits), torch.tensor(0.0), atol=1e-6, rtol=0
    )
    mixed = teacher_of(nn.Identity(), 0.25, temperature).mixed(torch.tensor(2.0), logits, outputs)
    torch.testing.assert_close(mixed, 1.5 + 0.25 * expected)


def test_at_high_temperature_the_gradient_is_that_of_the_squared_difference():
    # Hinton et al. 2015, section 2.1: logits of mean zero, N classes, gradient (z - v) / N.
    logits = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    outputs = torch.tensor([[0.5, 0.5, -1.0]])
    teacher = teacher_of(nn.Identity(), weight=1.0, temperature=100.0)
    teacher.mixed(torch.tensor(0.0), logits, outputs).backward()
    torch.testing.assert_close(logits.grad, (logits.detach() - outputs) / 3, rtol=0.03, atol=0.01)


def test_without_labels_a_network_learns_to_answer_like_its_teacher(tiny_data):
    network, original = toy(seed=1), toy(seed=5)
    with torch.no_grad():
        original.classifier.weight.mul_(8.0)  # A teacher that has opinions.
    before, kept = gap(network, original, tiny_data), copy.deepcopy(original)
    train(network, SPEC, tiny_data, recipe(1.0, 150), teacher=teacher_of(original, 1.0), say=str)
    assert gap(network, original, tiny_data) < 0.5 * before
    # Neither its weights nor its running statistics moved.
    assert_same_weights(original, kept)


def test_a_teacher_of_no_weight_changes_nothing(tiny_data):
    alone, taught = toy(seed=1), toy(seed=1)
    train(alone, SPEC, tiny_data, recipe(0.0, 5), say=str)
    train(taught, SPEC, tiny_data, recipe(0.0, 5), teacher=teacher_of(toy(seed=5), 0.0), say=str)
    assert_same_weights(alone, taught)


@pytest.fixture
def stored(tmp_path, tiny_data):
    """A teacher, and the file of its outputs for the training images."""
    original = toy(seed=5)
    with torch.no_grad():
        original.classifier.weight.mul_(8.0)
    path = tmp_path / "outputs.safetensors"
    write_outputs(path, original, tiny_data.train, SPEC)
    return original, path


def test_stored_outputs_are_those_of_the_images_of_a_batch(stored, tiny_data):
    original, path = stored
    plain = Augmentation(pad_pixels=0, flip=False)
    batches = AugmentedBatches(tiny_data.train, SPEC, batch_size=40, augment=plain, seed=3)
    teachers = (
        PlainTeacher(read_outputs(path, tiny_data.train), Distillation(weight=1.0)),
        teacher_of(original),
    )
    for step in (0, batches.batches_per_epoch):
        images, _ = batches[step]
        known, anew = (t.outputs(images, batches.rows(step)) for t in teachers)
        torch.testing.assert_close(known, anew)


def test_a_network_learns_from_stored_outputs_as_well(stored, tiny_data):
    original, path = stored
    network, settings = toy(seed=1), Distillation(weight=1.0)
    before = gap(network, original, tiny_data)
    teacher = PlainTeacher(read_outputs(path, tiny_data.train), settings)
    train(network, SPEC, tiny_data, recipe(1.0, 150), teacher=teacher, say=str)
    assert gap(network, original, tiny_data) < 0.5 * before


def test_outputs_of_other_images_are_refused(stored, tiny_data):
    _, path = stored
    with pytest.raises(UserError, match=r"outputs\.safetensors: holds logits of \d+ images, where"):
        read_outputs(path, tiny_data.test)


def test_equal_outputs_are_equal_bytes(stored, tmp_path, tiny_data):
    original, path = stored
    write_outputs(tmp_path / "again.safetensors", original, tiny_data.train, SPEC)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert np.isfinite(read_outputs(path, tiny_data.train).numpy()).all()
