"""Run forward passes of user networks and report where they fail."""

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import UserError
from lowrank.zoo.registry import InputForm

# Files that are not the user's network: PyTorch, generated code ("<") and the callers in lowrank.
_PACKAGE = Path(__file__).parents[1]
_NOT_USER_CODE = (
    "<",
    str(Path(torch.__file__).parent),
    str(_PACKAGE / "zoo/forward.py"),
    str(_PACKAGE / "zoo/creation.py"),
    str(_PACKAGE / "surgery/watching.py"),
    str(_PACKAGE / "onnx_files/export.py"),
)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode and restore the mode of each one afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def image_of_zeros(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Return one image of zeros, (1, channels, height, width), of the network's type and device."""
    image = torch.zeros(1, *input_shape)
    first = next(network.parameters(), None)
    return image if first is None else image.to(first.device, first.dtype)


def inputs_of_zeros(
    network: nn.Module, input_shape: tuple[int, ...], forms: Sequence[InputForm] = ()
) -> Any:
    """Return one sample of zeros: an image, or inputs of these forms, several ones by name.

    See `lowrank.zoo.registry.NetworkSpec` for the arguments.
    """
    if not forms:
        return image_of_zeros(network, input_shape)
    first = next(network.parameters(), torch.zeros(()))
    zeros = {
        form.name: torch.zeros(
            1, *form.shape, dtype=getattr(torch, form.dtype), device=first.device
        )
        for form in forms
    }
    return zeros if len(forms) > 1 else zeros[forms[0].name]


def noise_images(network: nn.Module, input_shape: tuple[int, ...], count: int) -> Tensor:
    """Return the same noise images on every call, of the network's type and device.

    Shape (count, channels, height, width).
    """
    zeros = image_of_zeros(network, input_shape)
    noise = torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(zeros.device, zeros.dtype)


def output_for_zeros(
    network: nn.Module,
    input_shape: tuple[int, ...],
    name: str,
    forms: Sequence[InputForm] = (),
) -> Any:
    """Return the output of the network for one sample of zeros, in evaluation mode.

    The forward pass also creates the weights of lazy layers. Raises UserError if it fails; `name`
    is the name of the network in the message. For the other arguments, see `inputs_of_zeros`.
    """
    # Do not use inference_mode: the weights that lazy layers create here must stay trainable.
    with evaluation_mode(network), torch.no_grad():
        try:
            return network(inputs_of_zeros(network, input_shape, forms))
        except Exception as error:
            if forms:
                raise UserError(
                    f"network '{name}' does not accept {', '.join(map(str, forms))}: "
                    f"{reason_of(error)}. Correct the shape (`input_shape`), the type "
                    "(`input_type`) or the network's forward()."
                ) from error
            raise UserError(
                f"network '{name}' does not accept an image of `input_shape` {tuple(input_shape)} "
                f"(channels, height, width): {reason_of(error)}. Correct `input_shape` or the "
                "network's forward()."
            ) from error


def reason_of(error: BaseException) -> str:
    """Return the type and first line of an error, and the line of network code that caused it."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    message = f"{kind}: {lines[0].strip().rstrip('.')}" if lines else kind
    place = place_of(error)
    return f"{message} ({place})" if place else message


def place_of(error: BaseException) -> str | None:
    """Return the innermost line of network code in a traceback: `mynet.py, line 12: <code>`."""
    frames = traceback.extract_tb(error.__traceback__)
    return innermost((frame.filename, frame.lineno, frame.line) for frame in frames)


def innermost(lines: Iterable[tuple[str, Any, Any]]) -> str | None:
    """Return the last line that belongs to a user's network, or None.

    `lines` holds (file, line number, code), outermost first.
    """
    user_lines = [line for line in lines if not line[0].startswith(_NOT_USER_CODE)]
    if not user_lines:
        return None
    file, number, code = user_lines[-1]
    path = Path(file)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{short}, line {number}: {code}"
