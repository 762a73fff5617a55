"""The fields of the spec by dotted name."""

import difflib
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rayeffdet.spec.document import Path, dump_value
from rayeffdet.spec.root import Spec
from rayeffdet.spec.section import Section

_MOST_LISTED = 12


def section_in(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Returns the section that a field holds, if any, and whether it holds several, by name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return section_in(arguments[1])[0], True
    if origin in (Union, types.UnionType, Annotated):
        found = [inner for inner in map(section_in, arguments) if inner[0]]
        return found[0] if found else (None, False)
    return None, False


def split_name(name: str) -> Path:
    """Returns the path of a dotted name; what follows a free mapping's name is one key of it."""
    path: list[str] = []
    section: type[Section] | None = Spec
    parts = name.split(".")
    while parts:
        path.append(parts.pop(0))
        info = section.model_fields.get(path[-1]) if section else None
        if info is None:
            return (*path, *parts)
        section, keyed = section_in(info.annotation)
        if keyed and parts:
            path.append(parts.pop(0) if section else ".".join(parts))
            parts = parts if section else []
    return tuple(path)


def section_at(path: Path) -> type[Section] | None:
    """Returns the section at a path, or None when there is no section."""
    section: type[Section] | None = Spec
    keys = list(path)
    while keys and section:
        info = section.model_fields.get(str(keys.pop(0)))
        if info is None:
            return None
        section, keyed = section_in(info.annotation)
        if keyed and not keys:
            return None
        if keyed:
            keys.pop(0)
    return section


def field_at(path: Path) -> FieldInfo | None:
    """Returns the field at a path, or None when there is none of that name."""
    section = section_at(path[:-1]) if path else None
    return section.model_fields.get(str(path[-1])) if section else None


def is_known(path: Path) -> bool:
    """Tells whether something may be given at the path: a field, or a key of a mapping."""
    parent = field_at(path[:-1]) if len(path) > 1 else None
    return field_at(path) is not None or (
        parent is not None and get_origin(parent.annotation) is dict
    )


def all_fields(section: type[Section] = Spec, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields the dotted name and the field of everything that may be given, in the spec's order."""
    for name, info in section.model_fields.items():
        inner, keyed = section_in(info.annotation)
        if inner is None or keyed or info.default is None:
            yield prefix + name, info
        if inner:
            yield from all_fields(inner, f"{prefix}{name}.<name>." if keyed else f"{prefix}{name}.")


def choices(annotation: Any) -> tuple[Any, ...]:
    """Returns the values that a field, or each item of a list, may take; none if it is free."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(choices, get_args(annotation))), ())


def default_text(info: FieldInfo) -> str:
    """Returns a field's default as YAML."""
    plain = info.get_default(call_default_factory=True)
    if isinstance(plain, tuple):
        plain = [list(item) if isinstance(item, tuple) else item for item in plain]
    return "{}" if isinstance(plain, Section) else dump_value(plain)


def unknown_field(path: Path) -> str:
    """Says that a field does not exist and which one was probably meant."""
    unknown = (end for end in range(1, len(path)) if not _leads_on(path[:end]))
    path = path[: next(unknown, len(path))]
    name, siblings = str(path[-1]), section_at(path[:-1])
    names = list(siblings.model_fields) if siblings else []
    if suggestion := did_you_mean(name, names):
        return f"unknown field{suggestion}"
    elsewhere = [known for known, _ in all_fields() if known.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"unknown field; did you mean '{elsewhere[0]}'?"
    listing = f"; the fields here are {', '.join(names)}" if 0 < len(names) <= _MOST_LISTED else ""
    return f"unknown field{listing}"


def _leads_on(path: Path) -> bool:
    return section_at(path) is not None or is_known(path)


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Returns the ending of a message that names the closest of the names, or nothing."""
    closest = difflib.get_close_matches(given, list(names), n=1)
    return f"; did you mean '{closest[0]}'?" if closest else ""
