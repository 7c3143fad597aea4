"""Test that attention with separate projections computes what PyTorch's attention computes."""

import copy
import functools
import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import get_model

import lowrank
from lowrank.errors import UserError
from lowrank.surgery.equality import layers_that_must_stay
from lowrank.surgery.finding import find_layers
from lowrank.zoo.attention import SplitAttention, has_attention_to_split, split_attention
from lowrank.zoo.forward import noise_images
from lowrank.zoo.plain import can_be_folded, copied, fold
from lowrank.zoo.weight_files import load_trained, write_weights

WIDTH, HEADS, IMAGES, QUERIES, KEYS = 8, 2, 3, 5, 7
SETTINGS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "bias_kv_and_zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
    "other_widths": {"kdim": 6, "vdim": 10, "batch_first": True},
    "other_key_width": {"kdim": 6},
    "other_widths_no_bias": {"kdim": 6, "vdim": 10, "bias": False, "add_bias_kv": True},
    "dropout": {"dropout": 0.3},
    "odd_heads": {"num_heads": 1, "batch_first": True},
}
CAUSAL = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
PADDING = torch.arange(KEYS) >= torch.tensor([[7], [4], [1]])
CALLS = {
    "weights": {},
    "weights_of_heads": {"average_attn_weights": False},
    "no_weights": {"need_weights": False},
    "mask": {"attn_mask": CAUSAL},
    "float_mask": {"attn_mask": torch.linspace(-2, 2, 35).view(QUERIES, KEYS)},
    "mask_of_each_head": {
        "attn_mask": torch.linspace(-2, 2, 210).view(IMAGES * HEADS, QUERIES, KEYS)
    },
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "padding": {"key_padding_mask": PADDING},
    "float_padding": {"key_padding_mask": torch.linspace(-2, 2, 21).view(IMAGES, KEYS)},
    "padding_and_mask": {"key_padding_mask": PADDING, "attn_mask": CAUSAL},
    "causal_with_padding": {
        "key_padding_mask": PADDING,
        "attn_mask": CAUSAL,
        "is_causal": True,
    },
}


def attention(**settings):
    """Return attention whose biases are not the zeros that PyTorch starts with."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, **{"num_heads": HEADS} | settings)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def split(module):
    copy_of = copy.deepcopy(module)
    split_attention(copy_of)
    assert type(copy_of) is SplitAttention
    return copy_of


def inputs_of(module, *, single=False):
    torch.manual_seed(1)
    shapes = (QUERIES, module.embed_dim), (KEYS, module.kdim), (KEYS, module.vdim)
    if single:
        return [torch.randn(shape, requires_grad=True) for shape in shapes]
    batches = [torch.randn(IMAGES, *shape) for shape in shapes]
    if not module.batch_first:
        batches = [batch.transpose(0, 1).contiguous() for batch in batches]
    return [batch.requires_grad_() for batch in batches]


def gradient_of(module, name):
    """Return the gradient of a parameter under the name that it has in PyTorch's attention."""
    if isinstance(module, SplitAttention) and name.startswith("in_proj"):
        kind = name.removeprefix("in_proj_")
        return torch.cat(
            [getattr(module, f"{part}_proj").get_parameter(kind).grad for part in "qkv"]
        )
    if isinstance(module, SplitAttention) and name[1:] == "_proj_weight":
        return module.get_parameter(name.replace("_weight", ".weight")).grad
    return module.get_parameter(name).grad


def assert_same(original, inputs, arguments):
    """Check outputs, attention weights and all gradients."""
    module = split(original)
    results, input_gradients = [], []
    for tried in (original, module):
        tried.zero_grad()
        torch.manual_seed(2)
        outputs, weights = tried(*inputs, **arguments)
        results.append((outputs, weights))
        loss = (outputs * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum()
        input_gradients.append(torch.autograd.grad(loss, inputs, retain_graph=True))
        loss.backward()
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(input_gradients[1], input_gradients[0])
    for name, _ in original.named_parameters():
        torch.testing.assert_close(gradient_of(module, name), gradient_of(original, name))


@pytest.mark.seconds  # All of them together.
@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_outputs_and_gradients_are_those_of_pytorch(settings, arguments):
    original = attention(**settings)
    if "attn_mask" in arguments and arguments["attn_mask"].dim() == 3 and original.num_heads == 1:
        arguments = {"attn_mask": arguments["attn_mask"][:IMAGES]}
    # In PyTorch, the causal hint hides the added positions from all queries, unless the attention
    # weights are returned.
    for need_weights in (True, False):
        assert_same(original, inputs_of(original), {"need_weights": need_weights} | arguments)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attn_mask": CAUSAL},
        {"key_padding_mask": PADDING[1]},
        {"attn_mask": torch.linspace(-2, 2, 70).view(HEADS, QUERIES, KEYS)},
    ],
)
def test_one_sequence_without_batch_axis(batch_first, need_weights, arguments):
    original = attention(batch_first=batch_first, add_bias_kv=True)
    inputs = inputs_of(original, single=True)
    assert_same(original, inputs, {"need_weights": need_weights} | arguments)


