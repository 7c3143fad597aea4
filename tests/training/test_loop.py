import math
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from photos import write_photos
from torch import nn
from toy import assert_same_weights, toy

from lowrank.config.dataset import DatasetSettings
from lowrank.config.finetune import Distillation
from lowrank.config.training import TrainingSettings
from lowrank.data.batches import AugmentedBatches
from lowrank.data.datasets import open_dataset
from lowrank.data.folders import NO_LABEL, store_folders
from lowrank.errors import UserError
from lowrank.evaluation.network import value_of
from lowrank.tasks import get_task
from lowrank.training import loop
from lowrank.training.distillation import AugmentedTeacher
from lowrank.training.optimization import learning_rate_factor
from lowrank.training.state_file import fingerprint_of
from lowrank.zoo import NetworkSpec

TASK = get_task("classification")
train, top1_percent = partial(loop.train, TASK), partial(value_of, TASK)
SPEC = NetworkSpec("toy", (3, 32, 32), 10)
QUICK = {
    "steps": 12,
    "batch_size": 40,
    "learning_rate": 0.1,
    "precision": "float32",
    "device": "cpu",
    "curve_every_steps": 4,
}


class KilledError(Exception):
    pass


def settings_of(**changes):
    return TrainingSettings.model_validate(QUICK | changes)


def quiet(_):
    pass


@pytest.fixture
def saves_each_step(monkeypatch):
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LINES", -1.0)


@pytest.fixture
def killed_run(tmp_path, tiny_data, saves_each_step):
    """Return a function that runs up to step 6, saves the state, and returns its path."""

    def start(settings, network, fingerprint="same", data=tiny_data, spec=SPEC):
        def die_at_step_7(line):
            if line.startswith("step 7/"):
                raise KilledError

        path = tmp_path / "state.pt"
        with pytest.raises(KilledError):
            train(
                network,
                spec,
                data,
                settings,
                state_path=path,
                fingerprint=fingerprint,
                say=die_at_step_7,
            )
        return path

    return start


def test_training_improves_the_accuracy(tiny_data):
    network = toy()
    report = train(network, SPEC, tiny_data, settings_of(steps=60), say=quiet)
    assert top1_percent(network, tiny_data.test, SPEC) > 60
    assert report.curve[-1].loss < report.curve[0].loss - 0.5
    assert report.curve[-1].train_percent > report.curve[0].train_percent + 30
    assert not network.training


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_state_before_it_ends_the_run(tiny_data, tmp_path, monkeypatch, number):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LINES", -1.0)
    settings, path, lines = settings_of(), tmp_path / "state.pt", []
    uninterrupted, resumed = toy(), toy(seed=9)
    train(uninterrupted, SPEC, tiny_data, settings, say=quiet)

    def receive_signal_in_step_7(line):
        lines.append(line)
        if line.startswith("step 7/"):
            signal.raise_signal(number)

    def end(*_):
        raise KilledError

    previous_handler = signal.signal(number, end)
    try:
        with pytest.raises(KilledError):
            train(
                toy(),
                SPEC,
                tiny_data,
                settings,
                state_path=path,
                fingerprint="same",
                say=receive_signal_in_step_7,
            )
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, previous_handler)
    assert lines[-1] == f"{number.name}: saved the state after step 7"
    lines.clear()
    train(resumed, SPEC, tiny_data, settings, state_path=path, fingerprint="same", say=lines.append)
    assert lines[0] == "resumed from the state saved at step 7 of 12"
    assert_same_weights(resumed, uninterrupted)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("dropout", "changes"),
    [
        (0.0, {}),
        (0.5, {}),
        (0.0, {"average_last": 0.75}),
        (0.0, {"freeze": {"layers": 0.34, "after": 0.25}}),  # Freezing before the run is killed.
        (0.0, {"freeze": {"layers": 0.34, "after": 0.75}}),  # Freezing after the run is killed.
    ],
)
def test_resumed_run_equals_an_uninterrupted_run(
    tiny_data, killed_run, optimizer, dropout, changes
):
    settings = settings_of(
        optimizer=optimizer, learning_rate=0.01, validate_every_steps=8, **changes
    )
    uninterrupted = toy(dropout=dropout)
    expected = train(uninterrupted, SPEC, tiny_data, settings, say=quiet)

    path = killed_run(settings, toy(dropout=dropout))
    resumed, lines = toy(seed=9, dropout=dropout), []
    report = train(
        resumed, SPEC, tiny_data, settings, state_path=path, fingerprint="same", say=lines.append
    )
    assert lines[0] == "resumed from the state saved at step 6 of 12"
    assert_same_weights(resumed, uninterrupted)
    assert report.curve == expected.curve
    assert [point.step for point in report.curve] == [4, 8, 12]
    assert not path.exists()


