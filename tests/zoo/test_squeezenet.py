import torch
import torchvision

from lowrank.zoo.squeezenet import squeezenet


def test_equals_the_torchvision_network_with_caffe_names():
    torch.manual_seed(0)
    network = squeezenet().eval()
    reference = torchvision.models.squeezenet1_1().eval()
    tensors = network.state_dict()
    assert list(tensors)[:4] == [
        "conv1.weight", "conv1.bias", "fire2.squeeze1x1.weight", "fire2.squeeze1x1.bias",
    ]  # fmt: skip
    assert sum(tensor.numel() for tensor in tensors.values()) == 1_235_496
    # Both networks store their layers in forward order.
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors.values(), strict=True)))
    images = torch.randn(2, 3, 227, 227)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), reference(images))
