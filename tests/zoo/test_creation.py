import sys
from types import SimpleNamespace

import mynet
import pytest
import torch
from toy import Toy, toy

from lowrank.config.network_source import NetworkSource
from lowrank.errors import UserError
from lowrank.surgery.finding import find_layers
from lowrank.tasks import get_task
from lowrank.zoo import network_spec, torchvision_models
from lowrank.zoo.creation import build, create
from lowrank.zoo.registry import InputForm, NetworkSpec

MYNET = NetworkSource(
    factory="mynet:build", arguments={"num_classes": 7, "width": 8}, input_shape=(3, 32, 32)
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a user module to the current folder and returns its source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "usersnet", raising=False)

    def write(code, **fields):
        (tmp_path / "usersnet.py").write_text(f"from torch import nn\n{code}")
        return NetworkSource(**{"factory": "usersnet:build", "input_shape": (3, 8, 8)} | fields)

    yield write
    sys.modules.pop("usersnet", None)


WORDS = InputForm("inputs", (6,), "int64")
EMBEDDED = "def build(): return nn.Embedding(11, 8)"


def message_of(source):
    with pytest.raises(UserError) as caught:
        create(source)
    return str(caught.value)


def test_registered_network():
    spec, network = create(NetworkSource(network="resnet20"))
    assert spec == network_spec("resnet20")
    assert type(network).__name__ == "ResNet"


def test_settings_of_the_source_override_the_network(register_network):
    register_network(toy, "toy")
    source = NetworkSource(
        network="toy", mean=(0, 0, 0), std=(1, 1, 1), resize=40, channel_order="bgr"
    )
    spec, _ = create(source)
    assert (spec.mean, spec.std, spec.resize) == ((0, 0, 0), (1, 1, 1), 40)
    assert (spec.channel_order, spec.interpolation) == ("bgr", "bilinear")
    assert (spec.input_shape, spec.num_classes) == ((3, 32, 32), 10)


def test_user_network():
    spec, network = create(MYNET)
    assert isinstance(network, mynet.MyNet)
    assert network.stem.out_channels == 8
    assert (spec.name, spec.input_shape, spec.num_classes) == ("mynet:build", (3, 32, 32), 7)
    assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))
    assert (spec.resize, spec.interpolation, spec.channel_order) == (None, "bilinear", "rgb")


def test_module_in_the_current_folder(module):
    code = "def build(): return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())"
    spec, _ = create(module(code))
    assert spec.num_classes == 4


def test_class_as_factory(module):
    code = (
        "class Net(nn.Sequential):\n"
        "    def __init__(self, classes): super().__init__(nn.Flatten(), nn.Linear(192, classes))"
    )
    spec, _ = create(module(code, factory="usersnet:Net", arguments={"classes": 5}))
    assert spec.num_classes == 5


def test_lazy_layers_are_initialized(module):
    source = module("def build(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(6))")
    for network in (create(source)[1], build(source, (3, 8, 8))):
        assert network[1].weight.shape == (6, 192)
        network(torch.randn(2, 3, 8, 8)).sum().backward()
        assert network[1].weight.grad is not None


def test_inputs_that_are_no_images(module):
    code = (
        "def build(): return nn.Sequential("
        "nn.Embedding(11, 8), nn.Linear(8, 16), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))"
    )
    source = module(code, input_shape=(6,), input_type="int64")
    spec, network = create(source)
    assert spec == NetworkSpec("usersnet:build", (6,), 4, (), (), forms=(WORDS,))
    table = find_layers(network, spec.input_shape, "net", spec.forms)
    assert [(layer.name, layer.input_map) for layer in table.layers] == [
        ("1", (6, 1)),
        ("4", (1, 1)),
    ]


def test_three_axes_of_whole_numbers_are_no_image(module):
    spec, _ = create(module(EMBEDDED, input_shape=(3, 2, 4), input_type="int64"))
    assert spec.forms == (InputForm("inputs", (3, 2, 4), "int64"),)


def test_vectors_are_no_image(module):
    spec, _ = create(module("def build(): return nn.Linear(5, 3)", input_shape=(7, 5)))
    assert spec.forms == (InputForm("inputs", (7, 5)),)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "does not accept 'inputs' (N, 6) of float32: RuntimeError"),
        ({"input_type": "int64", "std": (0.5,)}, "`std` is for images, but this network takes 'in"),
    ],
)
def test_settings_that_do_not_fit_an_input_that_is_no_image(module, settings, expected):
    assert expected in message_of(module(EMBEDDED, input_shape=(6,), **settings))


def test_finding_the_number_of_classes_draws_no_random_numbers():
    torch.manual_seed(0)
    first = mynet.build(7, 8).state_dict()
    torch.manual_seed(0)
    second = create(MYNET)[1].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = torch.rand(())
    torch.manual_seed(0)
    mynet.build(7, 8)
    assert torch.rand(()) == drawn


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("nowhere:build", "no module 'nowhere' in the current folder"),
        ("lowrank.nowhere:build", "no module 'lowrank.nowhere'"),
        ("mynet:biuld", "unknown function 'biuld'. Did you mean 'build'?"),
        ("mynet:torch", "'torch' is a module, expected a function"),
    ],
)
def test_factory_that_cannot_be_found(factory, expected):
    message = message_of(NetworkSource(factory=factory, input_shape=(3, 8, 8)))
    assert message.startswith(f"factory '{factory}'")
    assert expected in message


