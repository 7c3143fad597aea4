"""Sources are parsed once, whatever the number of processes that read them."""

import json
from pathlib import Path

import pytest

from lowrank.graph import source_files
from lowrank.graph.source_files import SourceCache

SOURCE = """
import math
from .blocks import WIDTH

def area(radius):
    return math.pi * radius**2, "lowrank.devices.remote"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def stored(tmp_path: Path, source: Path) -> Path:
    """Return the file of a cache that contains the source."""
    cache = SourceCache(tmp_path / "cache/sources.json")
    cache.read(source)
    cache.save()
    return cache.path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which each parsed file is added."""
    paths: list[Path] = []
    parse = source_files._parse

    def recording(content: bytes, path: Path):
        paths.append(path)
        return parse(content, path)

    monkeypatch.setattr(source_files, "_parse", recording)
    return paths


def test_a_stored_source_equals_the_parsed_one_and_is_not_parsed(stored, source, parsed):
    read = SourceCache(stored).read(source)
    assert not parsed
    assert read == source_files._parse(source.read_bytes(), source)
    assert read.imports == ((0, "math"), (1, "blocks"), (1, "blocks.WIDTH"))
    assert read.texts == {"lowrank.devices.remote"}


def test_a_changed_source_is_parsed_whatever_its_time_and_size(stored, source, parsed):
    cache = SourceCache(stored)
    before = cache.read(source)
    source.write_text(SOURCE.replace("**2", "**3"))
    assert cache.read(source).digest != before.digest
    assert parsed == [source]


def test_another_version_of_the_parser_parses_again(stored, source, parsed, monkeypatch):
    monkeypatch.setattr(source_files, "_version_of_parser", lambda: b"another")
    SourceCache(stored).read(source)
    assert parsed == [source]


@pytest.mark.parametrize("content", ["", "[]", "null", '{"key": 1}', '{"key": [1]}', "{"])
def test_a_damaged_cache_is_replaced(stored, source, parsed, content: str):
    whole = stored.read_text()
    stored.write_text(content)
    cache = SourceCache(stored)
    cache.read(source)
    cache.save()
    assert parsed == [source]
    assert stored.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, source):
    (tmp_path / "file").write_text("")
    cache = SourceCache(tmp_path / "file/sources.json")
    assert cache.read(source).digest
    cache.save()


def test_nothing_is_written_without_new_sources(stored, source):
    stored.chmod(0o444)
    before = stored.stat()
    cache = SourceCache(stored)
    cache.read(source)
    cache.save()
    assert (stored.stat().st_ino, stored.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_oldest_sources_are_removed(tmp_path, stored):
    keys = []
    for number in range(3):
        path = tmp_path / f"{number}.py"
        path.write_text(f"X = {number}\n")
        cache = SourceCache(stored, most=2)
        cache.read(path)
        cache.save()
        keys.append(list(json.loads(stored.read_text())))
    assert len(keys[-1]) == 2
    assert keys[-1] == [keys[1][-1], keys[2][-1]]
