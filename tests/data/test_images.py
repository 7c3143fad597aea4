import io
import os
import shutil

import numpy as np
import pytest
from photos import photo
from PIL import ExifTags, Image
from torchvision.transforms import functional

from lowrank.data.images import (
    ImageFiles,
    StoredImages,
    decode,
    read_file,
    size_of,
    stored_size,
)
from lowrank.errors import UserError


def content_of(image, form="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("size", [(100, 150), (151, 100), (64, 64), (90, 300)])
def test_large_image_is_reduced_like_in_torchvision(size):
    image = photo(*size)
    expected = functional.resize(Image.fromarray(image), [64])
    decoded = decode(content_of(image), 64)
    np.testing.assert_array_equal(decoded, np.asarray(expected))
    assert decoded.shape[:2] == stored_size(size, 64)


@pytest.mark.parametrize("size", [(20, 30), (64, 300), (1, 1)])
def test_small_image_is_not_enlarged(size):
    np.testing.assert_array_equal(decode(content_of(photo(*size)), 64), photo(*size))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_image_is_decoded_to_three_channels(mode):
    assert decode(content_of(photo(9, 7), mode=mode), 64).shape == (9, 7, 3)


def test_cmyk_photographs_are_converted():
    assert decode(content_of(photo(9, 7), "JPEG", "CMYK"), 64).shape == (9, 7, 3)


def test_stored_images_are_read_by_number():
    images = [photo(*size, seed=n) for n, size in enumerate([(4, 9), (7, 3), (1, 1), (5, 5)])]
    stored = StoredImages(
        np.concatenate([image.ravel() for image in images]),
        np.array([image.shape[:2] for image in images]),
    )
    assert len(stored) == 4
    for number in (3, 0, 2, 1):
        np.testing.assert_array_equal(stored[number], images[number])


@pytest.fixture
def files(tmp_path):
    content = content_of(photo(70, 90))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.png").write_bytes(content)
    return ImageFiles(tmp_path, [("some/a.png", len(content))], 64)


def test_files_give_the_same_images_as_stored(files):
    assert len(files) == 1
    np.testing.assert_array_equal(files[0], decode(content_of(photo(70, 90)), 64))


def test_message_names_a_missing_file(files):
    (files.folder / "some/a.png").unlink()
    with pytest.raises(UserError, match=r"some/a\.png: .*No such file.*Restore the file"):
        files[0]


def test_message_names_a_changed_file(files):
    (files.folder / "some/a.png").write_bytes(content_of(photo(71, 90)))
    with pytest.raises(UserError, match=r"some/a\.png: .*has \d+ bytes, but had \d+ when"):
        files[0]


def test_message_names_an_overwritten_file(files):
    path = files.folder / "some/a.png"
    path.write_bytes(b"x" * len(path.read_bytes()))
    with pytest.raises(UserError, match=r"some/a\.png: .*not an image in one of the formats"):
        files[0]


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 7
(pwned) (w) file closefile
showpage
"""


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    # Pillow would find this program as Ghostscript.
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(program)
    with pytest.raises(ValueError, match="not an image in one of the formats JPEG, PNG"):
        decode(POSTSCRIPT, 64)
    path = tmp_path / "image.png"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(OSError, match="cannot identify"):
        size_of(path)
    assert not (tmp_path / "pwned").exists()


def gray(height=9, width=7):
    """Return 8-bit values from black to white."""
    return np.linspace(0, 255, height * width).round().reshape(height, width).astype(np.uint8)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grayscale_keeps_its_values(form):
    sixteen = Image.fromarray(gray().astype(np.uint16) * 257)
    expected = np.repeat(gray()[..., None], 3, 2)
    np.testing.assert_array_equal(decode(saved(sixteen, form), 64), expected)


def test_pgm_file_with_ten_bits():
    values = (gray().astype(float) / 255 * 1023).round().astype(">u2")
    content = b"P5 7 9 1023\n" + values.tobytes()
    decoded = decode(content, 64)[..., 0].astype(int)
    assert np.abs(decoded - gray()).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.int32, "32-bit integers"), (np.float32, "floating-point values")]
)
def test_pixels_without_a_defined_white_are_rejected(dtype, kind):
    content = saved(Image.fromarray(gray().astype(dtype)), "TIFF")
    with pytest.raises(ValueError, match=f"its pixels are {kind}, and the file does not define"):
        decode(content, 64)


ROTATIONS = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1), 8: np.rot90}


@pytest.mark.parametrize("orientation", ROTATIONS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, form):
    image = photo(9, 7)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(Image.fromarray(image), form, exif=exif, **options)
    np.testing.assert_array_equal(decode(content, 64), ROTATIONS[orientation](image))


def test_damaged_exif_data_are_ignored():
    content = saved(Image.fromarray(photo(9, 7)), "PNG", exif=b"Exif\x00\x00MM\x00\x2anonsense")
    np.testing.assert_array_equal(decode(content, 64), photo(9, 7))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_dropped_like_in_torchvision(mode):
    image = Image.fromarray(photo(9, 7)).convert("RGBA")
    image.putalpha(Image.fromarray(gray()))
    if mode == "P":
        image = Image.fromarray(photo(9, 7)).quantize(8)
        content = saved(image, "PNG", transparency=bytes(range(8)))
    else:
        content = saved(image.convert(mode), "PNG")
    expected = Image.open(io.BytesIO(content)).convert("RGBA").convert("RGB")
    np.testing.assert_array_equal(decode(content, 64), np.asarray(expected))


def test_cmyk_photograph_keeps_its_colors():
    image = np.full((16, 16, 3), (200, 40, 60), np.uint8)
    decoded = decode(content_of(image, "JPEG", "CMYK"), 64)
    assert np.abs(decoded.astype(int) - image).max() < 6


def test_named_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="not a regular file, but a pipe"):
        read_file(tmp_path / "pipe.png")