@pytest.mark.parametrize("arguments", [{}, {"key_padding_mask": PADDING[:, :QUERIES]}])
def test_fast_path_of_self_attention(arguments):
    original = attention(batch_first=True).eval()
    tokens = torch.randn(IMAGES, QUERIES, WIDTH)
    with torch.inference_mode():
        expected = original(tokens, tokens, tokens, **arguments)
        torch.testing.assert_close(split(original)(tokens, tokens, tokens, **arguments), expected)


def test_dropout_follows_the_mode():
    module = split(attention(dropout=0.5))
    inputs = inputs_of(module)
    assert module.training
    assert module.q_proj.training
    assert not torch.equal(module(*inputs)[0], module(*inputs)[0])
    module.eval()
    assert torch.equal(module(*inputs)[0], module(*inputs)[0])


def test_frozen_parameters_stay_frozen():
    original = attention()
    original.in_proj_weight.requires_grad_(False)
    module = split(original)
    assert not module.k_proj.weight.requires_grad
    assert module.k_proj.bias.requires_grad
    assert module.out_proj.weight.requires_grad


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_joint_parameters_can_be_read(settings):
    original = attention(**settings)
    module = split(original)
    for name in ("in_proj_weight", "in_proj_bias"):
        torch.testing.assert_close(getattr(module, name), getattr(original, name))
    assert sum(p.numel() for p in module.parameters()) == sum(
        p.numel() for p in original.parameters()
    )


def test_names_of_split_tensors():
    network = nn.ModuleDict({"a": attention(), "b": attention(kdim=6, bias=False)})
    assert can_be_folded(network)
    assert fold(network) == [
        "a.in_proj_weight",
        "a.in_proj_bias",
        "b.q_proj_weight",
        "b.k_proj_weight",
        "b.v_proj_weight",
    ]
    assert fold(network) == []
    assert not can_be_folded(network)
    projections = ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert sorted(network["b"].state_dict()) == sorted(f"{name}.weight" for name in projections)
    assert all(type(network["a"].get_submodule(name)) is nn.Linear for name in projections)


def test_hooks_of_attention_are_kept_and_those_of_its_output_projection_still_do_not_run():
    original, calls = attention(), []
    original.register_forward_hook(lambda *_: calls.append("attention"))
    original.out_proj.register_forward_hook(lambda *_: calls.append("projection"))
    module = split(original)
    module(*inputs_of(module))
    assert calls == ["attention"]


def test_attention_in_two_places_stays_one_module():
    shared = attention()
    network = nn.ModuleList([shared, shared])
    fold(network)
    assert network[0] is network[1]
    assert isinstance(network[0], SplitAttention)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_computed_weights_of_attention_are_folded_first(normalize):
    original = attention()
    normalize(original, "in_proj_weight")
    normalize(original.out_proj)
    inputs = inputs_of(original)
    expected = original(*inputs)[0]
    network = nn.ModuleList([copied(original)])
    fold(network)
    torch.testing.assert_close(network[0](*inputs)[0], expected)
    assert type(network[0]) is SplitAttention
    assert all("." in name for name in network[0].state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_causal": True}, "`is_causal` is only a hint"),
        ({"attn_mask": CAUSAL[:1]}, r"\(1, 7\), expected \(5, 7\)"),
        ({"attn_mask": CAUSAL[None]}, r"\(1, 5, 7\), expected \(6, 5, 7\)"),
        ({"key_padding_mask": PADDING[:1]}, r"\(1, 7\), expected \(3, 7\)"),
        ({"attn_mask": CAUSAL.long()}, "torch.int64, expected bool or floating point"),
    ],
)
def test_wrong_masks_are_refused(arguments, message):
    original = attention()
    inputs = inputs_of(original)
    with pytest.raises((RuntimeError, AssertionError)):
        original(*inputs, **arguments)
    with pytest.raises(RuntimeError, match=message):
        split(original)(*inputs, **arguments)


