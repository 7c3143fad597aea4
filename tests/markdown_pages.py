"""Parse the documentation: links, anchors, tables, code and commands."""

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
    """Return the text without code, with the same number of lines."""
    text = _FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)
    return _CODE.sub("", text)


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return [code for _, block_language, code in _FENCED.findall(text) if block_language == language]


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return all anchors of a page. Repeated headings get numbers."""
    counts: dict[str, int] = {}
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        counts[slug(heading)] = counts.get(slug(heading), 0) + 1
    numbered = {f"{anchor}-{n}" for anchor, count in counts.items() for n in range(1, count)}
    return numbered | counts.keys()


def broken_links(page: Path) -> Iterator[str]:
    """Yield a message for each relative link or image without a target."""
    for link in _LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{name_of(page)}: there is no file for the link '{link}'"
        elif anchor and anchor not in anchors(target.read_text()):
            yield f"{name_of(page)}: {name_of(target)} has no heading for '#{anchor}'"


@dataclass(frozen=True)
class Table:
    """A table of a page: the anchor of its heading, the names of columns, and its rows."""

    page: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def tables(page: Path) -> list[Table]:
    """Return the tables of a page. An empty first cell repeats the cell above it."""
    page_tables, heading, lines = [], "", page.read_text().splitlines()
    for number, line in enumerate(lines):
        if match := _HEADING.match(line):
            heading = slug(match[1])
        if not re.fullmatch(r"\|[-|: ]+\|", line):
            continue
        columns, rows = _cells(lines[number - 1]), []
        for row_line in lines[number + 1 :]:
            if not row_line.startswith("|"):
                break
            row = dict(zip(columns, _cells(row_line), strict=True))
            if rows and not row[columns[0]]:
                row[columns[0]] = rows[-1][columns[0]]
            rows.append(row)
        page_tables.append(Table(name_of(page), heading, tuple(columns), tuple(rows)))
    return page_tables


def _cells(line: str) -> list[str]:
    """Return the cells of a line, without the marks of bold type and code."""
    cells = line.strip().removeprefix("|").removesuffix("|").split("|")
    return [re.sub(r"[*`]", "", cell).strip() for cell in cells]


# The expected figures by column, for each row. The key is the row's cells in the key columns.
Figures = Mapping[tuple[str, ...], Mapping[str, Sequence[float]]]


def disagreements(table: Table, keys: Sequence[str], expected: Figures, source: str) -> list[str]:
    """Return a message for each figure of a table that differs from its source.

    Figures are compared with the precision in which they are printed.

    Parameters
    ----------
    table
        The table of a page.
    keys
        The columns that identify a row.
    expected
        The figures of the source.
    source
        The name of the source, for messages.
    """
    where, messages, table_keys = f"{table.page}, table under #{table.heading}", [], set()
    for row in table.rows:
        key = tuple(row[column] for column in keys)
        table_keys.add(key)
        if key not in expected:
            messages.append(f"{where}: row {key} is not in {source}")
            continue
        for column, values in expected[key].items():
            printed = _NUMBER.findall(row[column])
            wanted = [
                as_printed(value, like)
                for value, like in zip(values, printed or [""] * len(values), strict=False)
            ]
            if printed != wanted or len(printed) != len(values):
                messages.append(
                    f"{where}, row {key}, column '{column}': found '{row[column]}', expected "
                    f"{', '.join(wanted)} ({source})"
                )
    missing = expected.keys() - table_keys
    messages += [f"{where}: no row {key}, which is in {source}" for key in missing]
    return messages


def as_printed(value: float, like: str) -> str:
    """Format a number with the same form and the same number of decimals as a printed one."""
    mantissa, exponent, _ = like.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if exponent:
        return f"{value:.{decimals}e}"
    return f"{value:,.{decimals}f}" if "," in like else f"{value:.{decimals}f}"


def commands(page: Path) -> list[str]:
    """Return the commands that a page quotes, in blocks of shell code and in inline code."""
    text = page.read_text()
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += _CODE.findall(_FENCED.sub("", text))
    parts = [part for line in lines for part in re.split(r"&&|;|\|", line.partition("#")[0])]
    starts = ("snakemake", "dvc", "lowrank", "make", "python benchmarks/", "time snakemake")
    stripped = [part.strip().removeprefix("time ") for part in parts]
    pattern = rf"(?:{'|'.join(starts)})(?:\s|$|\w*\.py)"
    return [command for command in stripped if re.match(pattern, command)]
