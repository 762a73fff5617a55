"""Every field of the spec, made wrong in every way that its type allows."""

import re
from typing import Any, Literal, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator

from rayeffdet.errors import SpecError
from rayeffdet.spec.document import dump_value, read_document
from rayeffdet.spec.fields import all_fields, default_text, section_in
from rayeffdet.spec.load import load_spec

FIELDS = {
    name.replace("<name>", "some"): info
    for name, info in all_fields()
    if section_in(info.annotation)[0] is None
}
REQUIRED = [name for name, info in FIELDS.items() if info.is_required()]


def spec_with_every_field() -> str:
    """Returns YAML, a field a line, in which every field has its default."""
    tree: dict[str, Any] = {}
    for name, info in FIELDS.items():
        *sections, leaf = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = "a" if info.is_required() else info.get_default(call_default_factory=True)
    return "\n".join(lines(tree, "")) + "\n"


def lines(tree: dict[str, Any], indent: str) -> list[str]:
    found = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found += [f"{indent}{name}:", *lines(value, f"{indent}  ")]
        else:
            found.append(f"{indent}{name}: {dump_value(value)}")
    return found


TEXT = spec_with_every_field()
PLACES = {
    ".".join(path): place.line
    for path, place in read_document(TEXT.encode(), source="").places.items()
    if all(isinstance(part, str) for part in path)
}


def wrong_type(info: Any) -> str | None:
    return "5" if get_origin(info.annotation) in (dict, tuple) else "{a: 1}"


def out_of_range(info: Any) -> str | None:
    for item in info.metadata:
        for kind, bound, step in ((Gt, "gt", 0), (Ge, "ge", -1), (Lt, "lt", 0), (Le, "le", 1)):
            if isinstance(item, kind):
                return str(getattr(item, bound) + step)
    return "nowhere-near" if get_origin(info.annotation) is Literal else None


def null(info: Any) -> str | None:
    accepts_null = type(None) in getattr(info.annotation, "__args__", ())
    empty_is_meant = info.annotation is str and any(
        isinstance(item, BeforeValidator) for item in info.metadata
    )
    return None if accepts_null or empty_is_meant else "null"


EXPECTED = {
    wrong_type: r"is not |must be ",
    out_of_range: r"out of range: must be |is not one of |not allowed: only ",
    null: r"null is not allowed",
}


def problems(tmp_path, text: str) -> list[str]:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def with_lines(changes: dict[int, str]) -> str:
    """Returns the whole spec in which the value on some lines is another one."""
    text = TEXT.splitlines()
    for line, value in changes.items():
        text[line - 1] = text[line - 1].split(": ")[0] + f": {value}"
    return "\n".join(text)


def test_the_spec_with_every_field_is_accepted(tmp_path):
    (tmp_path / "spec.yaml").write_text(TEXT)
    assert load_spec(str(tmp_path / "spec.yaml"))
    assert len(FIELDS) > 130


@pytest.mark.parametrize("mutation", [wrong_type, out_of_range, null])
def test_all_fields_wrong_at_once_give_one_line_each_with_the_right_place(tmp_path, mutation):
    values = {name: mutation(info) for name, info in FIELDS.items()}
    wrong = {name: value for name, value in values.items() if value is not None}
    found = problems(tmp_path, with_lines({PLACES[name]: wrong[name] for name in wrong}))
    places = [problem.split(": ")[:2] for problem in found]
    assert places == [[f"spec.yaml:{PLACES[name]}", name] for name in sorted(wrong, key=PLACES.get)]
    assert all(re.search(EXPECTED[mutation], problem) for problem in found)


def test_all_fields_misspelt_at_once_are_named_with_the_field_that_was_meant(tmp_path):
    text = TEXT.splitlines()
    for name in FIELDS:
        line = PLACES[name] - 1
        text[line] = text[line].replace(":", "x:", 1)
    expected = [
        f"spec.yaml:{PLACES[name]}: {name}x: unknown field; did you mean '{name.split('.')[-1]}'?"
        for name in sorted(FIELDS, key=PLACES.get)
    ]
    found = problems(tmp_path, "\n".join(text))
    assert [problem for problem in found if "is required" not in problem] == expected
    assert len(found) == len(expected) + len(REQUIRED)


def test_null_for_a_field_that_needs_a_value_names_the_default(tmp_path):
    wrong = {PLACES[name]: info for name, info in FIELDS.items() if null(info)}
    found = problems(tmp_path, with_lines(dict.fromkeys(wrong, "null")))
    for problem, line in zip(found, sorted(wrong), strict=True):
        info = wrong[line]
        ending = "here" if info.is_required() else f"its default {default_text(info)}"
        assert problem.endswith(ending)
