"""The search space of `tune`: every name and every value in it is checked like the spec itself."""

from collections.abc import Iterator
from typing import Any

from rayeffdet.spec.document import Path
from rayeffdet.spec.fields import (
    did_you_mean,
    field_at,
    section_at,
    split_name,
    unknown_field,
)
from rayeffdet.spec.wording import field_problems, shown

_LISTS = ("choice", "grid")
_RANGES = ("uniform", "loguniform", "randint", "lograndint")
_STEPPED = ("quniform", "qloguniform", "qrandint", "qlograndint")
KINDS = (*_LISTS, *_RANGES, *_STEPPED)
_VARIED = ("dataset", "model", "train", "evaluate", "prune")


def search_space_problems(space: dict[str, dict[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Yields the path below `tune.search_space` and a sentence for everything that is wrong."""
    for name, distribution in space.items():
        path = split_name(name)
        if text := _name_problem(path) or _distribution_problem(distribution):
            yield (name,), text
            continue
        ((kind, arguments),) = distribution.items()
        for text in _value_problems(path, _tried(kind, arguments)):
            yield (name, kind), text


def _name_problem(path: Path) -> str:
    if field_at(path) is None:
        return unknown_field(path)
    if section_at(path):
        return "this is a section; name a field in it"
    if path[0] not in _VARIED:
        return f"this is the same for all trials; they vary fields of {', '.join(_VARIED)}"
    return ""


def _distribution_problem(distribution: dict[str, Any]) -> str:
    if len(distribution) != 1:
        return f"give exactly one of {', '.join(KINDS)}"
    ((kind, arguments),) = distribution.items()
    if kind not in KINDS:
        return f"{kind!r} is not one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
    if kind in _LISTS:
        good = isinstance(arguments, list) and arguments
        return "" if good else f"{kind} takes a list of values, not {shown(arguments)}"
    return _range_problem(kind, arguments)


def _range_problem(kind: str, arguments: Any) -> str:
    form = "[low, high, step]" if kind in _STEPPED else "[low, high]"
    types = (int,) if kind.endswith("randint") else (int, float)
    right = (
        isinstance(arguments, list)
        and len(arguments) == form.count(",") + 1
        and all(type(end) in types for end in arguments)
    )
    if not right:
        numbers = "integers" if types == (int,) else "numbers"
        return f"{kind} takes {form} as {numbers}, not {shown(arguments)}"
    low, high, *step = arguments
    if not low < high:
        return f"{kind}: low {low} is not below high {high}"
    if "log" in kind and low <= 0:
        return f"{kind}: low {low} is not above 0"
    return f"{kind}: step {step[0]} is not above 0" if step and step[0] <= 0 else ""


def _tried(kind: str, arguments: list[Any]) -> list[Any]:
    """Returns values of which all must suit the field if every sample is to suit it."""
    if kind in _LISTS:
        return arguments
    low, high = arguments[:2]
    if kind.endswith("randint"):
        return [low, high if kind in _STEPPED else high - 1]
    return [float(low), float(high)]


def _value_problems(path: Path, values: list[Any]) -> Iterator[str]:
    section = section_at(path[:-1])
    assert section is not None, "the name was checked"
    for value in values:
        found = field_problems(section, {str(path[-1]): value}, prefix=path[:-1])
        yield from (text for _, text in found)