def test_weights_of_the_last_steps_are_averaged(tiny_data):
    schedule = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 0.01}
    after = {}
    for steps in (3, 4):
        after[steps] = toy()
        train(after[steps], SPEC, tiny_data, settings_of(steps=steps, **schedule), say=quiet)
    network = toy()
    settings = settings_of(steps=4, average_last=0.5, **schedule)
    train(network, SPEC, tiny_data, settings, say=quiet)
    for name, averaged in network.named_parameters():
        third, fourth = (dict(after[steps].named_parameters())[name] for steps in (3, 4))
        torch.testing.assert_close(averaged, (third + fourth) / 2)
    # The running statistics belong to the averaged weights and have equal weight per batch.
    assert network.norm1.num_batches_tracked == 4
    batches = AugmentedBatches(
        tiny_data.train, SPEC, batch_size=40, augment=settings.augment, seed=settings.seed
    )
    images = torch.cat([batches[index][0] for index in range(4, 8)])
    with torch.no_grad():
        features = network.conv1(images)
    expected = features.mean((0, 2, 3))
    torch.testing.assert_close(network.norm1.running_mean, expected, rtol=1e-3, atol=1e-4)


def test_training_is_reproducible(tiny_data):
    first, second, other = toy(), toy(), toy()
    for network, seed in ((first, 0), (second, 0), (other, 1)):
        train(network, SPEC, tiny_data, settings_of(seed=seed), say=quiet)
    assert_same_weights(first, second)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_each_step_draws_different_random_numbers(tiny_data):
    class DrawsRandomNumber(nn.Linear):
        def forward(self, images):
            if self.training:
                drawn.append(float(torch.rand(())))
            return super().forward(images.mean((2, 3)))

    drawn = []
    train(DrawsRandomNumber(3, 10), SPEC, tiny_data, settings_of(), say=quiet)
    assert len(set(drawn)) == 12


def test_state_with_another_fingerprint_is_ignored(tiny_data, killed_run):
    path = killed_run(settings_of(), toy(seed=5))
    fresh, network, lines = toy(), toy(), []
    train(fresh, SPEC, tiny_data, settings_of(), say=quiet)
    train(
        network,
        SPEC,
        tiny_data,
        settings_of(),
        state_path=path,
        fingerprint="other",
        say=lines.append,
    )
    assert not any("resumed" in line for line in lines)
    assert_same_weights(network, fresh)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_damaged_state_is_ignored(tiny_data, killed_run, damage):
    path = killed_run(settings_of(), toy(seed=5))
    if damage == "foreign":
        torch.save({"something": 1}, path)
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
    fresh, network = toy(), toy()
    train(fresh, SPEC, tiny_data, settings_of(), say=quiet)
    train(network, SPEC, tiny_data, settings_of(), state_path=path, fingerprint="same", say=quiet)
    assert_same_weights(network, fresh)


def test_seconds_include_all_parts_of_a_run(tiny_data, killed_run):
    path = killed_run(settings_of(), toy())
    state = torch.load(path, weights_only=True)
    torch.save(state | {"seconds": 1000.0}, path)
    report = train(
        toy(), SPEC, tiny_data, settings_of(), state_path=path, fingerprint="same", say=quiet
    )
    assert 1000 < report.seconds < 1600


def test_full_disk_raises_user_error(tmp_path, tiny_data, saves_each_step, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"state\.pt: cannot be written: No space left"):
        train(
            toy(),
            SPEC,
            tiny_data,
            settings_of(),
            state_path=tmp_path / "state.pt",
            say=quiet,
        )
    assert list(tmp_path.iterdir()) == []


def test_zero_steps_do_not_change_the_weights(tmp_path, tiny_data):
    network = toy()
    for schedule in ("cosine", "linear", "step", "constant"):
        report = train(
            network,
            SPEC,
            tiny_data,
            settings_of(steps=0, schedule=schedule),
            state_path=tmp_path / "state.pt",
            say=quiet,
        )
        assert (report.steps, report.curve) == (0, [])
    assert_same_weights(network, toy())
    assert list(tmp_path.iterdir()) == []


def test_budget_in_epochs(tiny_data):
    # 360 training images are 9 batches of 40.
    assert train(toy(), SPEC, tiny_data, settings_of(steps=None, epochs=0.5), say=quiet).steps == 4
    assert train(toy(), SPEC, tiny_data, settings_of(steps=None, epochs=2), say=quiet).steps == 18
    assert train(toy(), SPEC, tiny_data, settings_of(steps=None, epochs=0.01), say=quiet).steps == 1


