"""One tensor, or several by name: the same functions for both, and for arrays of NumPy."""

import numpy as np
import pytest
import torch

from lowrank.core.tensors import by_name, filled_up, for_inputs, length, mapped, pieces

ONE = np.arange(10).reshape(5, 2)
SEVERAL = {"ids": ONE, "image": torch.arange(5.0)}


@pytest.mark.parametrize("tensors", [ONE, SEVERAL])
def test_pieces_hold_all_samples_in_order(tensors):
    parts = list(pieces(tensors, 2))
    assert [length(part) for part in parts] == [2, 2, 1]
    for name, tensor in by_name(tensors).items():
        joined = np.concatenate([np.asarray(by_name(part)[name]) for part in parts])
        np.testing.assert_array_equal(joined, tensor)


@pytest.mark.parametrize("tensors", [ONE, SEVERAL])
def test_the_last_sample_fills_a_batch_up(tensors):
    filled = filled_up(tensors, 7)
    assert length(filled) == 7
    for name, tensor in by_name(filled).items():
        np.testing.assert_array_equal(tensor[:5], by_name(tensors)[name])
        np.testing.assert_array_equal(tensor[5], tensor[4])
        np.testing.assert_array_equal(tensor[6], tensor[4])
    assert filled_up(tensors, 5) is tensors


def test_a_single_tensor_belongs_to_the_only_input():
    assert for_inputs(["x"], ONE)["x"] is ONE
    assert for_inputs(["x"], {"": ONE})["x"] is ONE
    assert list(for_inputs(["image", "ids"], SEVERAL)) == ["image", "ids"]
    with pytest.raises(KeyError, match="mask"):
        for_inputs(["ids", "mask"], SEVERAL)


def test_a_function_is_applied_to_each_tensor():
    assert mapped(len, ONE) == 5
    assert mapped(len, SEVERAL) == {"ids": 5, "image": 5}
