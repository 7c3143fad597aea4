"""Read params.yaml with unambiguous values, and the line of each entry for error messages.

PyYAML reads YAML 1.1; DVC reads and writes YAML 1.2. They disagree about 1e-05 (text or a number),
0100 (64 or 100), 2024-01-01 (a date or text) and more. This module reads numbers as in YAML 1.2,
and rejects text that the two versions read as different numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import UserError

Place = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# Numbers that YAML 1.1 reads as octal, binary, with underscores, or in base 60.
_AMBIGUOUS = re.compile(
    r"[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?[0-9]+(?:_[0-9]*)+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
)


@dataclass(frozen=True)
class Document:
    """A configuration, and the line of each entry if it is known.

    Parameters
    ----------
    entries
        Sections by name.
    source
        Name of the file, for messages.
    lines
        Line number, from 1, by the path of an entry. A path consists of names and list indices.
    """

    entries: Mapping[str, Any]
    source: str = "params.yaml"
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line_of(self, place: Sequence[str | int]) -> int | None:
        """Return the line of an entry, or of the innermost section around it with a known line."""
        for length in range(len(place), 0, -1):
            if line := self.lines.get(tuple(place[:length])):
                return line
        return None

    def named(self, place: Place) -> str:
        """Return the path of an entry for a message, with its line if it is known."""
        name = f"`{'.'.join(map(str, place))}`"
        line = self.line_of(place)
        return f"{name} (line {line})" if line else name

    def holds(self, place: Place) -> bool:
        """Return whether the entry exists."""
        return _at(self.entries, place) is not _MISSING


def read_document(path: str | Path = "params.yaml") -> Document:
    """Read a configuration from a file.

    Raises UserError with line and column if it is not YAML, or if a value is ambiguous.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. Run the command in the folder that contains it."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error
    return parse_document(text, str(path))


def parse_document(text: bytes | str, source: str = "params.yaml") -> Document:
    """Read a configuration from the text of a file. Raises UserError as `read_document` does."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            entries = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = ": ".join(filter(None, (error.context, error.problem)))
        kind = "" if isinstance(error, _AmbiguousError) else "not YAML: "
        raise UserError(f"{source}: {place}{kind}{reason}.{_advice(reason)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}.") from error
    if node is None or not isinstance(entries, dict):
        kind_found = "nothing" if entries is None else _description_of(entries)
        raise UserError(f"{source}: expected a mapping of sections, found {kind_found}.")
    return Document(entries, source, _lines(node, source))


def reconciled(config: Mapping[str, Any], paths: Iterable[str | Path]) -> Document:
    """Return Snakemake's configuration, with each value as lowrank reads it from the files.

    Parameters
    ----------
    config
        Entries of the files, merged by Snakemake, with those of its `--config`. From `--config`,
        Snakemake passes nested numbers, truth values and nulls as text, so quotes make no
        difference there.
    paths
        The files. The lines in the result are those of the first file; entries from elsewhere have
        no line. Raises UserError as `read_document` does.
    """
    files = [
        (read_document(path), yaml.load(Path(path).read_bytes(), yaml.FullLoader)) for path in paths
    ]
    lines = dict(files[0][0].lines) if files else {}

    def our_value(value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            return {name: our_value(inner, (*place, name)) for name, inner in value.items()}
        # Entries of later files replace those of earlier files.
        for number, (file, read_by_snakemake) in reversed(list(enumerate(files))):
            ours, theirs = _at(file.entries, place), _at(read_by_snakemake, place)
            if theirs == value and type(theirs) is type(value) and ours is not _MISSING:
                if number:
                    forget_line(place)
                return ours
        forget_line(place)
        return _typed(value)

    def forget_line(place: Place) -> None:
        for inner in [known for known in lines if known[: len(place)] == place]:
            del lines[inner]

    entries = our_value(config, ())
    return Document(entries, files[0][0].source if files else "params.yaml", lines)


_MISSING = object()


def _at(entries: Any, place: Place) -> Any:
    for part in place:
        if not isinstance(entries, Mapping) or part not in entries:
            return _MISSING
        entries = entries[part]
    return entries


def _typed(value: Any) -> Any:
    """Return the value with text converted where YAML would read a number, truth value or null."""
    if isinstance(value, list | tuple):
        return [_typed(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _typed(item) for name, item in value.items()}
    if not isinstance(value, str) or not value:
        return value
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, value, (True, False))
    if tag.rpartition(":")[2] not in ("int", "float", "bool", "null"):
        return value
    return loader.construct_object(yaml.ScalarNode(tag, value))


class _AmbiguousError(yaml.MarkedYAMLError):
    """Well-formed YAML that has more than one meaning."""


class _Loader(yaml.SafeLoader):
    """Load YAML with the numbers of YAML 1.2; reject duplicate keys and keys that are not text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML expects it)
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            text, line = str(key.value), key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise _AmbiguousError(
                    problem=f"YAML reads the key `{text}` as "
                    f"{_description_of(self.construct_object(key))}; put it in quotes: '{text}'"
                    if isinstance(key, yaml.ScalarNode)
                    else "a key is a list or a mapping; expected a name",
                    problem_mark=key.start_mark,
                )
            if text in lines:
                raise _AmbiguousError(
                    problem=f"`{text}` was already given in line {lines[text]}; remove one of them",
                    problem_mark=key.start_mark,
                )
            lines[text] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if _AMBIGUOUS.fullmatch(text):
            raise _AmbiguousError(
                problem=f"{text} is ambiguous: YAML readers disagree about its value. Write a "
                f"number with decimal digits only, or text in quotes: '{text}'",
                problem_mark=node.start_mark,
            )
        if _INTEGER.fullmatch(text):
            return int(text, 0)
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


for _tag, _pattern in (("ambiguous", _AMBIGUOUS), ("int", _INTEGER), ("float", _FLOAT)):
    _full_pattern = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _full_pattern, list("-+.0123456789"))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _lines(root: yaml.Node, source: str) -> dict[Place, int]:
    """Return the line of each entry. Raises UserError for a section that contains itself."""
    lines: dict[Place, int] = {}

    open_nodes: list[yaml.Node] = []

    def visit(node: yaml.Node, place: Place) -> None:
        if node in open_nodes:
            mark = node.start_mark
            raise UserError(
                f"{source}: line {mark.line + 1}, column {mark.column + 1}: "
                f"`{'.'.join(map(str, place))}` contains itself through an alias. Remove the alias."
            )
        open_nodes.append(node)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                # Entries merged by `<<` come first; the section's own entries replace them.
                lines[(*place, key.value)] = key.start_mark.line + 1
                visit(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                lines[(*place, number)] = value.start_mark.line + 1
                visit(value, (*place, number))
        open_nodes.pop()

    visit(root, ())
    return lines


def _description_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _advice(reason: str) -> str:
    """Return advice for common mistakes."""
    if "\\t" in reason or "'\t'" in reason:
        return " Indent with spaces, not tabs."
    if "mapping values are not allowed" in reason:
        return " Put text that contains a colon in quotes, and check the indentation."
    return ""
