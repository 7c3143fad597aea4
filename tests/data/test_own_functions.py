"""A user's own function as a dataset."""

import sys

import numpy as np
import pytest
import torch

from lowrank.config.dataset import DatasetSettings
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import open_dataset, require_images_match
from lowrank.data.own_functions import store_function
from lowrank.errors import UserError
from lowrank.zoo.registry import InputForm, NetworkSpec

SPEC = NetworkSpec("net", (3, 4, 5), 4)
SOURCE = '''
import numpy as np
import torch


class Images:
    """A map-style dataset."""

    def __init__(self, count, labels, seed=0):
        self.count, self.labels, self.seed = count, labels, seed

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        random = np.random.default_rng([self.seed, number])
        image = torch.from_numpy(random.normal(size=(3, 4, 5)))
        return (image, torch.tensor(number % 4)) if self.labels else image


def images(count=40, labels=False):
    return Images(count, labels)


def two_parts():
    return {"train": Images(20, True), "validation": Images(6, True, seed=1)}


def raises():
    raise RuntimeError("the disk with the images is away")


def nothing():
    pass


class Broken(Images):
    def __getitem__(self, number):
        if number == 7:
            raise OSError("file 7 is missing")
        return super().__getitem__(number)


def broken():
    return Broken(10, False)


def ends():
    raise SystemExit(3)


def sizes():
    return [np.ones((3, 4, 5), np.float32), np.ones((3, 4, 6), np.float32)]


def words():
    return ["one", "two"]


def boxes():
    return [(np.ones((3, 4, 5)), {"boxes": []})] * 5


def some_labels():
    return [(np.ones((3, 4, 5)), 1), np.ones((3, 4, 5))] * 3


def halves():
    return [(np.ones((3, 4, 5)), 0.5)] * 5


def not_finite():
    return [np.full((3, 4, 5), np.nan)] * 5


def empty():
    return []


def other_parts():
    return {"test": [1]}


def stream():
    return (number for number in range(3))


numbers = 3


def pairs(count=20):
    return [({"words": np.arange(6) + n, "length": np.int64(n)}, n % 2) for n in range(count)]


def other_inputs():
    return [{"words": np.arange(6), "length": np.ones(2)}, {"words": np.arange(6)}]


def no_inputs():
    return [{}, {}]


def lengths():
    return [{"a": np.ones(2), "b": np.ones(n)} for n in (1, 2)]
'''


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mydata", raising=False)

    def made(function, say=lambda line: None, **settings):
        entry = DatasetSettings(kind="function", function=function, **settings)
        store_function(tmp_path / "made", "mine", entry, say)
        return tmp_path / "made"

    yield made
    sys.modules.pop("mydata", None)


def test_samples_are_stored_once(tmp_path, store):
    lines = []
    made = store("mydata:images", lines.append)
    assert "without `validation`, 8 of 40 samples in dataset.mine.function 'mydata:im" in lines[0]
    data = open_dataset(made)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    assert data.test.unlabelled
    import mydata

    expected = torch.stack([mydata.images()[n].float() for n in range(40)])
    stored = torch.cat([EvaluationBatches(split, SPEC)[0][0]
                        for split in (data.train, data.validation, data.test)])  # fmt: skip
    assert stored.dtype == torch.float32
    assert torch.equal(stored.flatten(1).sum(1).sort().values,
                       expected.flatten(1).sum(1).sort().values)  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir() if "pycache" not in path.name) == [
        "made",
        "mydata.py",
    ]


def test_labels_and_arguments(store):
    data = open_dataset(store("mydata:images", arguments={"count": 20, "labels": True}))
    assert data.classes == ("0", "1", "2", "3")
    assert list(np.bincount(data.test.labels)) == [1, 1, 1, 1]
    assert not data.train.unlabelled


def test_training_and_test_samples(store):
    data = open_dataset(store("mydata:two_parts"))
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    import mydata

    inputs, labels = EvaluationBatches(data.test, SPEC)[0]
    assert torch.equal(inputs[3], mydata.two_parts()["validation"][3][0].float())
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_samples_of_several_inputs(store):
    data = open_dataset(store("mydata:pairs"))
    forms = (InputForm("words", (6,), "int64"), InputForm("length", (), "int64"))
    spec = NetworkSpec.of_forms("reader", forms)
    require_images_match(data, spec)
    inputs, labels = EvaluationBatches(data.train, spec)[0]
    np.testing.assert_array_equal(inputs["words"], inputs["length"].numpy()[:, None] + np.arange(6))
    np.testing.assert_array_equal(labels, inputs["length"] % 2)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", r"RuntimeError: the disk with the images is away \(mydata\.py, line \d+: raise"),
        ("ends", r"its function ends the program \(exit status 3\) with `arguments`"),
        ("nothing", "`train` is NoneType None; expected a map-style dataset"),
        ("broken", r"sample 7 of 10 fails: OSError: file 7 is missing \(mydata\.py, line"),
        ("sizes", r"sample 1 has the shape \(3, 4, 6\) .* sample 0 has \(3, 4, 5\)"),
        ("words", "sample 0 is str 'one'; expected an array or tensor"),
        ("boxes", "the class of sample 0 is dict .*; expected a whole number"),
        ("halves", "the class of sample 0 is float 0.5; expected a whole number"),
        ("some_labels", "3 of 6 samples have no class, the first is sample 1"),
        ("not_finite", r"sample 0 \(from 0\) has values that are not finite"),
        ("empty", r"`train` is list \[\] without samples"),
        ("other_parts", "a dictionary with 'test'; expected"),
        ("stream", "`train` is a generator; expected a map-style"),
        ("other_inputs", "sample 1 has the inputs 'words', but sample 0 has 'words', 'length'"),
        ("no_inputs", "sample 0 is an empty dictionary"),
        ("lengths", r"sample 1 has the shape \(2,\) and the type float32 for the input 'b'"),
        ("numbers", "'numbers' is an int, expected a function"),
        ("imagse", "unknown function 'imagse'. Did you mean 'images'"),
    ],
)
def test_functions_that_return_no_samples(tmp_path, store, function, reason):
    with pytest.raises(UserError, match=rf"dataset\.mine\.function 'mydata:{function}'.*{reason}"):
        store(f"mydata:{function}")
    assert not [
        path for path in tmp_path.iterdir() if path.name not in ("mydata.py", "__pycache__")
    ]


def test_arguments_that_the_function_does_not_take(store):
    with pytest.raises(UserError, match=r"it accepts \(count=40, labels=False\), but `arguments`"):
        store("mydata:images", arguments={"number": 3})


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("nodata:images", "there is no module 'nodata' in the current folder"),
        (
            "broken_module:images",
            r"cannot be imported: NameError: name 'x' is not defined \(broken",
        ),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, store, function, reason):
    (tmp_path / "broken_module.py").write_text("x + 1\n")
    with pytest.raises(UserError, match=rf"dataset\.mine\.function '{function}': .*{reason}"):
        store(function)
