"""TensorLy's functions on NumPy arrays, whatever backend the process has chosen."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorly
from tensorly import cp_to_tensor, tt_to_tensor, tucker_to_tensor

from lowrank.core.layers import PlainLayer
from lowrank.factorize import FACTORIZATIONS, decompose, get_factorization
from lowrank.factorize.tensor_algebra import matricize, mode_dot, unfold

LAYER = PlainLayer(6, 8, kernel=(3, 2))
KERNEL = np.random.default_rng(0).standard_normal(LAYER.weight_shape).astype(np.float32)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def pytorch_backend():
    tensorly.set_backend("pytorch")
    yield
    tensorly.set_backend("numpy")


def test_functions_follow_their_definitions():
    matrix = np.arange(24.0).reshape(4, 6)
    assert unfold(KERNEL, 1)[2, 1] == KERNEL[0, 2, 0, 1]
    assert matricize(KERNEL, (1, 2), (0, 3))[5, 4] == KERNEL[2, 1, 2, 0]
    expected = np.einsum("tsij,rs->trij", KERNEL, matrix)
    np.testing.assert_allclose(mode_dot(KERNEL, matrix, 1), expected)
    np.testing.assert_array_equal(
        mode_dot(KERNEL, matrix.T, 1, transpose=True), mode_dot(KERNEL, matrix, 1)
    )


def results():
    """The factors of every factorization, and what rank rules read."""
    arrays = []
    for factorization in FACTORIZATIONS.usable().values():
        if not factorization.applies_to(LAYER):
            ranks = factorization.consistent(LAYER, factorization.full_ranks(LAYER))
            arrays += decompose(factorization, LAYER, KERNEL, None, ranks).weights
            arrays += [spectrum.singular_values for spectrum in factorization.spectra(KERNEL)]
    return arrays


def test_another_backend_changes_nothing_and_stays_chosen(pytorch_backend):
    with_pytorch = results()
    assert tensorly.get_backend() == "pytorch"
    tensorly.set_backend("numpy")
    for ours, expected in zip(with_pytorch, results(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_other_threads_keep_their_backend(pytorch_backend):
    seen = []

    class Watched(np.ndarray):
        """An array that asks another thread for its backend while TensorLy works with it."""

        def __array_function__(self, *call):
            observer = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
            observer.start()
            observer.join()
            return super().__array_function__(*call)

    unfold(KERNEL.view(Watched), 1)
    assert set(seen) == {"pytorch"}
    assert tensorly.get_backend() == "pytorch"


def test_an_error_inside_restores_the_backend(pytorch_backend):
    with pytest.raises(ValueError, match="not aligned"):
        mode_dot(KERNEL, np.eye(3), 1)
    assert tensorly.get_backend() == "pytorch"


FACTORIZE = """
import numpy as np
from lowrank.core.layers import PlainLayer
from lowrank.factorize import decompose, get_factorization
layer = PlainLayer(4, 4, kernel=(3, 3))
kernel = np.arange(144, dtype=np.float32).reshape(4, 4, 3, 3)
try:
    decompose(get_factorization("tucker2"), layer, kernel, None, (2, 2))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.seconds
def test_tensorly_may_start_with_another_backend():
    finished = run(
        FACTORIZE + "import tensorly; print(tensorly.get_backend())", TENSORLY_BACKEND="pytorch"
    )
    assert finished.stdout.strip() == "pytorch", finished.stderr


def test_a_missing_backend_gives_a_clear_error():
    finished = run(FACTORIZE, TENSORLY_BACKEND="paddle")
    assert "UserError" in finished.stdout, finished.stdout + finished.stderr
    assert "'paddle', which the environment variable TENSORLY_BACKEND names" in finished.stdout


def test_the_import_of_factorizations_does_not_import_tensorly():
    code = "import sys, lowrank, lowrank.factorize; print('tensorly' in sys.modules)"
    assert run(code).stdout.strip() == "False"


def decomposed(name, ranks):
    result = decompose(get_factorization(name), LAYER, KERNEL, None, ranks)
    return result, [weight.astype(np.float64) for weight in result.weights]


def relative_error(rebuilt):
    return np.linalg.norm(KERNEL - rebuilt) / np.linalg.norm(KERNEL)


def test_tucker_factors_form_a_tucker_tensor():
    result, (inputs, core, outputs) = decomposed("tucker2", (3, 4))
    rebuilt = tucker_to_tensor(
        (core, [outputs[:, :, 0, 0], inputs[:, :, 0, 0].T, np.eye(3), np.eye(2)])
    )
    assert result.relative_error == pytest.approx(relative_error(rebuilt), rel=1e-4)


@pytest.mark.parametrize("name", ["cp_tpm", "cp_als"])
def test_cp_factors_form_a_cp_tensor(name):
    result, (inputs, windows, outputs) = decomposed(name, (5,))
    factors = [outputs[:, :, 0, 0], inputs[:, :, 0, 0].T, windows.reshape(5, -1).T]
    rebuilt = cp_to_tensor((None, factors)).reshape(KERNEL.shape)
    assert result.relative_error == pytest.approx(relative_error(rebuilt), rel=1e-4)


def test_the_factors_of_a_tensor_train_form_one():
    result, (first, rows, columns, last) = decomposed("tensor_train", (3, 5, 4))
    cores = [
        first[:, :, 0, 0].T[None],
        rows[..., 0].transpose(1, 2, 0),
        columns[:, :, 0].transpose(1, 2, 0),
        last[:, :, 0, 0].T[..., None],
    ]
    rebuilt = tt_to_tensor(cores).transpose(3, 0, 1, 2)
    assert result.relative_error == pytest.approx(relative_error(rebuilt), rel=1e-4)
