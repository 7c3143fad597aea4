"""Error messages for a configuration: the parameter, the value found and the value expected."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from lowrank.settings.document import Document, Place

# Pattern of the names that users choose.
NAME = r"^[A-Za-z][A-Za-z0-9_]*$"

# The expected value, by pydantic's name of the error.
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
    """Return an error to raise in a validator, for the entry at `place` inside the section."""
    return PydanticCustomError("refused", "{message}", {"message": message, "place": place})


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, in parentheses; empty if no name is similar."""
    names = list(known)
    matches = difflib.get_close_matches(name, names, n=1)
    matches = matches or [
        known_name
        for known_name in names
        if name.startswith(known_name) or known_name.startswith(name)
    ]
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def described(
    error: ValidationError,
    model: type[BaseModel],
    document: Any,
    *,
    prefix: Sequence[str] = (),
    file: Document | None = None,
    origins: Mapping[str, Place] | None = None,
) -> str:
    """Describe each mistake in one clause: its line, the parameter, the value and the expectation.

    Parameters
    ----------
    error
        Error that the model raised for the document.
    model, document
        Used to find which parts of an error's location are names from the file.
    prefix
        Path of the document in the file.
    file
        The file, if the lines are known.
    origins
        Where the user wrote each method that is not written under its name in `methods`.
    """
    clauses: dict[tuple[Place, str], list[tuple[str, str]]] = {}
    for mistake in error.errors(include_url=False):
        place, is_key = _place(mistake, document)
        full_place = _origin_of(file, (*prefix, *place), origins or {})
        sections = _Sections(model, document)
        start, expected = _clause(mistake, sections, place, full_place, is_key=is_key)
        if mistake["type"] == "misplaced":
            full_place = (*full_place, mistake["ctx"]["name"])
        elif mistake["type"] == "refused":
            full_place = (*full_place, *mistake["ctx"]["place"])
        clauses.setdefault((full_place, start), []).append(
            (expected, _quoting_hint(mistake) if expected else "")
        )
    sentences = []
    for (place, start), alternatives in clauses.items():
        line = file.line_of(place) if file else None
        words, hints = (
            list(dict.fromkeys(filter(None, texts))) for texts in zip(*alternatives, strict=True)
        )
        ending = " or ".join(words) + "".join(hints)
        sentences.append((f"line {line}: " if line else "") + start + ending)
    return "; ".join(sentences) + "."


def shown(value: Any) -> str:
    """Return a value as it would be written in params.yaml, shortened if it is long."""
    match value:
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case Mapping():
            text = "{" + ", ".join(f"{name}: {shown(inner)}" for name, inner in value.items()) + "}"
        case list() | tuple():
            text = "[" + ", ".join(map(shown, value)) + "]"
        case _:
            text = repr(value)
    return text if len(text) <= 100 else text[:96] + " ..."


def _place(mistake: ErrorDetails, document: Any) -> tuple[Place, bool]:
    """Return the path of a mistake in the document, and whether the name itself is wrong."""
    place: list[str | int] = []
    section = document
    for number, part in enumerate(mistake["loc"]):
        if part == "[key]":
            return tuple(place), True
        if _has(section, part):
            section = section[part]
        elif mistake["type"] not in ("missing", "extra_forbidden") or (
            number < len(mistake["loc"]) - 1
        ):
            continue  # Pydantic's name for one alternative of a union type.
        place.append(part)
    return tuple(place), False


def _has(section: Any, part: str | int) -> bool:
    if isinstance(section, list | tuple):
        return isinstance(part, int) and part < len(section)
    return isinstance(section, Mapping) and part in section


def _origin_of(file: Document | None, place: Place, origins: Mapping[str, Place]) -> Place:
    """Return where the user wrote an entry of a method: in a study's variant or in its base."""
    if not file or len(place) < 2 or place[0] != "methods" or place[1] not in origins:
        return place
    origin, inner = origins[str(place[1])], place[2:]
    base = (*origin[:2], "base", *inner)
    in_base = origin[0] == "studies" and file.holds(base) and not file.holds((*origin, *inner))
    return base if in_base else (*origin, *inner)


def _clause(
    mistake: ErrorDetails, sections: "_Sections", place: Place, full_place: Place, *, is_key: bool
) -> tuple[str, str]:
    """Return the start of a clause, and the expected value if the clause ends with it."""
    name = _dotted(full_place)
    match mistake["type"]:
        case "extra_forbidden":
            known = list(sections.at(place[:-1]).model_fields)
            suggestion = nearest(str(place[-1]), known) or nearest(
                str(place[-1]), sections.all_settings(place[:-1])
            )
            return (
                f"unknown parameter `{name}`{suggestion}, expected one of "
                f"{', '.join(sorted(known))}",
                "",
            )
        case "missing" if isinstance(place[-1], int):
            name = _dotted(full_place[:-1])
            return (
                f"`{name}` has too few values: {shown(mistake['input'])}",
                "",
            )
        case "missing":
            choice = sections.choice_at(place[:-1])
            return f"`{name}` is missing" + (f": {choice} needs it" if choice else ""), ""
        case "value_error":
            message = mistake["msg"].removeprefix("Value error, ")
            return (f"in `{name}`: {message}" if name else message), ""
        case "misplaced":
            return (f"in `{name}`: {mistake['msg']}" if name else mistake["msg"]), ""
        case "refused":
            return mistake["msg"], ""
    if is_key:
        beginning = f"the name `{name}` is not allowed, expected "
        return beginning, "letters, digits and underscores, starting with a letter"
    value = shown(mistake["input"])
    start = f"`{name}` is {value}, expected " if name else f"found {value}, expected "
    return start, _expected(mistake, sections, place)


