import io

import numpy as np
import pytest
from photos import photo
from PIL import Image
from torchvision.transforms import functional

from lowrank.errors import UserError
from lowrank.training.images import ImageFiles, StoredImages, decode, stored_size


def content_of(image, form="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("size", [(100, 150), (151, 100), (64, 64), (90, 300)])
def test_a_larger_image_is_reduced_as_torchvision_does(size):
    image = photo(*size)
    expected = functional.resize(Image.fromarray(image), [64])
    found = decode(content_of(image), 64)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.shape[:2] == stored_size(size, 64)


@pytest.mark.parametrize("size", [(20, 30), (64, 300), (1, 1)])
def test_no_image_is_enlarged(size):
    np.testing.assert_array_equal(decode(content_of(photo(*size)), 64), photo(*size))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_image_is_decoded_to_three_channels(mode):
    assert decode(content_of(photo(9, 7), mode=mode), 64).shape == (9, 7, 3)


def test_cmyk_photographs_are_converted():
    assert decode(content_of(photo(9, 7), "JPEG", "CMYK"), 64).shape == (9, 7, 3)


def test_stored_images_are_found_again():
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


def test_files_give_what_would_be_stored(files):
    assert len(files) == 1
    np.testing.assert_array_equal(files[0], decode(content_of(photo(70, 90)), 64))


def test_file_that_is_gone_is_named(files):
    (files.folder / "some/a.png").unlink()
    with pytest.raises(UserError, match=r"some/a\.png: .*No such file.*Put the file back"):
        files[0]


def test_file_that_was_changed_is_named(files):
    (files.folder / "some/a.png").write_bytes(content_of(photo(71, 90)))
    with pytest.raises(UserError, match=r"some/a\.png: .*holds \d+ bytes, and \d+ when"):
        files[0]


def test_file_that_was_overwritten_is_named(files):
    path = files.folder / "some/a.png"
    path.write_bytes(b"x" * len(path.read_bytes()))
    with pytest.raises(UserError, match=r"some/a\.png: .*no image of a kind"):
        files[0]
