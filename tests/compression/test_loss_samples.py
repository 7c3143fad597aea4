"""Samples on which the losses of layers are measured."""

import numpy as np

from lowrank.compression.loss_samples import divided, enough, held_out, spread
from lowrank.core.layers import Layer


def batches(*lengths, width=2):
    numbers = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    return [{"x": np.repeat(part[:, None], width, 1)} for part in numbers]


def firsts(pieces):
    return [piece["x"][:, 0].tolist() for piece in pieces]


def test_samples_are_spread_over_all_batches_and_joined():
    assert firsts(spread(batches(4, 4, 4), 5)) == [[0, 2, 5, 8], [11]]
    assert firsts(spread(batches(2, 9, 1), 4)) == [[0, 3, 7, 11]]


def test_a_small_network_is_measured_on_more_samples():
    def layers(size, count):
        layer = Layer(64, 64, kernel=(3, 3), padding=(1, 1), name="a", kind="conv", input_map=size)
        return [layer] * count

    macs = 64 * 64 * 9 * 20 * 20
    assert enough(layers((20, 20), 10)) == int(750e9 / (10 * 10 * macs))
    assert enough(layers((60, 60), 10)) == 64
    assert enough(layers((200, 200), 100)) == 32


def test_few_samples_are_all_taken_as_they_are():
    few = batches(3, 2)
    assert spread(few, 5) == few


def test_batches_of_a_fixed_size_stay_full():
    assert firsts(spread(batches(4, 4, 4, 4), 6, multiple=4)) == [[0, 2, 4, 6], [8, 10, 12, 15]]


def test_samples_of_different_shapes_are_not_joined():
    pieces = spread(batches(4, 4) + batches(4, 4, width=3), 4)
    assert [piece["x"].shape for piece in pieces] == [(2, 2), (2, 3)]


def test_samples_for_losses_are_spread_and_the_others_remain():
    rows = divided([4, 4, 4], 5)
    assert [chosen.tolist() for chosen, _ in rows] == [[0, 2], [1], [0, 3]]
    assert [others.tolist() for _, others in rows] == [[1, 3], [0, 2, 3], [1, 2]]


def test_a_quarter_of_the_samples_is_kept_for_losses_and_few_are_not_divided():
    layers = [Layer(64, 64, kernel=(3, 3), name="a", kind="conv", input_map=(200, 200))] * 100
    assert [held_out(layers, samples) for samples in (15, 16, 100, 1000)] == [0, 4, 25, 32]
