"""Extreme kernels and inputs: zeros, single entries, tiny and huge numbers."""

import numpy as np
import pytest

from lowrank.core.layers import PlainLayer
from lowrank.factorize import FACTORIZATIONS, Moments, decompose, get_factorization, one_group

GROUPS, CHANNELS, TAPS = 2, 8, 9
LAYERS = {
    window: PlainLayer(GROUPS * CHANNELS, GROUPS * CHANNELS, kernel=window, groups=GROUPS)
    for window in ((3, 3), (1, 1))
}


def kernels(layer):
    random = np.random.default_rng(0)
    ordinary = random.standard_normal(layer.weight_shape)
    outputs, *others = layer.weight_shape
    product = np.outer(random.standard_normal(outputs), random.standard_normal(np.prod(others)))
    single = np.zeros(layer.weight_shape)
    single.flat[5] = 1.0
    half = ordinary.copy()
    half[: outputs // GROUPS] = 0.0
    return {
        "zeros": 0 * ordinary,
        "rank one": product.reshape(layer.weight_shape),
        "one entry": single,
        "a group of zeros": half,
        "tiny": 1e-30 * ordinary,
        "huge": 1e30 * ordinary,
        "ordinary": ordinary,
    }


def moments(size, samples, scale):
    """Return moments of inputs with that scale.

    With fewer samples than entries, the covariance is singular.
    """
    inputs = np.random.default_rng(1).standard_normal((GROUPS, samples, size)) * scale
    covariance = inputs.swapaxes(1, 2) @ inputs / samples
    return Moments(np.zeros((GROUPS, size)), covariance, samples)


NORMS = {
    "weights": None,
    "channels": (CHANNELS, 100, 1.0),
    "few images": (CHANNELS, 3, 1.0),
    "black images": (CHANNELS, 3, 0.0),
    "patches": (CHANNELS * TAPS, 500, 1.0),
    "few patches": (CHANNELS * TAPS, 10, 1.0),
    "bright images": (CHANNELS, 100, 1e10),
    "dark images": (CHANNELS, 100, 1e-10),
}


SLOW_NORMS = ("channels", "few images", "black images", "bright images")


def cases():
    for name, method in FACTORIZATIONS.usable().items():
        for window, layer in LAYERS.items():
            for norm, shape in NORMS.items():
                too_many = shape and shape[0] > CHANNELS * window[0] * window[1]
                if not (method.applies_to(layer) or too_many):
                    # Least squares on nearly singular matrices take many sweeps.
                    takes_long = name in ("cp4", "cp_als") and norm in SLOW_NORMS
                    takes_long |= (name, window, norm) == ("cp_als", (3, 3), "patches")
                    yield pytest.param(
                        *(name, window, norm),
                        id=f"{name}-{window[0]}-{norm}",
                        marks=pytest.mark.slow if takes_long else (),
                    )


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "window", "norm"), list(cases()))
@pytest.mark.filterwarnings("error")
def test_factors_of_any_kernel_in_any_norm_are_finite(name, window, norm):
    method, layer = get_factorization(name), LAYERS[window]
    full = method.full_ranks(one_group(layer))
    input_moments = NORMS[norm] and moments(*NORMS[norm])
    for kernel_name, kernel in kernels(layer).items():
        for share in (1, 0.5, 0):
            ranks = tuple(max(int(share * rank), 1) for rank in full)
            ranks = method.consistent(one_group(layer), ranks)
            result = decompose(method, layer, kernel.astype(np.float32), None, ranks, input_moments)
            label = f"{kernel_name} at {ranks}"
            assert all(np.isfinite(weight).all() for weight in result.weights), label
            assert np.isfinite(result.bias).all() if result.bias is not None else True, label
            if share == 1:
                assert result.relative_error < 1e-3, label
            if not norm.startswith(("few", "black")):
                error = result.relative_error if input_moments is None else result.output_error
                assert error < 1.001, label
            # Two consecutive factors of 0 would never train.
            assert sum(not weight.any() for weight in result.weights) <= 1, label
