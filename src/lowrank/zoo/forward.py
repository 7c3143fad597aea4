"""One forward pass of a network that somebody else wrote, and where in it something failed."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import UserError

# Code between a network and an error that it caused, or around the network.
_PACKAGE = Path(__file__).parents[1]
_AROUND = (
    "<",
    str(Path(torch.__file__).parent),
    str(_PACKAGE / "zoo/forward.py"),
    str(_PACKAGE / "zoo/creation.py"),
    str(_PACKAGE / "surgery/watching.py"),
    str(_PACKAGE / "onnx_files/export.py"),
)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into the mode that each was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def image_of_zeros(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """One image, (1, channels, height, width), of the network's own type and on its device."""
    image = torch.zeros(1, *input_shape)
    first = next(network.parameters(), None)
    return image if first is None else image.to(first.device, first.dtype)


def noise_images(network: nn.Module, input_shape: tuple[int, int, int], count: int) -> Tensor:
    """Images of noise, (count, channels, height, width), always the same, of the network's type."""
    zeros = image_of_zeros(network, input_shape)
    noise = torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(zeros.device, zeros.dtype)


def output_for_zeros(network: nn.Module, input_shape: tuple[int, int, int], name: str) -> Any:
    """What the network gives, in evaluation mode, for one image of zeros.

    Lazy layers have their weights afterwards. Raises UserError where the forward pass fails;
    `name` is the network's.
    """
    # Not inference_mode: the weights that lazy layers make here must stay trainable.
    with evaluation_mode(network), torch.no_grad():
        try:
            return network(image_of_zeros(network, input_shape))
        except Exception as error:
            raise UserError(
                f"network '{name}' cannot take an image of `input_shape` {tuple(input_shape)} "
                f"(channels, height, width): {reason_of(error)}. Correct `input_shape`, or the "
                "network's forward()."
            ) from error


def reason_of(error: BaseException) -> str:
    """The kind and first line of an error, and the line of a network's code that caused it."""
    lines = str(error).strip().splitlines()
    told = (
        f"{type(error).__name__}: {lines[0].strip().rstrip('.')}" if lines else type(error).__name__
    )
    place = place_of(error)
    return f"{told} ({place})" if place else told


def place_of(error: BaseException) -> str | None:
    """The innermost line of a network's code that led to an error: `mynet.py, line 12: <code>`."""
    frames = traceback.extract_tb(error.__traceback__)
    return innermost((frame.filename, frame.lineno, frame.line) for frame in frames)


def innermost(lines: Iterable[tuple[str, Any, Any]]) -> str | None:
    """Of lines of code, outermost first, each with its file and number, the last of a network's."""
    own = [each for each in lines if not each[0].startswith(_AROUND)]
    if not own:
        return None
    file, number, code = own[-1]
    path = Path(file)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{short}, line {number}: {code}"
