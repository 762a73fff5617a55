"""The reference of the spec, from the text under its fields.

`python -m rayeffdet.spec.explain` prints every field with its type and default.
"""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from rayeffdet.errors import SpecError
from rayeffdet.spec.fields import (
    all_fields,
    default_text,
    field_at,
    section_at,
    split_name,
    unknown_field,
)
from rayeffdet.spec.section import Section
from rayeffdet.spec.wording import shown

_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything"}
_SIGNS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}


def explain(dotted: str) -> str:
    """Returns the documentation of a field, or of a section and the fields in it.

    Raises:
        SpecError: There is no such field.
    """
    path = split_name(dotted) if dotted else ()
    section, info = section_at(path), field_at(path)
    if section:
        lines = [f"  {_signature(name, field)}" for name, field in section.model_fields.items()]
        title = f"{dotted or 'spec'}: {_sentence(section.__doc__ or '')}"
        return "\n".join([title, *lines])
    if info is None:
        raise SpecError(f"{dotted}: {unknown_field(path)}")
    return f"{_signature(dotted, info)}\n  {_sentence(info.description or '')}"


def surface() -> str:
    """Returns one line for every field: dotted name, type, default."""
    return "".join(f"{_signature(name, info)}\n" for name, info in all_fields())


def type_text(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Returns what a field takes, in words, its range included."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = type_text(arguments[0], arguments[1:])
    elif origin is Literal:
        text = " | ".join(shown(choice) if choice in ("", True, False) else str(choice)
                          for choice in arguments)  # fmt: skip
    elif origin in (Union, types.UnionType):
        text = " or ".join(map(type_text, arguments))
    elif origin is tuple and arguments[-1] is not ...:
        text = f"[{', '.join(map(type_text, arguments))}]"
    elif origin is tuple:
        text = f"list of {type_text(arguments[0])}"
    elif origin is dict:
        text = f"mapping to {type_text(arguments[1])}"
    elif annotation is type(None):
        text = "null"
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        text = "section"
    else:
        text = _NAMES[annotation]
    return text + _range(metadata)


def _range(metadata: tuple[Any, ...]) -> str:
    bounds = [
        f"{sign} {getattr(item, name)}"
        for kind, (sign, name) in _SIGNS.items()
        for item in metadata
        if isinstance(item, kind)
    ]
    text = f" {' and '.join(bounds)}" if bounds else ""
    return text + (", not empty" if any(isinstance(item, MinLen) for item in metadata) else "")


def _signature(name: str, info: FieldInfo) -> str:
    text = f"{name}: {type_text(info.annotation, tuple(info.metadata))}"
    if text.endswith(": section"):
        return f"{name}: {_sentence(info.description or '')}"
    if info.is_required():
        return f"{text}, required"
    return f"{text} = {default_text(info)}"


def _sentence(documentation: str) -> str:
    return " ".join(documentation.split())


if __name__ == "__main__":
    print(surface(), end="")
