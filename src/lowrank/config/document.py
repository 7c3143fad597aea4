"""Read params.yaml: one meaning for each value, and the line of each entry for messages.

PyYAML reads YAML 1.1, DVC writes and reads YAML 1.2. They disagree about 1e-05 (text or a number),
0100 (64 or 100), 2024-01-01 (a date or text) and more. Here numbers are those of YAML 1.2, and
what the two read as different numbers is refused.
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
# Octal or decimal, with underscores, and numbers to the base of 60.
_AMBIGUOUS = re.compile(
    r"[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?[0-9]+(?:_[0-9]*)+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
)


@dataclass(frozen=True)
class Document:
    """A configuration, and the line of each of its entries where they are known.

    Parameters
    ----------
    entries
        Sections by name.
    source
        The file, for messages.
    lines
        Lines, from 1, by the path to an entry: names, and numbers in lists.
    """

    entries: Mapping[str, Any]
    source: str = "params.yaml"
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line_of(self, place: Sequence[str | int]) -> int | None:
        """The line of an entry, or of the innermost section around it that has one."""
        for length in range(len(place), 0, -1):
            if line := self.lines.get(tuple(place[:length])):
                return line
        return None

    def named(self, place: Place) -> str:
        """An entry's place for a message, with its line where that is known."""
        name = f"`{'.'.join(map(str, place))}`"
        line = self.line_of(place)
        return f"{name} (line {line})" if line else name

    def holds(self, place: Place) -> bool:
        """Whether there is such an entry."""
        return _at(self.entries, place) is not _NOTHING


def read_document(path: str | Path = "params.yaml") -> Document:
    """Read a configuration. Raises UserError with line and column where it is not clear."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. Run the command in the folder that holds it."
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
        clear = "" if isinstance(error, _Unclear) else "not YAML: "
        raise UserError(f"{source}: {place}{clear}{reason}.{_advice(reason)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, dict):
        found = "nothing" if entries is None else _kind(entries)
        raise UserError(f"{source}: expected a mapping of sections, found {found}.")
    return Document(entries, source, _lines(node, source))


def reconciled(config: Mapping[str, Any], paths: Iterable[str | Path]) -> Document:
    """A configuration as Snakemake made it, with the values that we read in its files.

    Parameters
    ----------
    config
        Entries of the files, merged by Snakemake, with those of its `--config`. Of these it hands
        over nested numbers, truth values and nulls as text, so that quotes change nothing there.
    paths
        The files; lines are those of the first, and entries that come from elsewhere have none.
        Raises UserError as `read_document` does.
    """
    files = [
        (read_document(path), yaml.load(Path(path).read_bytes(), yaml.FullLoader)) for path in paths
    ]
    lines = dict(files[0][0].lines) if files else {}

    def ours(given: Any, place: Place) -> Any:
        if isinstance(given, Mapping):
            return {name: ours(value, (*place, name)) for name, value in given.items()}
        # The later file replaces what the earlier ones hold.
        for number, (file, as_read) in reversed(list(enumerate(files))):
            found, theirs = _at(file.entries, place), _at(as_read, place)
            if theirs == given and type(theirs) is type(given) and found is not _NOTHING:
                if number:
                    forget(place)
                return found
        forget(place)
        return _typed(given)

    def forget(place: Place) -> None:
        for known in [known for known in lines if known[: len(place)] == place]:
            del lines[known]

    entries = ours(config, ())
    return Document(entries, files[0][0].source if files else "params.yaml", lines)


_NOTHING = object()


def _at(entries: Any, place: Place) -> Any:
    for part in place:
        if not isinstance(entries, Mapping) or part not in entries:
            return _NOTHING
        entries = entries[part]
    return entries


def _typed(value: Any) -> Any:
    """The value with what YAML reads as a number, a truth value or null, where it is text."""
    if isinstance(value, list | tuple):
        return [_typed(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _typed(each) for name, each in value.items()}
    if not isinstance(value, str) or not value:
        return value
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, value, (True, False))
    if tag.rpartition(":")[2] not in ("int", "float", "bool", "null"):
        return value
    return loader.construct_object(yaml.ScalarNode(tag, value))


class _Unclear(yaml.MarkedYAMLError):
    """YAML that is well formed and could mean two things."""


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 has them; no key twice, and none but text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's way)
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
                raise _Unclear(
                    problem=f"the key `{text}` is read as {_kind(self.construct_object(key))}; "
                    f"put it in quotes: '{text}'"
                    if isinstance(key, yaml.ScalarNode)
                    else "a key is a list or a mapping; a name was expected",
                    problem_mark=key.start_mark,
                )
            if text in lines:
                raise _Unclear(
                    problem=f"`{text}` was given in line {lines[text]} already; keep one of them",
                    problem_mark=key.start_mark,
                )
            lines[text] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if _AMBIGUOUS.fullmatch(text):
            raise _Unclear(
                problem=f"{text} is one number to some readers of YAML and another one, or text, "
                f"to others; write it in decimal digits alone, or as text in quotes: '{text}'",
                problem_mark=node.start_mark,
            )
        if _INTEGER.fullmatch(text):
            return int(text, 0)
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


for _tag, _pattern in (("ambiguous", _AMBIGUOUS), ("int", _INTEGER), ("float", _FLOAT)):
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list("-+.0123456789"))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _lines(root: yaml.Node, source: str) -> dict[Place, int]:
    """The line of each entry. Raises UserError for a section that holds itself."""
    lines: dict[Place, int] = {}

    around: list[yaml.Node] = []

    def visit(node: yaml.Node, place: Place) -> None:
        if node in around:
            mark = node.start_mark
            raise UserError(
                f"{source}: line {mark.line + 1}, column {mark.column + 1}: "
                f"`{'.'.join(map(str, place))}` holds itself, by an alias."
            )
        around.append(node)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                # What a merge (`<<`) brings in comes first; the section's own entries replace it.
                lines[(*place, key.value)] = key.start_mark.line + 1
                visit(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                lines[(*place, number)] = value.start_mark.line + 1
                visit(value, (*place, number))
        around.pop()

    visit(root, ())
    return lines


def _kind(value: Any) -> str:
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
    """What to do about the usual mistakes."""
    if "\\t" in reason or "'\t'" in reason:
        return " Indent with spaces, not tabs."
    if "mapping values are not allowed" in reason:
        return " Put text that holds a colon in quotes, and check the indentation."
    return ""
