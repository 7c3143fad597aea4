import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from toy import assert_same_weights, toy

from lowrank.config.finetune import Distillation, RoundSettings
from lowrank.config.training import Augmentation
from lowrank.data.batches import AugmentedBatches
from lowrank.errors import UserError
from lowrank.tasks import get_task
from lowrank.training import loop
from lowrank.training.distillation import (
    Answers,
    AugmentedTeacher,
    PlainTeacher,
    read_outputs,
    write_outputs,
)
from lowrank.zoo import NetworkSpec

TASK = get_task("classification")
train = partial(loop.train, TASK)
SPEC = NetworkSpec("toy", (3, 32, 32), 10)
MAPS = ("conv2",)


def teacher_of(network, weight=0.5, temperature=4.0):
    return AugmentedTeacher(network, Distillation(weight=weight, temperature=temperature))


def plain_teacher(path, data, settings):
    return PlainTeacher(read_outputs(path, data.train), settings, len(data.train))


def recipe(weight, steps=60):
    return RoundSettings(
        steps=steps,
        batch_size=40,
        learning_rate=0.05,
        precision="float32",
        device="cpu",
        distill={"weight": weight},
    )


def divergence_on_test(network, teacher, data):
    """Return the mean Kullback-Leibler divergence on the test images."""
    pixels = torch.tensor(data.test.images).float().movedim(3, 1) / 255
    with torch.inference_mode():
        outputs, expected = (n.eval()(pixels).log_softmax(1) for n in (network, teacher))
    return float(functional.kl_div(outputs, expected, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_is_the_divergence_of_the_softened_outputs(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, outputs = torch.randn(2, 6, 5, generator=generator)
    ours, theirs = ((x / temperature).softmax(1) for x in (logits, outputs))
    expected = temperature**2 * (theirs * (theirs / ours).log()).sum(1).mean()
    teacher = teacher_of(nn.Identity(), weight=1.0, temperature=temperature)
    torch.testing.assert_close(
        teacher.combined_loss(TASK, torch.tensor(9.0), logits, {}, Answers(outputs)), expected
    )
    torch.testing.assert_close(
        teacher.combined_loss(TASK, torch.tensor(9.0), logits, {}, Answers(logits)),
        torch.tensor(0.0),
        atol=1e-6,
        rtol=0,
    )
    teacher = teacher_of(nn.Identity(), 0.25, temperature)
    loss = teacher.combined_loss(TASK, torch.tensor(2.0), logits, {}, Answers(outputs))
    torch.testing.assert_close(loss, 1.5 + 0.25 * expected)


def test_gradient_at_high_temperature_is_that_of_the_squared_difference():
    # Hinton et al. 2015, section 2.1: logits of mean zero, N classes, gradient (z - v) / N.
    logits = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    outputs = torch.tensor([[0.5, 0.5, -1.0]])
    teacher = teacher_of(nn.Identity(), weight=1.0, temperature=100.0)
    teacher.combined_loss(TASK, torch.tensor(0.0), logits, {}, Answers(outputs)).backward()
    torch.testing.assert_close(logits.grad, (logits.detach() - outputs) / 3, rtol=0.03, atol=0.01)


def test_network_learns_the_outputs_of_its_teacher_without_labels(tiny_data):
    network, original = toy(seed=1), toy(seed=5)
    with torch.no_grad():
        original.classifier.weight.mul_(8.0)  # Makes the outputs of the teacher less uniform.
    before, unchanged = divergence_on_test(network, original, tiny_data), copy.deepcopy(original)
    train(network, SPEC, tiny_data, recipe(1.0, 150), teacher=teacher_of(original, 1.0), say=str)
    assert divergence_on_test(network, original, tiny_data) < 0.5 * before
    # The weights and running statistics of the teacher did not change.
    assert_same_weights(original, unchanged)


def test_teacher_with_weight_zero_changes_nothing(tiny_data):
    without, with_teacher = toy(seed=1), toy(seed=1)
    teacher = teacher_of(toy(seed=5), 0.0)
    train(without, SPEC, tiny_data, recipe(0.0, 5), say=str)
    train(with_teacher, SPEC, tiny_data, recipe(0.0, 5), teacher=teacher, say=str)
    assert_same_weights(without, with_teacher)


@pytest.fixture
def stored(tmp_path, tiny_data):
    """Return a teacher and a file with its outputs for the training images."""
    original = toy(seed=5)
    with torch.no_grad():
        original.classifier.weight.mul_(8.0)
    path = tmp_path / "outputs.safetensors"
    write_outputs(path, original, tiny_data.train, SPEC, layers=MAPS, mirrored=True)
    return original, path


@pytest.mark.parametrize("flip", [False, True])
def test_stored_outputs_match_the_images_of_a_batch(stored, tiny_data, flip):
    original, path = stored
    plain = Augmentation(pad_pixels=0, flip=flip)
    batches = AugmentedBatches(tiny_data.train, SPEC, batch_size=40, augment=plain, seed=3)
    settings = Distillation(weight=1.0, maps=1.0)
    teachers = (
        plain_teacher(path, tiny_data, settings),
        AugmentedTeacher(original, settings, MAPS),
    )
    for step in (0, batches.batches_per_epoch):
        images, _ = batches[step]
        from_file, computed = (
            teacher.answers(images, batches.rows(step), batches.flipped(step))
            for teacher in teachers
        )
        torch.testing.assert_close(from_file.logits, computed.logits)
        # Maps are stored in float16.
        torch.testing.assert_close(
            {layer: feature_map.float() for layer, feature_map in from_file.maps.items()},
            computed.maps,
            rtol=2e-3,
            atol=1e-4,
        )
        assert set(from_file.maps) == set(MAPS)


def test_network_learns_from_stored_outputs(stored, tiny_data):
    original, path = stored
    network, settings = toy(seed=1), Distillation(weight=1.0)
    before = divergence_on_test(network, original, tiny_data)
    teacher = plain_teacher(path, tiny_data, settings)
    train(network, SPEC, tiny_data, recipe(1.0, 150), teacher=teacher, say=str)
    assert divergence_on_test(network, original, tiny_data) < 0.5 * before


def test_loss_of_a_map_is_its_relative_squared_error():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 6, 4, 3, 3, generator=generator)
    logits = torch.zeros(6, 5)
    answers, settings = Answers(logits, {"conv2": theirs}), Distillation(weight=0.5, maps=3.0)
    loss = PlainTeacher(answers, settings, 6).combined_loss(
        TASK, torch.tensor(2.0), logits, {"conv2": ours}, answers
    )
    relative = (ours - theirs).square().sum() / theirs.square().sum()
    torch.testing.assert_close(loss, 0.5 * 2.0 + 0.5 * 3.0 * relative)
    zeros = Answers(logits, {"conv2": torch.zeros_like(theirs)})
    loss = PlainTeacher(zeros, settings, 6).combined_loss(
        TASK, torch.tensor(0.0), logits, {"conv2": torch.zeros_like(ours)}, zeros
    )
    assert loss == 0.0


def test_maps_with_weight_zero_are_not_compared(stored, tiny_data):
    _, path = stored
    answers = read_outputs(path, tiny_data.train)
    assert set(answers.maps) == set(MAPS)
    assert PlainTeacher(answers, Distillation(weight=1.0), 40).layers == ()
    assert PlainTeacher(answers, Distillation(weight=1.0, maps=1.0), 40).layers == MAPS


@pytest.mark.parametrize("source", ["stored", "computed"])
def test_network_learns_the_feature_maps(stored, tiny_data, source):
    original, path = stored
    network, settings = toy(seed=1), Distillation(weight=1.0, maps=10.0)
    images, _ = AugmentedBatches(
        tiny_data.train, SPEC, batch_size=40, augment=Augmentation(pad_pixels=0, flip=False), seed=3
    )[0]

    def error():
        with torch.inference_mode():
            ours, theirs = (n.eval().norm1(n.conv1(images)).relu() for n in (network, original))
        return float((ours - theirs).square().sum() / theirs.square().sum())

    before, unchanged = error(), copy.deepcopy(original)
    teacher = (
        plain_teacher(path, tiny_data, settings)
        if source == "stored"
        else AugmentedTeacher(original, settings, MAPS)
    )
    plain = Augmentation(pad_pixels=0, flip=False)
    settings = recipe(1.0, 150).model_copy(update={"distill": settings, "augment": plain})
    train(network, SPEC, tiny_data, settings, teacher=teacher, say=str)
    assert error() < 0.5 * before
    assert_same_weights(original, unchanged)
    assert not network.conv2._forward_pre_hooks


def test_outputs_of_other_images_are_rejected(stored, tiny_data):
    _, path = stored
    with pytest.raises(
        UserError, match=r"outputs\.safetensors: holds logits of \d+ images, expected"
    ):
        read_outputs(path, tiny_data.test)


def test_equal_outputs_give_equal_bytes(stored, tmp_path, tiny_data):
    original, path = stored
    second = tmp_path / "second.safetensors"
    write_outputs(second, original, tiny_data.train, SPEC, layers=MAPS, mirrored=True)
    assert second.read_bytes() == path.read_bytes()
    assert np.isfinite(read_outputs(path, tiny_data.train).logits.numpy()).all()


def test_map_outside_the_range_of_float16_raises_user_error(tmp_path, tiny_data):
    """The error comes while outputs are stored, not later in training, and no file is left."""
    original = toy(seed=5)
    with torch.no_grad():
        original.norm1.weight.zero_()
        original.norm1.bias.fill_(70_000.0)
    path = tmp_path / "outputs.safetensors"
    with pytest.raises(UserError) as caught:
        write_outputs(path, original, tiny_data.train, SPEC, layers=MAPS)
    message = str(caught.value)
    assert message.startswith(f"{path}: the feature map at the input of layer 'conv2'")
    for part in (
        "values up to 70,000,",
        "65,504",
        "`teacher_outputs.maps: 0`",
        "`distill.maps: 0`",
        "`distill.images: augmented`",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    # Logits alone have no such limit.
    write_outputs(path, original, tiny_data.train, SPEC)
    assert read_outputs(path, tiny_data.train).maps == {}


def test_largest_value_of_float16_is_stored(tmp_path, tiny_data):
    original = toy(seed=5)
    with torch.no_grad():
        original.norm1.weight.zero_()
        original.norm1.bias.fill_(65_504.0)
    path = tmp_path / "outputs.safetensors"
    write_outputs(path, original, tiny_data.train, SPEC, layers=MAPS)
    assert (read_outputs(path, tiny_data.train).maps["conv2"] == 65_504.0).all()


def test_outputs_of_a_network_with_several_outputs_are_not_stored(tmp_path, tiny_data):
    class Two(type(toy())):
        def forward(self, images):
            logits = super().forward(images)
            return {"logits": logits, "best": logits.amax(1)}

    path = tmp_path / "outputs.safetensors"
    write_outputs(path, Two(), tiny_data.train, SPEC)
    with pytest.raises(UserError, match=r"has several outputs .* `distill.images: augmented`"):
        read_outputs(path, tiny_data.train)
