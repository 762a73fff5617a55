"""What pydantic finds wrong, in the project's words."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayeffdet.spec.document import Path, dump_value
from rayeffdet.spec.fields import choices, default_text, did_you_mean, field_at, unknown_field
from rayeffdet.spec.section import Section

_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a section: its fields are expected, indented below it",
    "string": "text",
}
_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="),
           "less_than": ("lt", "<"), "less_than_equal": ("le", "<=")}  # fmt: skip


def field_problems(
    section: type[Section], values: dict[str, Any], *, prefix: Path = ()
) -> list[tuple[Path, str]]:
    """Returns the path and a sentence for every field of a section that cannot be accepted."""
    try:
        section.model_validate(values)
    except ValidationError as error:
        details = [item for item in error.errors(include_url=False) if not _follows(item)]
        return [(_path(item, prefix), _sentence(item, _path(item, prefix))) for item in details]
    return []


def shown(value: Any) -> str:
    """Returns a value as YAML, shortened to be part of a sentence."""
    text = repr(value) if isinstance(value, str) else dump_value(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _follows(error: ErrorDetails) -> bool:
    """Tells an error that only repeats that all items of a list were refused."""
    return error["type"] == "too_short" and bool(error["input"])


def _path(error: ErrorDetails, prefix: Path) -> Path:
    return (*prefix, *(key for key in error["loc"] if key != "[key]"))


def _sentence(error: ErrorDetails, path: Path) -> str:
    kind, value = error["type"], error["input"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_field(path)
    if kind == "missing":
        return "this field is required"
    if value is None:
        return _null(path)
    if kind == "literal_error":
        return _not_one_of(path, value)
    if kind in _BOUNDS:
        bound, sign = _BOUNDS[kind]
        return f"{shown(value)} is out of range: must be {sign} {context[bound]}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"YAML reads this as {shown(value)}, but text is expected: put it in quotes"
    return f"{shown(value)} is not {_EXPECTED.get(kind.split('_')[0], 'allowed here')}"


def _null(path: Path) -> str:
    info = field_at(path)
    if info is None or info.is_required():
        return "null is not allowed here"
    return f"null is not allowed; leave the field out for its default {default_text(info)}"


def _not_one_of(path: Path, value: Any) -> str:
    info = field_at(tuple(key for key in path if isinstance(key, str)))
    allowed = choices(info.annotation) if info else ()
    if len(allowed) == 1:
        return f"{shown(value)} is not allowed: only {shown(allowed[0])} is"
    words = [choice for choice in allowed if isinstance(choice, str)]
    names = ", ".join(choice if choice in words and choice else shown(choice) for choice in allowed)
    suggestion = did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{shown(value)} is not one of {names}{suggestion}"
