"""Input and layers that Caffe's networks for ImageNet share."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from lowrank.zoo.registry import NetworkSpec

# Mean of the ImageNet training images, 0 to 255, in the order blue, green, red.
BVLC_MEAN = (104.0, 117.0, 123.0)
VGG_MEAN = (103.939, 116.779, 123.68)


def imagenet_spec(name: str, side: int, mean: tuple[float, float, float]) -> NetworkSpec:
    """Return the specification of a network that Caffe trained on the 1,000 ImageNet classes.

    Images are resized so that the shorter side is 256 pixels, and the center `side` x `side`
    pixels are cropped. Channels are in the order blue, green, red. Values range from 0 to 255, and
    `mean` (blue, green, red) is subtracted.
    """
    return NetworkSpec(
        name=name,
        input_shape=(3, side, side),
        num_classes=1000,
        mean=tuple(level / 255 for level in mean),
        std=(1 / 255,) * 3,
        channel_order="bgr",
        resize=256,
    )


class ResponseNorm(nn.LocalResponseNorm):
    """Caffe's local response normalization over five channels with beta = 3/4, with square roots.

    Computes x / (k + alpha / 5 sum of x^2)^(3/4), like `nn.LocalResponseNorm`. Square roots replace
    the power, because ONNX Runtime spends more than half of the time of `nn.LocalResponseNorm` in
    the power.
    """

    def __init__(self, *, alpha: float, k: float) -> None:
        super().__init__(size=5, alpha=alpha, beta=0.75, k=k)

    def forward(self, inputs: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        squares = (inputs * inputs).unsqueeze(1)  # (N, 1, C, H, W)
        window, padding = (self.size, 1, 1), (self.size // 2, 0, 0)
        mean = functional.avg_pool3d(squares, window, stride=1, padding=padding).squeeze(1)
        root = (self.k + self.alpha * mean).sqrt()
        return inputs / (root * root.sqrt())


def linear_layers(features: int, num_classes: int) -> OrderedDict[str, nn.Module]:
    """Return the linear layers that AlexNet and the VGG networks end with.

    `features` is the number of values in the feature map before them.
    """
    return OrderedDict(
        flatten=nn.Flatten(),
        fc6=nn.Linear(features, 4096),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(0.5),
        fc8=nn.Linear(4096, num_classes),
    )


def with_fresh_weights(network: nn.Module) -> nn.Module:
    """Initialize the weights so that activations keep their scale (He et al. 2015).

    With PyTorch's default initialization, activations shrink from layer to layer, and these
    networks have no normalization that restores them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network
