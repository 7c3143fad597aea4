"""Errors of a configuration in the user's words: the parameter, what it is, what is expected."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from lowrank.config.document import Document, Place

# What a user's own names are made of.
NAME = r"^[A-Za-z][A-Za-z0-9_]*$"

# What is expected, by pydantic's name of the error.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dict": "a mapping, `name: value`",
    "mapping": "a mapping, `name: value`",
    "model": "a mapping of settings",
    "tuple": "a list",
    "list": "a list",
    "none": "null",
}

_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "at least {}",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
}


def refused(message: str, *place: str | int) -> PydanticCustomError:
    """An error to raise in a validator, for the entry at `place` inside the section."""
    return PydanticCustomError("refused", "{message}", {"message": message, "place": place})


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt name, in brackets; empty where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [each for each in names if name.startswith(each) or each.startswith(name)]
    return f" (did you mean '{near[0]}'?)" if near else ""


def described(
    error: ValidationError,
    model: type[BaseModel],
    document: Any,
    *,
    prefix: Sequence[str] = (),
    file: Document | None = None,
    origins: Mapping[str, Place] | None = None,
) -> str:
    """One clause for each mistake: its line, the parameter, what was found, what is expected.

    Parameters
    ----------
    error
        What the model raised for the document.
    model, document
        Both, to see which part of an error's place is the user's.
    prefix
        The place of the document in the file.
    file
        The file, where the lines are known.
    origins
        Where the user wrote a method, if not under its name in `methods`.
    """
    clauses: dict[tuple[Place, str], list[tuple[str, str]]] = {}
    for mistake in error.errors(include_url=False):
        place, is_key = _place(mistake, document)
        whole = _written(file, (*prefix, *place), origins or {})
        start, expected = _clause(mistake, model, place, whole, is_key=is_key)
        if mistake["type"] == "misplaced":
            whole = (*whole, mistake["ctx"]["name"])
        elif mistake["type"] == "refused":
            whole = (*whole, *mistake["ctx"]["place"])
        clauses.setdefault((whole, start), []).append(
            (expected, _quote(mistake) if expected else "")
        )
    found = []
    for (place, start), expected in clauses.items():
        line = file.line_of(place) if file else None
        words, hints = (
            list(dict.fromkeys(filter(None, each))) for each in zip(*expected, strict=True)
        )
        ending = " or ".join(words) + "".join(hints)
        found.append((f"line {line}: " if line else "") + start + ending)
    return "; ".join(found) + "."


def shown(value: Any) -> str:
    """A value as params.yaml has it, cut where it is long."""
    match value:
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case Mapping():
            text = "{" + ", ".join(f"{name}: {shown(each)}" for name, each in value.items()) + "}"
        case list() | tuple():
            text = "[" + ", ".join(map(shown, value)) + "]"
        case _:
            text = repr(value)
    return text if len(text) <= 100 else text[:96] + " ..."


def _place(mistake: ErrorDetails, document: Any) -> tuple[Place, bool]:
    """Where the user made it, and whether the name there is wrong, not the value."""
    place: list[str | int] = []
    at = document
    for number, part in enumerate(mistake["loc"]):
        if part == "[key]":
            return tuple(place), True
        if _has(at, part):
            at = at[part]
        elif mistake["type"] not in ("missing", "extra_forbidden") or (
            number < len(mistake["loc"]) - 1
        ):
            continue  # Pydantic's name for one of several types.
        place.append(part)
    return tuple(place), False


def _has(section: Any, part: str | int) -> bool:
    if isinstance(section, list | tuple):
        return isinstance(part, int) and part < len(section)
    return isinstance(section, Mapping) and part in section


def _written(file: Document | None, place: Place, origins: Mapping[str, Place]) -> Place:
    """Where the user wrote an entry of a method: a study's variant, or the base of that study."""
    if not file or len(place) < 2 or place[0] != "methods" or place[1] not in origins:
        return place
    origin, inner = origins[str(place[1])], place[2:]
    base = (*origin[:2], "base", *inner)
    in_base = origin[0] == "studies" and file.holds(base) and not file.holds((*origin, *inner))
    return base if in_base else (*origin, *inner)


