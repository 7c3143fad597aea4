"""Window attention of torchvision's Swin transformers with projections that are layers.

The functions of torchvision read the weights of `qkv` and `proj` without calling these layers.
Liu et al. 2021 (Swin) and 2022 (Swin V2). Import this module only if torchvision's is imported.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class WindowAttention(ShiftedWindowAttention):
    """Window attention that calls its projections `qkv` and `proj`. See `convert`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape as the input, (N, H, W, C)."""
        windows = _Windows(x, self.window_size, self.shift_size)
        queries, keys, values = _projected(self, windows.of(x))
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
        return windows.joined(_mixed(self, scores, values, windows.mask(x)))


class WindowAttentionV2(ShiftedWindowAttentionV2):
    """Window attention with cosines that calls its projections `qkv` and `proj`. See `convert`.

    The bias is stored as `q_bias` and `v_bias`, since keys have none.
    """

    q_bias: Tensor | None
    v_bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape as the input, (N, H, W, C)."""
        windows = _Windows(x, self.window_size, self.shift_size)
        queries, keys, values = _projected(self, windows.of(x))
        if self.q_bias is not None and self.v_bias is not None:
            heads = self.num_heads, 1, queries.shape[-1]
            queries, values = queries + self.q_bias.view(heads), values + self.v_bias.view(heads)
        cosines = functional.normalize(queries, dim=-1) @ functional.normalize(
            keys, dim=-1
        ).transpose(-2, -1)
        scores = cosines * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return windows.joined(_mixed(self, scores, values, windows.mask(x)))


def is_convertible(module: nn.Module) -> bool:
    """Return whether `convert` can convert a module: torchvision's own class, with plain layers."""
    return (
        type(module) in (ShiftedWindowAttention, ShiftedWindowAttentionV2)
        and "forward" not in vars(module)
        and all(
            type(layer) is nn.Linear and "weight" in layer._parameters
            for layer in (module.qkv, module.proj)
        )
    )


def convert(module: nn.Module) -> None:
    """Let a window attention call its projections as layers, in place.

    The output stays the same. In v2, `qkv.bias` becomes `q_bias` and `v_bias`.
    """
    if not isinstance(module, ShiftedWindowAttentionV2):
        module.__class__ = WindowAttention
        return
    module.__class__ = WindowAttentionV2
    bias = module.qkv.bias
    module.qkv.bias = None
    module.register_parameter("q_bias", None)
    module.register_parameter("v_bias", None)
    if bias is not None:
        # torchvision sets the bias of keys to zero before each use.
        queries, _, values = bias.detach().chunk(3)
        module.q_bias = nn.Parameter(queries.clone(), requires_grad=bias.requires_grad)
        module.v_bias = nn.Parameter(values.clone(), requires_grad=bias.requires_grad)


class _Windows:
    """Windows of maps (N, H, W, C), padded to whole windows and shifted around their edges."""

    def __init__(self, maps: Tensor, window: list[int], shift: list[int]) -> None:
        _, self._height, self._width, self._channels = maps.shape
        self._window = window
        self._rows = -(-self._height // window[0])
        self._columns = -(-self._width // window[1])
        # If one window covers the map along an axis, it is not shifted along it.
        self._shift = [
            0 if count == 1 else pixels
            for count, pixels in zip((self._rows, self._columns), shift, strict=True)
        ]

    def of(self, maps: Tensor) -> Tensor:
        """Return the windows: (N windows, pixels of a window, C)."""
        height, width = self._rows * self._window[0], self._columns * self._window[1]
        maps = functional.pad(maps, (0, 0, 0, width - self._width, 0, height - self._height))
        if any(self._shift):
            maps = maps.roll((-self._shift[0], -self._shift[1]), (1, 2))
        return self._split(maps)

    def joined(self, windows: Tensor) -> Tensor:
        """Return the maps (N, H, W, C) of their windows (N windows, pixels of a window, C)."""
        grid = self._rows, self._columns, *self._window
        maps = windows.unflatten(1, tuple(self._window)).unflatten(0, (-1, *grid[:2]))
        maps = maps.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        if any(self._shift):
            maps = maps.roll(tuple(self._shift), (1, 2))
        return maps[:, : self._height, : self._width].contiguous()

    def mask(self, like: Tensor) -> Tensor | None:
        """Return what to add to the scores: (windows, 1, pixels, pixels); None without a shift.

        Pixels of a window that come from opposite edges of the map do not see each other.
        """
        if not any(self._shift):
            return None
        rows, columns = (
            _regions(count * window, window, shift, like)
            for count, window, shift in zip(
                (self._rows, self._columns), self._window, self._shift, strict=True
            )
        )
        regions = self._split((3 * rows[:, None] + columns)[None, :, :, None]).flatten(1)
        apart = regions[:, None, :] != regions[:, :, None]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)[:, None]

    def _split(self, maps: Tensor) -> Tensor:
        """Return the windows of padded maps."""
        maps = maps.unflatten(2, (self._columns, self._window[1]))
        maps = maps.unflatten(1, (self._rows, self._window[0]))
        return maps.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)


def _regions(size: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Number the parts of an axis that belong together after a shift."""
    positions = torch.arange(size, device=like.device)
    if not shift:
        return torch.zeros_like(positions)
    return (positions >= size - window).long() + (positions >= size - shift).long()


def _projected(module: ShiftedWindowAttention, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values: (windows, heads, pixels, C / heads) each."""
    joint = module.qkv(windows).unflatten(-1, (3, module.num_heads, -1))
    queries, keys, values = joint.permute(2, 0, 3, 1, 4).unbind()
    return queries, keys, values


def _mixed(
    module: ShiftedWindowAttention, scores: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """Return the output of attention with scores (windows, heads, pixels, pixels)."""
    scores = scores + module.get_relative_position_bias()
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    weights = functional.softmax(scores, dim=-1)
    weights = functional.dropout(weights, module.attention_dropout, module.training)
    mixed = module.proj((weights @ values).transpose(1, 2).flatten(2))
    return functional.dropout(mixed, module.dropout, module.training)