@pytest.mark.filterwarnings("ignore:.*nested")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.randn(4, WIDTH), torch.randn(2, WIDTH)])
    with pytest.raises(RuntimeError, match="does not support nested tensors"):
        split(attention(batch_first=True))(nested, nested, nested)


class Transformer(nn.Module):
    """Classifier of images with PyTorch's transformer layers."""

    def __init__(self, width=WIDTH, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, width, 4, 4)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, images, padding=None):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(tokens, src_key_padding_mask=padding)[:, 0])


PHOTOS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"norm_first": True}, {"bias": False}, {"activation": nn.functional.gelu}]
)
@pytest.mark.filterwarnings("ignore:.*nested")
def test_transformer_encoder(training, gradients, padded, settings):
    original = Transformer(**settings, dropout=0).train(training)
    network = copied(original)
    fold(network)
    padding = (torch.arange(16) >= torch.tensor([[16], [9], [4], [1]])) if padded else None
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(network(PHOTOS, padding), original(PHOTOS, padding))


def test_layers_of_a_transformer():
    network = Transformer()
    fold(network)
    table = find_layers(network, (3, 16, 16), "transformer")
    projections = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    names = [*projections, "linear1", "linear2"]
    assert [layer.name for layer in table.layers] == [
        "embed",
        *(f"encoder.layers.{i}.{name}" for i, name in itertools.product(range(2), names)),
        "head",
    ]
    assert not any(layer.not_factored for layer in table.layers)
    assert table["encoder.layers.0.self_attn.k_proj"].dense_macs == 16 * WIDTH * WIDTH


@pytest.mark.filterwarnings("ignore:.*nested")
@pytest.mark.parametrize("images", [None, [PHOTOS, PHOTOS.flip(3)]])
def test_compress_returns_a_module_that_works_in_the_users_code(images):
    original = Transformer(width=32).eval()
    small = lowrank.compress(
        original,
        (3, 16, 16),
        factorize={"linear": "svd"},
        ranks={"select": "ratio", "ratio": 2, "largest_drop": 1},
        images=images,
        sequential=images is not None,
    )
    replaced = {layer.name for layer in small.layers if not layer.is_dense}
    assert {
        f"encoder.layers.1.self_attn.{part}_proj" for part in ("q", "k", "v", "out")
    } <= replaced
    assert type(original.encoder.layers[0].self_attn) is nn.MultiheadAttention
    network = copy.deepcopy(small.network)
    assert isinstance(network.encoder.layers[0].self_attn, nn.MultiheadAttention)
    padding = torch.arange(16) >= torch.tensor([[16], [9], [4], [1]])
    with torch.inference_mode():
        assert network(PHOTOS).shape == network(PHOTOS, padding).shape == (4, 10)
    network.train()(PHOTOS).sum().backward()
    assert network.encoder.layers[0].self_attn.q_proj[0].weight.grad.any()
    assert sum(p.numel() for p in network.parameters()) < sum(
        p.numel() for p in original.parameters()
    )


class ReadingNetwork(nn.Module):
    """Network that computes attention itself from the parameters of PyTorch's module."""

    def __init__(self):
        super().__init__()
        self.attention = attention()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, images):
        tokens = images.flatten(2).permute(2, 0, 1)
        inner = self.attention
        outputs, _ = functional.multi_head_attention_forward(
            tokens, tokens, tokens, WIDTH, HEADS, inner.in_proj_weight, inner.in_proj_bias,
            None, None, False, 0.0, inner.out_proj.weight, inner.out_proj.bias, need_weights=False,
        )  # fmt: skip
        return self.linear(outputs).mean(0)


def test_network_that_reads_the_parameters_still_works():
    original = ReadingNetwork()
    images = torch.randn(2, WIDTH, 4, 4)
    network = copied(original)
    fold(network)
    torch.testing.assert_close(network(images), original(images))
    assert [layer.name for layer in find_layers(network, (WIDTH, 4, 4), "reading").layers] == [
        "linear"
    ]


class ScaledAttention(nn.MultiheadAttention):
    def forward(self, query, key, value):
        outputs, weights = super().forward(query, key, value)
        return 2 * outputs, weights


class Computed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + 1


def with_other_class():
    return ScaledAttention(WIDTH, HEADS)


def with_shared_weight():
    module = attention()
    module.other = attention()
    module.other.in_proj_weight = module.in_proj_weight
    return module


def with_other_projection():
    module = attention()
    module.out_proj = Computed(WIDTH, WIDTH)
    return module


def with_replaced_forward():
    module = attention()
    module.forward = functools.partial(nn.MultiheadAttention.forward, module, need_weights=False)
    return module