def test_points_of_the_curve(tiny_data):
    settings = settings_of(steps=10, validate_every_steps=8, warmup_fraction=0, schedule="linear")
    curve = train(toy(), SPEC, tiny_data, settings, say=quiet).curve
    assert [point.step for point in curve] == [4, 8, 10]
    # Learning rate of the last step before each point: 0.1 x (1 - step / 10), from step 0.
    assert [point.learning_rate for point in curve] == pytest.approx([0.07, 0.03, 0.01])
    assert [point.validation_percent is None for point in curve] == [True, False, True]


def test_first_loss_is_that_of_the_initial_network(tiny_data):
    settings = settings_of(steps=1, curve_every_steps=1, label_smoothing=0.1)
    batches = loop.AugmentedBatches(
        tiny_data.train, SPEC, batch_size=40, augment=settings.augment, seed=0
    )
    images, labels = batches[0]
    with torch.inference_mode():
        logits = toy().train()(images)
    log = torch.log_softmax(logits, 1)
    of_labels = log[torch.arange(40), labels]
    expected = -(0.9 * of_labels + 0.1 * log.mean(1)).mean()
    (point,) = train(toy(), SPEC, tiny_data, settings, say=quiet).curve
    assert point.loss == pytest.approx(float(expected), rel=1e-4)
    hits = (logits.argmax(1) == labels).float().mean()
    assert point.train_percent == pytest.approx(100 * float(hits))


def test_weight_decay_is_not_applied_to_biases_and_normalization(tiny_data):
    changed = {}
    for decay in (0.0, 10.0):
        network = toy()
        settings = settings_of(steps=1, weight_decay=decay, learning_rate=0.01)
        train(network, SPEC, tiny_data, settings, say=quiet)
        changed[decay] = network.state_dict()
    differing = {n for n in changed[0.0] if not torch.equal(changed[0.0][n], changed[10.0][n])}
    assert differing == {"conv1.weight", "conv2.weight", "classifier.weight"}


def test_gradients_are_clipped(tiny_data):
    before, network = toy(), toy()
    settings = settings_of(
        steps=1, clip_norm=1e-3, learning_rate=1, momentum=0, weight_decay=0, warmup_fraction=0
    )
    train(network, SPEC, tiny_data, settings, say=quiet)
    moved = [p - q for p, q in zip(network.parameters(), before.parameters(), strict=True)]
    length = torch.cat([m.detach().flatten() for m in moved]).norm()
    assert float(length) == pytest.approx(1e-3, rel=1e-2)


def diverging():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)
    )


def test_network_with_several_outputs_in_training_mode_is_rejected(tiny_data):
    class WithAnotherHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3072, 10)

        def forward(self, images):
            logits = self.head(images.reshape(len(images), -1))
            return (logits, logits) if self.training else logits

    with pytest.raises(
        UserError, match=r"WithAnotherHead does not return logits .* in training mode"
    ):
        train(WithAnotherHead(), SPEC, tiny_data, settings_of(), say=quiet)


def test_message_for_divergence_names_the_learning_rate(tmp_path, tiny_data, saves_each_step):
    settings = settings_of(steps=40, learning_rate=100, warmup_fraction=0, schedule="constant")
    with pytest.raises(UserError, match=r"loss is not finite at step \d+ \(learning rate 100\)"):
        train(
            diverging(),
            SPEC,
            tiny_data,
            settings,
            state_path=tmp_path / "state.pt",
            say=quiet,
        )


