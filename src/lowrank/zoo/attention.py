"""Turn the projections of attention into linear layers that the network calls.

PyTorch's `nn.MultiheadAttention` keeps the weights of the query, key and value projections in one
parameter, and reads the weight of the output projection without calling that layer. torchvision's
Swin transformers do the same with the weights of two layers. Such projections are not layers that
factors can replace, so modules of these classes get a class that calls its projections.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
_SWIN = "torchvision.models.swin_transformer"


def split_attention(network: nn.Module) -> list[str]:
    """Let attention call its projections as layers, in place, and return the split tensors' names.

    Covers `nn.MultiheadAttention` and the window attention of torchvision's Swin transformers (v1
    and v2). Outputs and gradients stay the same. A parameter that held several projections becomes
    one parameter for each, with new names. `whole_attention` names the modules that stay.
    """
    names = []
    for place, module in list(_convertible(network)):
        parameters = dict(module.named_parameters())
        _convert(module)
        kept = dict(module.named_parameters())
        names += [f"{place}.{name}".lstrip(".") for name in parameters if name not in kept]
    _avoid_fast_paths(network)
    return names


def has_attention_to_split(network: nn.Module) -> bool:
    """Return whether `split_attention` would change a network."""
    return any(True for _ in _convertible(network))


def whole_attention(network: nn.Module) -> dict[nn.MultiheadAttention, str]:
    """Return the attention modules that `split_attention` leaves as they are, with the reasons."""
    holders = _holders(network)
    return {
        module: reason
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, SplitAttention)
        if (reason := _obstacle(module, holders))
    }


class SplitAttention(nn.MultiheadAttention):
    """Multi-head attention that calls its projections.

    Computes what `nn.MultiheadAttention` computes. `q_proj`, `k_proj`, `v_proj` and `out_proj` are
    layers. Nested tensors are not supported. Objects of this class are made by `split_attention`.
    """

    # A network may read the parameters of the base class. They can be read as long as the
    # projections are dense. The search for layers notices it, because these properties read the
    # weights of the projections.
    readable = True
    __jit_unused_properties__: ClassVar = list(_PACKED)
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weights of query, key and value below each other, if all have the same width."""
        if not self.readable or self.kdim != self.embed_dim or self.vdim != self.embed_dim:
            return None
        return torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """The biases of query, key and value one after another."""
        if not self.readable or self.q_proj.bias is None:
            return None
        return torch.cat((self.q_proj.bias, self.k_proj.bias, self.v_proj.bias))

    @property
    def q_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the query projection."""
        return self.q_proj.weight

    @property
    def k_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the key projection."""
        return self.k_proj.weight

    @property
    def v_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the value projection."""
        return self.v_proj.weight

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs and, with `need_weights`, the attention weights.

        Shapes and arguments are those of `nn.MultiheadAttention`. Raises RuntimeError for nested
        tensors, for `is_causal` without a mask, and for a mask of another shape.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise RuntimeError(
                "attention with separate projections does not support nested tensors. Pass padded "
                "tensors and `key_padding_mask`."
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("`is_causal` is only a hint about `attn_mask`, which is missing.")
        single = query.dim() == 2
        if single:
            # As a batch of one, with the batch axis where this module expects it.
            axis = 0 if self.batch_first else 1
            query, key, value = (tensor.unsqueeze(axis) for tensor in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        queries = self._heads(self.q_proj(query))
        keys, values = self._extended(
            self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        )
        # With padding or weights, PyTorch takes the mask instead of the hint.
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if is_causal else attn_mask, key_padding_mask, queries, keys)
        if need_weights:
            mixed, weights = self._weighted(queries, keys, values, mask)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(
                queries, keys, values, mask, dropout, is_causal
            )
            weights = None
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        outputs = self.out_proj(mixed.permute(order).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            outputs = outputs.squeeze(axis)
            weights = None if weights is None else weights.squeeze(0)
        return outputs, weights

    def _weighted(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted values (N, heads, L, E / heads) and the weights (N, heads, L, S)."""
        scores = (queries * math.sqrt(1 / self.head_dim)) @ keys.transpose(-2, -1)
        weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        return weights @ values, weights

    def _heads(self, projected: Tensor) -> Tensor:
        """Return vectors of shape (N, L, E), or (L, N, E), as (N, heads, L, E / heads)."""
        order = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).permute(order)

    def _extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the trained position and the position of zeros, if the module has them."""
        if self.bias_k is not None and self.bias_v is not None:
            shape = len(keys), self.num_heads, 1, self.head_dim
            keys, values = (
                torch.cat([vectors, bias.view(1, *shape[1:]).expand(shape)], dim=2)
                for vectors, bias in ((keys, self.bias_k), (values, self.bias_v))
            )
        if self.add_zero_attn:
            keys, values = (functional.pad(vectors, (0, 0, 0, 1)) for vectors in (keys, values))
        return keys, values

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        queries: Tensor,
        keys: Tensor,
    ) -> Tensor | None:
        """Return what to add to the scores (N, heads, L, S), where S counts added positions."""
        added = (self.bias_k is not None) + self.add_zero_attn
        images, heads, length, positions = *queries.shape[:3], keys.shape[2] - added
        mask = None
        if attn_mask is not None:
            batch = (images * heads,) if attn_mask.dim() == 3 else ()
            mask = _additive(attn_mask, (*batch, length, positions), queries.dtype)
            mask = mask.unflatten(0, (images, heads)) if batch else mask
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, (images, positions), queries.dtype)
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return functional.pad(mask, (0, added)) if mask is not None and added else mask


def _additive(mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a boolean mask is true."""
    if tuple(mask.shape) != shape:
        raise RuntimeError(f"a mask has the shape {tuple(mask.shape)}, expected {shape}.")
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise RuntimeError(f"a mask has the type {mask.dtype}, expected bool or floating point.")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _convertible(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the paths and modules that `split_attention` converts."""
    holders = _holders(network)
    for place, module in network.named_modules():
        if isinstance(module, SplitAttention):
            continue
        if isinstance(module, nn.MultiheadAttention):
            if not _obstacle(module, holders):
                yield place, module
        elif _SWIN in sys.modules:
            from lowrank.zoo import window_attention

            if window_attention.is_convertible(module):
                yield place, module


def _convert(module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention):
        _split(module)
    else:
        from lowrank.zoo import window_attention

        window_attention.convert(module)


def _holders(network: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, by its id."""
    return Counter(
        id(tensor)
        for module in network.modules()
        for tensor in module._parameters.values()
        if tensor is not None
    )


def _obstacle(module: nn.MultiheadAttention, holders: Counter[int]) -> str | None:
    """Return why the projections of an attention module cannot become layers, or None."""
    kind = type(module)
    if kind is not nn.MultiheadAttention:
        return f"its attention's class {kind.__name__} may compute something else"
    if "forward" in vars(module):
        return "the forward() of its attention was replaced"
    packed = [module._parameters.get(name) for name in _PACKED]
    if not any(tensor is not None for tensor in packed[:4]):
        return "the weights of its attention are computed from other tensors"
    if any(tensor is not None and holders[id(tensor)] > 1 for tensor in packed):
        return "another layer shares the weights of its attention"
    if type(module.out_proj) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        return f"its class {type(module.out_proj).__name__} changes what Linear computes"
    return None


def _split(module: nn.MultiheadAttention) -> None:
    """Change the class of a module, and its packed parameters into layers, in place."""
    packed = {name: module._parameters.pop(name) for name in _PACKED}
    joint, *weights, bias = packed.values()
    if joint is not None:
        weights = list(_parts(joint))
    biases = [None] * 3 if bias is None else _parts(bias)
    output = module.out_proj
    module.__class__ = SplitAttention
    # Without a joint weight, nn.TransformerEncoderLayer does not take its fast path.
    module._qkv_same_embed_dim = False
    for name, weight, part in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        module.add_module(name, _linear(weight, part, training=module.training))
    # Without the hooks of the output projection: they never ran, as it was never called.
    module.add_module("out_proj", _linear(output.weight, output.bias, training=module.training))


def _parts(joint: nn.Parameter) -> Iterator[nn.Parameter]:
    for part in joint.detach().chunk(3):
        yield nn.Parameter(part.clone(), requires_grad=joint.requires_grad)


def _linear(weight: Any, bias: Any, *, training: bool) -> nn.Linear:
    """Return a linear layer with the given parameters: (outputs, inputs) and (outputs,)."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer.train(training)


def _avoid_fast_paths(network: nn.Module) -> None:
    """Keep PyTorch's transformers from functions that read weights instead of calling layers."""
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            attention = module.self_attn
            if (
                isinstance(attention, SplitAttention)
                and type(module).forward is nn.TransformerEncoderLayer.forward
            ):
                # forward() first asks for the joint bias, which factors do not have.
                attention.readable = False
        elif isinstance(module, nn.TransformerEncoder) and any(
            isinstance(part, SplitAttention) for part in module.modules()
        ):
            # Images of different lengths would be packed into a nested tensor.
            module.use_nested_tensor = False
