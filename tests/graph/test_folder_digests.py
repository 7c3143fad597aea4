"""Digests of image folders."""

import os
from pathlib import Path

import pytest

from lowrank.graph.folder_digests import digest_of_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image")
    return tmp_path


def digest(folder: Path, **options: int) -> str:
    digest_of_folder.cache_clear()
    return digest_of_folder(str(folder), **options)


def test_reading_a_file_does_not_change_the_digest(photos: Path):
    before = digest(photos)
    (photos / "cat/1.png").read_bytes()
    assert digest(photos) == before


def test_adding_removing_renaming_and_rewriting_files_changes_the_digest(photos: Path):
    digests = {digest(photos)}
    (photos / "dog/2.png").write_bytes(b"image")
    digests.add(digest(photos))
    (photos / "cat/2.png").unlink()
    digests.add(digest(photos))
    (photos / "dog/2.png").rename(photos / "dog/3.png")
    digests.add(digest(photos))
    (photos / "dog/3.png").write_bytes(b"other image")
    digests.add(digest(photos))
    os.utime(photos / "dog/3.png", (1, 1))
    digests.add(digest(photos))
    assert len(digests) == 6


def test_the_digest_of_a_large_folder_depends_only_on_names(photos: Path):
    before = digest(photos, max_files=2)
    (photos / "cat/1.png").write_bytes(b"rewritten")
    assert digest(photos, max_files=2) == before
    (photos / "dog/2.png").write_bytes(b"image")
    assert digest(photos, max_files=2) != before


def test_a_missing_folder_and_a_broken_link_have_digests(photos: Path):
    (photos / "dog/9.png").symlink_to("/nowhere/at/all.png")
    assert digest(photos) != digest(photos / "missing")
