import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayeffdet.errors import SpecError
from rayeffdet.spec.document import Document, Place, dump_value, parse_value, read_document

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), inner)
    ),
    max_leaves=8,
)


def read(text: str) -> Document:
    return read_document(text.encode(), source="spec.yaml")


@settings(deadline=None)
@given(PLAIN)
@example("\xa0")
def test_a_dumped_value_reads_back_as_itself_on_one_line(value):
    text = dump_value(value)
    assert "\n" not in text
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-.5", -0.5),
        ("120_000", 120000),
        ("0x10", 16),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("2025-07-18", "2025-07-18"),
        ("12:30", "12:30"),
        ("'1e-4'", "1e-4"),
        ("", ""),
        ("[1e-4, 0.1]", [1e-4, 0.1]),
    ],
)
def test_scalars_are_read_as_people_mean_them(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_every_value_knows_its_line():
    document = read("a:\n  b: 1\n\n  c:\n    - x\n    - y\n")
    assert {path: place.line for path, place in document.places.items()} == {
        ("a",): 1, ("a", "b"): 2, ("a", "c"): 4, ("a", "c", 0): 5, ("a", "c", 1): 6
    }  # fmt: skip
    assert str(document.place(("a", "d", "e"))) == "spec.yaml:1"
    assert str(document.place(("z",))) == "spec.yaml"


def test_anchors_and_merges_are_followed_and_own_values_win():
    document = read("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\n")
    assert document.values["b"] == {"x": 1, "y": 3}
    assert document.values["c"] == {"x": 1, "y": 2}
    assert document.places[("b", "x")].line == 1
    assert document.places[("b", "y")].line == 4


def test_the_first_of_several_merged_mappings_wins():
    document = read("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\n")
    assert document.values["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [1\nb: 2\n", "spec.yaml:2: not YAML: "),
        (b"a:\n\tb: 1\n", "spec.yaml:2: not YAML: found character '\\t' that cannot start any"),
        (b"a: 1\n---\nb: 2\n", "spec.yaml:2: not YAML: but found another document"),
        (b"- a\n", "spec.yaml:1: this is not a spec"),
        (b"", "spec.yaml:1: this is not a spec"),
        (b"a: *b\n", "spec.yaml:1: not YAML: found undefined alias 'b'"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "spec.yaml: not a text file"),
        (b"a: &a\n  b: *a\n", "spec.yaml: nested too deeply, or an anchor"),
        (b"a: " + b"[" * 2000, "spec.yaml: nested too deeply"),
    ],
)
def test_a_file_that_is_no_mapping_of_yaml_is_one_line(content, problem):
    with pytest.raises(SpecError) as caught:
        read_document(content, source="spec.yaml")
    assert str(caught.value).startswith(problem)
    assert len(caught.value.problems) == 1


def test_a_repeated_key_and_a_foreign_tag_are_problems_with_a_line():
    document = read("a:\n  b: 1\n  b: 2\nc: !!python/name:os.system x\nd: !!int x\n")
    assert [f"{place}: {text}" for place, text in document.problems] == [
        "spec.yaml:3: a.b: given twice; first on line 2",
        "spec.yaml:4: c: 'x' cannot be read as !!python/name:os.system",
        "spec.yaml:5: d: 'x' cannot be read as !!int",
    ]


def test_assigning_replaces_what_was_there_and_its_places():
    document = read("a:\n  b: {c: 1, d: 2}\n")
    document.assign(("a", "b"), {"c": 3}, Place("command line"))
    assert document.values == {"a": {"b": {"c": 3}}}
    assert document.place(("a", "b", "c")) == Place("command line")
    assert not document.has(("a", "b", "d"))