def test_message_names_the_searched_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    source = NetworkSource(factory="nowhere:build", input_shape=(3, 8, 8))
    assert str(tmp_path) in message_of(source)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere' (usersnet.py, line 2"),
        ("1 / 0", "ZeroDivisionError: division by zero (usersnet.py, line 2: 1 / 0)"),
        ("def build(:", "SyntaxError"),
        ("def build(): raise ValueError('no')", "ValueError: no (usersnet.py, line 2"),
        ("def build(classes): pass", "accepts (classes), but `arguments` is {}"),
        ("def build(): return {}", "returns a dict, expected a torch.nn.Module"),
        ("def build(): pass", "returns nothing, expected"),
        ("def build(): return nn.Linear", "returns the class Linear"),
    ],
)
def test_factory_that_does_not_build_a_network(module, code, expected):
    assert expected in message_of(module(code))


def test_arguments_that_the_factory_does_not_accept(module):
    source = module("def build(classes=3): pass", arguments={"clases": 4})
    assert "accepts (classes=3), but `arguments` is {'clases': 4}" in message_of(source)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ("return 'logits'", "returns a str; expected a tensor, or several tensors"),
        ("return self.layer(x)", "(usersnet.py, line 5: def forward(self, x): return self.layer("),
    ],
)
def test_network_that_does_not_return_tensors(module, forward, expected):
    code = (
        "class Net(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.layer = nn.Conv2d(4, 3, 1)\n"
        f"\n    def forward(self, x): {forward}\n"
        "build = Net"
    )
    assert expected in message_of(module(code))


@pytest.mark.parametrize(
    "forward",
    [
        "return {'logits': x.flatten(1)}",
        "return x.flatten(1), x",
        "return x",
        "return x.flatten(1).squeeze()",
    ],
)
def test_only_logits_have_a_number_of_classes(module, forward):
    code = f"class Net(nn.Module):\n    def forward(self, x): {forward}\nbuild = Net"
    assert create(module(code))[0].num_classes == 0
    with pytest.raises(UserError, match=r"does not return logits.*task: agreement"):
        get_task("classification").require_match(0, 10, network="net", dataset="images")


def test_auxiliary_outputs_in_training_mode_are_accepted(module):
    code = (
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return (x.flatten(1), x) if self.training else x.flatten(1)\n"
        "build = Net"
    )
    spec, network = create(module(code))
    assert spec.num_classes == 192
    assert network.training


def test_input_shape_that_the_network_does_not_accept():
    message = message_of(MYNET.model_copy(update={"input_shape": (1, 32, 32)}))
    assert "does not accept an image of `input_shape` (1, 32, 32)" in message
    assert "mynet.py, line" in message


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("mean", (0.5,), "`mean` has 1 values (0.5,), but its images have 3 channels"),
        ("std", (1.0,) * 4, "`std` has 4 values"),
        ("resize", 31, "`resize` is 31 pixels, expected at least the shorter side"),
    ],
)
def test_preprocessing_that_does_not_match_the_input(field, value, expected):
    assert expected in message_of(MYNET.model_copy(update={field: value}))


def test_torchvision_network():
    source = NetworkSource(network="squeezenet1_1", arguments={"num_classes": 6})
    spec, network = create(source.model_copy(update={"input_shape": (3, 64, 64)}))
    assert type(network).__module__ == "torchvision.models.squeezenet"
    assert (spec.name, spec.num_classes) == ("squeezenet1_1", 6)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (spec.input_shape, spec.resize) == ((3, 64, 64), None)


def test_registered_network_hides_the_torchvision_network(register_network):
    register_network(toy, "shufflenet_v2_x0_5")
    assert isinstance(create(NetworkSource(network="shufflenet_v2_x0_5"))[1], Toy)
    spec, network = create(NetworkSource(network="torchvision/shufflenet_v2_x0_5"))
    assert not isinstance(network, Toy)
    assert (spec.input_shape, spec.resize, spec.num_classes) == ((3, 224, 224), 256, 1000)


def test_preprocessing_comes_from_the_named_weights():
    source = NetworkSource(network="mobilenet_v3_large")
    resizes = {
        weights: create(source.model_copy(update={"torchvision_weights": weights}))[0].resize
        for weights in ("IMAGENET1K_V1", "IMAGENET1K_V2", None)
    }
    assert resizes == {"IMAGENET1K_V1": 256, "IMAGENET1K_V2": 232, None: 232}


@pytest.mark.parametrize(
    ("size", "shape", "resize"), [(224, (3, 224, 224), 224), (96, (3, 96, 96), None)]
)
def test_vision_transformer_has_one_image_size(size, shape, resize):
    # The default weights of this network expect images of 518 pixels.
    spec = torchvision_models._spec("vit_h_14", SimpleNamespace(image_size=size), None)
    assert (spec.input_shape, spec.resize, spec.interpolation) == (shape, resize, "bicubic")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_removed(name):
    source = NetworkSource(network=f"torchvision/{name}", input_shape=(3, 96, 96))
    _, network = create(source)
    assert network.transform_input
    assert not [key for key in network.state_dict() if key.lower().startswith("aux")]
    assert isinstance(network.train()(torch.randn(2, 3, 96, 96)), torch.Tensor)


def test_unknown_names():
    assert "Did you mean 'resnet20'? Known: alexnet," in message_of(
        NetworkSource(network="resnet2")
    )
    message = message_of(NetworkSource(network="torchvision/densenet12"))
    assert "unknown network 'torchvision/densenet12'. Did you mean 'densenet1" in message
    source = NetworkSource(network="resnet50", torchvision_weights="IMAGENET1K_V3")
    assert "torchvision/resnet50: unknown weights 'IMAGENET1K_V3'. Did you mean" in message_of(
        source
    )


def test_arguments_that_torchvision_rejects():
    message = message_of(NetworkSource(network="resnet18", arguments={"classes": 3}))
    assert "torchvision/resnet18: cannot be built with the arguments {'classes': 3}" in message