def _expected(mistake: ErrorDetails, sections: "_Sections", place: Place) -> str:
    kind, context = mistake["type"], mistake.get("ctx", {})
    value = mistake["input"]
    match kind:
        case "literal_error":
            suggestion = (
                nearest(value, _quoted(context["expected"])) if isinstance(value, str) else ""
            )
            prefix = "one of " if "' or '" in context["expected"] else ""
            return f"{prefix}{context['expected']}{suggestion}"
        case "string_pattern_mismatch":
            description = getattr(sections.field_at(place), "description", None)
            if context["pattern"] == NAME or not description:
                return "a name of letters, digits and underscores, starting with a letter"
            return description[0].lower() + description[1:].rstrip(".")
        case "string_too_short":
            return "text that is not empty"
        case "too_short" | "too_long":
            bound = context.get("min_length", context.get("max_length"))
            words = "at least" if kind == "too_short" else "at most"
            return f"a list of {words} {bound} {'value' if bound == 1 else 'values'}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return (
                " and ".join(_bounds(sections, place)) or mistake["msg"].partition("should be ")[2]
            )
    words = _EXPECTED.get(kind.partition("_")[0], mistake["msg"].partition("should be ")[2])
    if kind.startswith(("int", "float", "finite")):
        return ", ".join(filter(None, [words, " and ".join(_bounds(sections, place))]))
    if kind.startswith("model"):
        return f"{words}: {', '.join(sorted(sections.at(place).model_fields))}"
    return words


def _quoting_hint(mistake: ErrorDetails) -> str:
    """Return a hint if text is expected but YAML reads a number or a truth value."""
    value = mistake["input"]
    if not mistake["type"].startswith("string"):
        return ""
    if isinstance(value, bool):
        return "; put yes, no, on, off, true and false in quotes if they are text: 'no'"
    return f"; put it in quotes: '{value}'" if isinstance(value, int | float) else ""


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']+)'", expected)


def _bounds(sections: "_Sections", place: Place) -> list[str]:
    """Return all bounds of the parameter at `place`, as text."""
    # Find the innermost name that is a parameter. Names below it are chosen by the user.
    for length in range(len(place), 0, -1):
        properties = sections.at(place[: length - 1]).model_json_schema()["properties"]
        if document := properties.get(place[length - 1], {}):
            break
    else:
        return []
    for part in _parts(document):
        if bounds := [text.format(part[key]) for key, text in _BOUNDS.items() if key in part]:
            return bounds
    return []


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a parameter's schema, and the schemas of its alternatives and of its items."""
    yield document
    inner = [part for name in ("anyOf", "oneOf", "prefixItems") for part in document.get(name, [])]
    for name in ("items", "additionalProperties"):
        if isinstance(document.get(name), Mapping):
            inner.append(document[name])
    for part in inner:
        yield from _parts(part)


class _Sections:
    """The models that check the sections of a document.

    Where a setting such as `kind` selects one of several models, the document decides.
    """

    def __init__(self, model: type[BaseModel], document: Any) -> None:
        self._model, self._document = model, document

    def at(self, place: Place) -> type[BaseModel]:
        """Return the model of the section at `place`; names of entries in a mapping are skipped."""
        return self._candidates(place)[0]

    def field_at(self, place: Place) -> Any:
        """Return the field of the setting at `place`; None if there is none."""
        names = [part for part in place if isinstance(part, str)]
        inner = place[: place.index(names[-1])] if names else ()
        return self.at(inner).model_fields.get(names[-1]) if names else None

    def choice_at(self, place: Place) -> str:
        """Return the setting that selects the model at `place`, as text; empty if none does."""
        candidates = self._candidates(place)
        return _choice(candidates[0]) if len(candidates) > 1 else ""

    def all_settings(self, place: Place) -> list[str]:
        """Return the settings of all models that may check the section at `place`."""
        return sorted({name for model in self._candidates(place) for name in model.model_fields})

    def _candidates(self, place: Place) -> list[type[BaseModel]]:
        """Return all models that may check the section at `place`, the selected one first."""
        entries = self._document
        models = sorted(_models_in(self._model), key=lambda model: not _is_selected(model, entries))
        for part in place:
            field = models[0].model_fields.get(str(part))
            entries = entries[part] if _has(entries, part) else None
            models = (_models_in(field.annotation) if field else []) or models
            models = sorted(models, key=lambda model: not _is_selected(model, entries))
        return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return all models in a type, such as those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        all_sections = getattr(annotation, "all_sections", None)
        return all_sections() if all_sections else [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _choices(model: type[BaseModel]) -> dict[str, Any]:
    """Return the settings with one possible value, which select a model, and these values."""
    return {
        name: get_args(field.annotation)[0]
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }


def _choice(model: type[BaseModel]) -> str:
    return " and ".join(f"`{name}: {value}`" for name, value in _choices(model).items())


def _is_selected(model: type[BaseModel], entries: Any) -> bool:
    given = entries if isinstance(entries, Mapping) else {}
    return all(
        given.get(name, model.model_fields[name].default) == value
        for name, value in _choices(model).items()
    )


def _dotted(place: Place) -> str:
    """Format a path as in `matrix.models[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
