"""The documentation as a program reads it: links, anchors, tables, code, and commands."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    """The text with code left out, in lines as they were."""
    text = _FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    return _CODE.sub("", text)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [code for _, found, code in _FENCED.findall(text) if found == language]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All anchors of a page; a heading that is there twice gets a number."""
    found: dict[str, int] = {}
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        found[slug(heading)] = found.get(slug(heading), 0) + 1
    numbered = {f"{each}-{n}" for each, count in found.items() for n in range(1, count)}
    return numbered | found.keys()


def broken_links(page: Path) -> Iterator[str]:
    """A sentence for each relative link or image that leads nowhere."""
    for link in _LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{name_of(page)}: '{link}' leads to no file"
        elif anchor and anchor not in anchors(target.read_text()):
            yield f"{name_of(page)}: {name_of(target)} has no heading for '#{anchor}'"


@dataclass(frozen=True)
class Table:
    """A table of a page: the anchor of the heading above, column names, and rows by column."""

    page: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def tables(page: Path) -> list[Table]:
    """The tables of a page. An empty first cell stands for the one above it."""
    found, heading, lines = [], "", page.read_text().splitlines()
    for number, line in enumerate(lines):
        if match := _HEADING.match(line):
            heading = slug(match[1])
        if not re.fullmatch(r"\|[-|: ]+\|", line):
            continue
        columns, rows = _cells(lines[number - 1]), []
        for each in lines[number + 1 :]:
            if not each.startswith("|"):
                break
            row = dict(zip(columns, _cells(each), strict=True))
            if rows and not row[columns[0]]:
                row[columns[0]] = rows[-1][columns[0]]
            rows.append(row)
        found.append(Table(name_of(page), heading, tuple(columns), tuple(rows)))
    return found


def _cells(line: str) -> list[str]:
    """The cells of a line, without bold type and the marks of code."""
    cells = line.strip().removeprefix("|").removesuffix("|").split("|")
    return [re.sub(r"[*`]", "", cell).strip() for cell in cells]


# A row's cells in the key columns, then by column the figures that it should hold, in their order.
Figures = Mapping[tuple[str, ...], Mapping[str, Sequence[float]]]


def disagreements(table: Table, keys: Sequence[str], expected: Figures, source: str) -> list[str]:
    """A sentence for each figure of a table that is not the one of its source, as it is printed.

    Parameters
    ----------
    keys
        The columns that name a row.
    expected
        What the source holds.
    source
        The file to name.
    """
    where, sentences, seen = f"{table.page}, table under #{table.heading}", [], set()
    for row in table.rows:
        key = tuple(row[column] for column in keys)
        seen.add(key)
        if key not in expected:
            sentences.append(f"{where}: row {key} is not in {source}")
            continue
        for column, values in expected[key].items():
            printed = _NUMBER.findall(row[column])
            wanted = [
                as_printed(value, like)
                for value, like in zip(values, printed or [""] * len(values), strict=False)
            ]
            if printed != wanted or len(printed) != len(values):
                sentences.append(
                    f"{where}, row {key}, column '{column}': found '{row[column]}', expected "
                    f"{', '.join(wanted)} ({source})"
                )
    sentences += [f"{where}: no row {key}, which is in {source}" for key in expected.keys() - seen]
    return sentences


def as_printed(value: float, like: str) -> str:
    """A number with as many decimals, and in the form, of another one that was printed."""
    mantissa, exponent, _ = like.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if exponent:
        return f"{value:.{decimals}e}"
    return f"{value:,.{decimals}f}" if "," in like else f"{value:.{decimals}f}"


def commands(page: Path) -> list[str]:
    """The commands that a page quotes, in lines of shell code and in inline code."""
    text = page.read_text()
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += _CODE.findall(_FENCED.sub("", text))
    parts = [part for line in lines for part in re.split(r"&&|;|\|", line.partition("#")[0])]
    starts = ("snakemake", "dvc", "lowrank", "make", "python benchmarks/", "time snakemake")
    stripped = [part.strip().removeprefix("time ") for part in parts]
    return [each for each in stripped if re.match(rf"(?:{'|'.join(starts)})(?:\s|$|\w*\.py)", each)]
