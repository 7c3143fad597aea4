import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from lowrank.core.stored import read_header, read_tensor, read_tensors, write_tensors
from lowrank.errors import UserError

names = st.text("ab.01", min_size=1, max_size=6)
tensors = arrays.arrays(
    st.sampled_from([np.float32, np.float16, np.int64]),
    arrays.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4),
)


@settings(max_examples=30)
@given(st.dictionaries(names, tensors, max_size=4))
def test_round_trip(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    write_tensors(path, content, {"n": 1})
    arrays_read = read_tensors(path)
    assert arrays_read.keys() == content.keys()
    for name, array in content.items():
        assert arrays_read[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays_read[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24.0).reshape(2, 3, 4)[:, ::-1, ::2],
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["transposed", "strided", "fortran", "broadcast"],
)
def test_arrays_of_any_memory_layout(tmp_path, array):
    write_tensors(tmp_path / "a.safetensors", {"a": array})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], array)


def test_equal_contents_give_equal_bytes(tmp_path):
    one, other = np.ones((2, 3), np.float32), np.zeros(4, np.float32)
    write_tensors(tmp_path / "1", {"a": one, "b": other}, {"x": 1, "y": {"c": 2, "d": 3}})
    write_tensors(tmp_path / "2", {"b": other, "a": one}, {"y": {"d": 3, "c": 2}, "x": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_read_one_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(3), "b": np.arange(4)})
    np.testing.assert_array_equal(read_tensor(path, "b"), np.arange(4))
    assert read_tensor(path, "c") is None


def test_header(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {}, {"dense_because": "ünfit", "ranks": [1, 2]})
    assert read_header(path) == {"dense_because": "ünfit", "ranks": [1, 2]}


def test_a_file_of_another_program_has_no_header(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2)}, path, {"format": "np"})
    with pytest.raises(UserError, match=r"a\.safetensors: .*lowrank did not write it"):
        read_header(path)


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones((20, 20))}, {})
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    size = path.stat().st_size
    for read in (read_tensors, read_header):
        with pytest.raises(UserError, match=rf"a\.safetensors: not a complete .*{size} bytes"):
            read(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"a\.safetensors: no such file"):
        read_tensors(tmp_path / "a.safetensors")
