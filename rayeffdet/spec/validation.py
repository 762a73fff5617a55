"""Values to a spec, with everything that is wrong with them."""

import copy
from typing import Any

from rayeffdet.spec.document import Path
from rayeffdet.spec.relations import Relation, broken_relations
from rayeffdet.spec.root import Spec
from rayeffdet.spec.wording import field_problems


def validate(values: dict[str, Any]) -> tuple[Spec, list[Relation]]:
    """Returns a spec and all problems, each as the fields involved and a sentence.

    Fields that cannot be accepted have their default in the returned spec, so that what must hold
    between the other fields is checked in the same pass.
    """
    rest = copy.deepcopy(values)
    problems: list[Relation] = []
    refused: list[Path] = []
    while found := field_problems(Spec, rest):
        for path, text in found:
            if not any(_overlap(path, other) for other in refused):
                problems.append(((path,), text))
        for path, _ in found:
            refused.append(_discard(rest, path))
    spec = Spec.model_validate(rest)
    for paths, text in broken_relations(spec):
        if not any(_overlap(path, other) for path in paths for other in refused):
            problems.append((paths, text))
    return spec, problems


def _discard(values: dict[str, Any], path: Path) -> Path:
    """Deletes the deepest entry that the path leads to; returns the path of that entry."""
    for depth, key in enumerate(path, start=1):
        inner = values.get(str(key))
        if depth == len(path) or not isinstance(inner, dict) or path[depth] not in inner:
            values.pop(str(key), None)
            return path[:depth]
        values = inner
    raise AssertionError("a problem is never at the root")


def _overlap(one: Path, other: Path) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))