def with_plain_tensor():
    module = attention()
    weight = module.in_proj_weight.detach()
    del module.in_proj_weight
    module.in_proj_weight = weight
    return module


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_other_class, "its attention's class ScaledAttention may compute something else"),
        (with_shared_weight, "another layer shares the weights of its attention"),
        (with_other_projection, "its class Computed changes what Linear computes"),
        (with_replaced_forward, "the forward() of its attention was replaced"),
        (with_plain_tensor, "the weights of its attention are computed from other tensors"),
    ],
)
def test_other_attention_stays_with_a_reason(make, reason, by_name):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = make()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, images):
            tokens = images.flatten(2).permute(2, 0, 1)
            named = dict.fromkeys(("value", "key", "query"), tokens)
            mixed = self.attention(**named) if by_name else self.attention(*named.values())
            return self.linear(mixed[0]).mean(0)

    network = Network()
    before, forward = list(network.state_dict()), vars(network.attention).get("forward")
    assert not has_attention_to_split(network)
    assert fold(network) == []
    assert list(network.state_dict()) == before
    projection, linear = find_layers(network, (WIDTH, 4, 4), "network").layers
    assert (projection.name, projection.not_factored) == ("attention.out_proj", reason)
    assert projection.dense_macs == 16 * WIDTH * WIDTH
    assert (linear.name, linear.not_factored) == ("linear", None)
    assert vars(network.attention).get("forward") is forward
    small = lowrank.compress(
        network,
        (WIDTH, 4, 4),
        factorize={"linear": "svd"},
        ranks={"select": "ratio", "ratio": 2, "negligible": 0},
    )
    assert isinstance(small.network.linear, nn.Sequential)


@pytest.mark.parametrize("stored", ["joint", "split", "prefixed"])
def test_weights_are_loaded_before_and_after_splitting(stored):
    trained, said = Transformer(), []
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    network = Transformer()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    if stored == "split":
        fold(trained)
        weights = dict(trained.state_dict())
    if stored == "prefixed":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    load_trained(network, weights, source="file.pth", say=said.append)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(PHOTOS), trained.eval()(PHOTOS))
    assert isinstance(network.encoder.layers[0].self_attn, SplitAttention)
    assert any("folded 4 tensors" in line and "in_proj_weight" in line for line in said)


def test_message_names_the_tensor_that_is_in_the_file():
    weights = dict(Transformer(width=16).state_dict())
    with pytest.raises(UserError, match=r"'embed.weight' has shape \(16, 3, 4, 4\)"):
        load_trained(Transformer(), weights, source="file.pth")
    weights = dict(Transformer().state_dict())
    weights["encoder.layers.1.self_attn.in_proj_weight"] = torch.zeros(3, 8)
    with pytest.raises(UserError, match=r"'encoder.layers.1.self_attn.in_proj_weight' has shape"):
        load_trained(Transformer(), weights, source="file.pth")


def test_split_module_can_be_saved_and_copied(tmp_path):
    module = split(attention())
    torch.save(module, tmp_path / "module.pt")
    inputs = inputs_of(module)
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    torch.testing.assert_close(loaded(*inputs), module(*inputs))
    torch.testing.assert_close(copied(module)(*inputs), module(*inputs))
    write_weights(tmp_path / "module.safetensors", module)


ARCHITECTURES = {
    # name: size of images, layers, layers that hold projections
    "vit_b_16": (224, 26 + 48, 48),
    "swin_t": (224, 29 + 24, 24),
    "swin_v2_t": (256, 53 + 24, 24),
}


@pytest.mark.seconds
@pytest.mark.parametrize(
    "name",
    ["swin_t", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_b_16", "swin_v2_t"))],
)
def test_torchvision_network_is_the_same_at_full_rank(name):
    size, layers, projections = ARCHITECTURES[name]
    torch.manual_seed(0)
    original = get_model(name, weights=None).eval()
    for parameter in original.parameters():
        if parameter.dim() == 1 or not parameter.any():
            # Random weights start with zeros in heads and biases.
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.02)
    network = copied(original)
    fold(network)
    images = noise_images(network, (3, size, size), 2)
    with torch.inference_mode():
        expected = original(images)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-4)
    table = find_layers(network, (3, size, size), name)
    assert len(table.layers) == layers
    attention_layers = [
        layer for layer in table.layers if re.search(r"\.(attn|self_attention)\.\w+$", layer.name)
    ]
    assert len(attention_layers) == projections
    assert not any(layer.not_factored for layer in table.layers)
    assert layers_that_must_stay(network, table, images) == {}