def _clause(
    mistake: ErrorDetails, model: type[BaseModel], place: Place, whole: Place, *, is_key: bool
) -> tuple[str, str]:
    """The beginning of a clause, and what is expected, where the clause ends with that."""
    name = _dotted(whole)
    match mistake["type"]:
        case "extra_forbidden":
            known = list(_section_at(model, place[:-1]).model_fields)
            near = nearest(str(place[-1]), known)
            return (
                f"unknown parameter `{name}`{near}, known here are {', '.join(sorted(known))}",
                "",
            )
        case "missing" if isinstance(place[-1], int):
            name = _dotted(whole[:-1])
            return (
                f"`{name}` is too short, it should have more values: {shown(mistake['input'])}",
                "",
            )
        case "missing":
            return f"`{name}` is missing", ""
        case "value_error":
            found = mistake["msg"].removeprefix("Value error, ")
            return (f"in `{name}`: {found}" if name else found), ""
        case "misplaced":
            return (f"in `{name}`: {mistake['msg']}" if name else mistake["msg"]), ""
        case "refused":
            return mistake["msg"], ""
    if is_key:
        beginning = f"the name `{name}` is not possible, it should be "
        return beginning, "letters, digits and underscores, with a letter first"
    return f"`{name}` is {shown(mistake['input'])}, it should be ", _expected(mistake, model, place)


def _expected(mistake: ErrorDetails, model: type[BaseModel], place: Place) -> str:
    kind, context = mistake["type"], mistake.get("ctx", {})
    found = mistake["input"]
    match kind:
        case "literal_error":
            near = nearest(found, _quoted(context["expected"])) if isinstance(found, str) else ""
            several = "one of " if "' or '" in context["expected"] else ""
            return f"{several}{context['expected']}{near}"
        case "string_pattern_mismatch":
            form = getattr(_field_at(model, place), "description", None)
            if context["pattern"] == NAME or not form:
                return "a name of letters, digits and underscores, with a letter first"
            return form[0].lower() + form[1:].rstrip(".")
        case "string_too_short":
            return "not empty"
        case "too_short" | "too_long":
            bound = context.get("min_length", context.get("max_length"))
            words = "at least" if kind == "too_short" else "at most"
            return f"a list of {words} {bound} {'value' if bound == 1 else 'values'}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return " and ".join(_bounds(model, place)) or mistake["msg"].partition("should be ")[2]
    words = _EXPECTED.get(kind.partition("_")[0], mistake["msg"].partition("should be ")[2])
    if kind.startswith(("int", "float", "finite")):
        return ", ".join(filter(None, [words, " and ".join(_bounds(model, place))]))
    if kind.startswith("model"):
        return f"{words}: {', '.join(sorted(_section_at(model, place).model_fields))}"
    return words


def _quote(mistake: ErrorDetails) -> str:
    """A hint where text is expected and YAML sees a number or a truth value."""
    found = mistake["input"]
    if not mistake["type"].startswith("string"):
        return ""
    if isinstance(found, bool):
        return "; yes, no, on, off, true and false need quotes where they are text: 'no'"
    return f"; put it in quotes: '{found}'" if isinstance(found, int | float) else ""


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']+)'", expected)


def _bounds(model: type[BaseModel], place: Place) -> list[str]:
    """All bounds of the parameter at `place`."""
    names = [part for part in place if isinstance(part, str)]
    # The innermost name that is a parameter: below it, the user's own names.
    for length in range(len(names), 0, -1):
        properties = _section_at(model, names[: length - 1]).model_json_schema()["properties"]
        if document := properties.get(names[length - 1], {}):
            break
    else:
        return []
    for each in _parts(document):
        if found := [text.format(each[key]) for key, text in _BOUNDS.items() if key in each]:
            return found
    return []


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A parameter's schema, and those of its forms and of its items."""
    yield document
    inner = [*document.get("anyOf", []), *document.get("prefixItems", [])]
    for name in ("items", "additionalProperties"):
        if isinstance(document.get(name), Mapping):
            inner.append(document[name])
    for each in inner:
        yield from _parts(each)


def _field_at(model: type[BaseModel], place: Place) -> Any:
    names = [part for part in place if isinstance(part, str)]
    return _section_at(model, names[:-1]).model_fields.get(names[-1]) if names else None


def _section_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    """The section at `place`; the names of a mapping's entries are stepped over."""
    for part in place:
        if (field := model.model_fields.get(str(part))) is None:
            continue
        found = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [t for t in found if isinstance(t, type) and issubclass(t, BaseModel)]
        model = sections[0] if sections else model
    return model


def _dotted(place: Place) -> str:
    """`matrix.models[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
