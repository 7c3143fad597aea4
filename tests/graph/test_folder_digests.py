"""A changed image folder has another digest."""

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


def test_the_same_folder_has_the_same_digest_and_reading_changes_nothing(photos: Path):
    before = digest(photos)
    (photos / "cat/1.png").read_bytes()
    assert digest(photos) == before


def test_added_removed_renamed_and_rewritten_files_count(photos: Path):
    seen = {digest(photos)}
    (photos / "dog/2.png").write_bytes(b"image")
    seen.add(digest(photos))
    (photos / "cat/2.png").unlink()
    seen.add(digest(photos))
    (photos / "dog/2.png").rename(photos / "dog/3.png")
    seen.add(digest(photos))
    (photos / "dog/3.png").write_bytes(b"other image")
    seen.add(digest(photos))
    os.utime(photos / "dog/3.png", (1, 1))
    seen.add(digest(photos))
    assert len(seen) == 6


def test_of_a_large_folder_names_alone_count(photos: Path):
    before = digest(photos, most=2)
    (photos / "cat/1.png").write_bytes(b"rewritten")
    assert digest(photos, most=2) == before
    (photos / "dog/2.png").write_bytes(b"image")
    assert digest(photos, most=2) != before


def test_a_missing_folder_and_a_link_to_nowhere_are_no_errors(photos: Path):
    (photos / "dog/9.png").symlink_to("/nowhere/at/all.png")
    assert digest(photos) != digest(photos / "missing")