def test_weights_that_are_not_finite_after_the_last_step_raise_user_error(tiny_data):
    class InfiniteGradient(nn.Module):
        """Network with a finite loss whose gradient is not finite."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10))

        def forward(self, images):
            return torch.sqrt(0 * self.weight).expand(len(images), 10)

    with pytest.raises(UserError, match="a weight is not finite at step 1"):
        train(InfiniteGradient(), SPEC, tiny_data, settings_of(steps=1), say=quiet)


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_learning_rates_match_the_formulas(steps, schedule):
    decay = {"step_at": (0.5, 0.8), "step_factor": 0.1} if schedule == "step" else {}
    settings = settings_of(steps=steps, schedule=schedule, warmup_fraction=0.2, **decay)
    warmup = steps // 5
    for step in range(steps):
        factor = learning_rate_factor(step, steps, settings)
        progress = (step - warmup) / (steps - warmup)
        if step < warmup:
            expected = (step + 1) / (warmup + 1)
        elif schedule == "cosine":
            expected = math.cos(math.pi / 2 * progress) ** 2
        elif schedule == "linear":
            expected = (steps - step) / (steps - warmup)
        elif schedule == "step":
            expected = 1 if step < steps // 2 else 0.1 if step < steps * 4 // 5 else 0.01
        else:
            expected = 1
        assert factor == pytest.approx(expected), step


def test_training_in_bfloat16_keeps_float32_weights(tiny_data):
    network = toy()
    report = train(network, SPEC, tiny_data, settings_of(precision="bfloat16"), say=quiet)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert report.curve[-1].loss < report.curve[0].loss


def test_fingerprints():
    settings = settings_of()
    assert fingerprint_of(settings, "a") == fingerprint_of(settings_of(), "a")
    others = [fingerprint_of(settings_of(seed=1), "a"), fingerprint_of(settings, "b")]
    assert fingerprint_of(settings, "a") not in others


@pytest.fixture
def photos(tmp_path):
    """Store images of mixed sizes in three colors, with the network outputs 8, 1 and 5."""
    counts = {"red": 40, "green": 40, "blue": 40}
    settings = DatasetSettings(
        kind="imagefolder",
        train=str(write_photos(tmp_path / "train", counts)),
        validation=str(write_photos(tmp_path / "val", counts, seed=1)),
        outputs={"red": 5, "blue": 8, "green": 1},
    )
    store_folders(tmp_path / "photos", "photos", settings, quiet)
    return open_dataset(tmp_path / "photos")


RESIZED = NetworkSpec("toy", (3, 32, 32), 10, resize=36)
RANDOM_CROPS = {"batch_size": 20, "augment": {"resized_crop": [0.35, 1.0], "cutout_pixels": 4}}


def test_training_on_images_of_mixed_sizes_with_a_subset_of_the_outputs(photos):
    network = toy()
    report = train(network, RESIZED, photos, settings_of(steps=40, **RANDOM_CROPS), say=quiet)
    assert top1_percent(network, photos.test, RESIZED) > 80
    assert report.curve[-1].train_percent > 80
    # Outputs without a class are not trained.
    unused = [output for output in range(10) if output not in (8, 1, 5)]
    trained, fresh = network.classifier.bias, toy().classifier.bias
    assert torch.equal(trained[unused], fresh[unused])
    assert not torch.equal(trained, fresh)


def test_resumed_run_with_mixed_sizes_equals_an_uninterrupted_run(photos, killed_run):
    settings = settings_of(**RANDOM_CROPS)
    uninterrupted, resumed = toy(), toy(seed=9)
    train(uninterrupted, RESIZED, photos, settings, say=quiet)
    path = killed_run(settings, toy(), data=photos, spec=RESIZED)
    train(resumed, RESIZED, photos, settings, state_path=path, fingerprint="same", say=quiet)
    assert_same_weights(resumed, uninterrupted)


@pytest.fixture
def unlabelled(tiny_data):
    labels = np.full_like(tiny_data.train.labels, NO_LABEL)
    split = replace(tiny_data.train, labels=labels, unlabelled="photos have other classes")
    return replace(tiny_data, train=split)


def test_training_without_labels_uses_only_the_teacher(tiny_data, unlabelled):
    """The weights equal those of training with labels that have no share of the loss."""
    original = toy(seed=3)
    train(original, SPEC, tiny_data, settings_of(steps=40, learning_rate=0.05), say=quiet)
    results = []
    for data in (tiny_data, unlabelled):
        network = toy(seed=4)
        teacher = AugmentedTeacher(original, Distillation(weight=1.0, images="augmented"))
        recipe = settings_of(steps=20, learning_rate=0.05)
        report = train(network, SPEC, data, recipe, teacher=teacher, say=quiet)
        results.append((network, report.curve[-1].train_percent))
    (with_labels, _), (without_labels, agreement) = results
    assert agreement > 30
    pairs = zip(without_labels.parameters(), with_labels.parameters(), strict=True)
    for parameter, expected in pairs:
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_message_says_why_there_are_no_labels(unlabelled, weight):
    teacher = weight and AugmentedTeacher(toy(), Distillation(weight=weight))
    with pytest.raises(UserError, match=r"`distill\.weight` below 1 needs .*photos have other"):
        train(toy(), SPEC, unlabelled, settings_of(steps=1), teacher=teacher, say=quiet)


def test_zero_steps_need_no_labels(unlabelled):
    assert train(toy(), SPEC, unlabelled, settings_of(steps=0), say=quiet).steps == 0


def test_network_with_other_classes_is_rejected(tiny_data):
    with pytest.raises(UserError, match="tiny has 10 classes, but the network toy has 7"):
        train(toy(), NetworkSpec("toy", (3, 32, 32), 7), tiny_data, settings_of(), say=quiet)


def test_network_that_flattens_with_a_view_can_be_trained(tiny_data):
    class Flattens(nn.Sequential):
        def forward(self, images):
            convolution, linear = self
            return linear(convolution(images).view(len(images), -1))

    torch.manual_seed(0)
    network = Flattens(nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 7 * 7, 10))
    train(network, SPEC, tiny_data, settings_of(steps=4, learning_rate=0.01), say=quiet)
    assert network[0].weight.is_contiguous()


def test_training_uses_channels_last(tiny_data):
    network = toy()
    train(network, SPEC, tiny_data, settings_of(steps=1), say=quiet)
    assert network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
