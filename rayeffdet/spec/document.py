"""A spec file as plain values that remember the lines they stand on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from rayeffdet.errors import SpecError

Path = tuple[str | int, ...]

_MERGE = "tag:yaml.org,2002:merge"


class Place(NamedTuple):
    """Where a value was given: a file and line, or the command line."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Values by section and field, the place of each, and what is wrong with the text itself."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def has(self, path: Path) -> bool:
        """Tells whether the path was given."""
        return path in self.places

    def value(self, path: Path) -> Any:
        """Returns the value that was given at the path."""
        found: Any = self.values
        for key in path:
            found = found[key]
        return found

    def place(self, path: Path) -> Place:
        """Returns the place of the path, else of the closest enclosing one that was given."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(self.source))

    def assign(self, path: Path, value: Any, place: Place) -> None:
        """Sets a value, making the sections on the way; a section that is no mapping stays."""
        self.remove(path)
        inner = self.values
        for depth, key in enumerate(path[:-1], start=1):
            if inner.get(str(key)) is None:
                inner[str(key)] = {}
                self.places.setdefault(path[:depth], place)
            inner = inner[str(key)]
            if not isinstance(inner, dict):
                return
        inner[str(path[-1])] = value
        self._note(path, value, place)

    def remove(self, path: Path) -> None:
        """Forgets a value and everything inside it, if it was given."""
        if not self.has(path):
            return
        self.value(path[:-1]).pop(path[-1])
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]

    def _note(self, path: Path, value: Any, place: Place) -> None:
        self.places[path] = place
        for key, inner in value.items() if isinstance(value, dict) else ():
            self._note((*path, key), inner, place)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's plain values, with numbers as people write them: 1e-4 is one, and dates are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes what `_Loader` reads back as the same value."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_document(content: bytes, *, source: str) -> Document:
    """Returns the values of a YAML document with their lines.

    Raises:
        SpecError: The text is not YAML, or not a mapping of sections. Keys given twice and the
            like do not raise; they are in `problems`.
    """
    node, loader = _compose(content, source=source)
    document = Document(source)
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(
            f"{source}:1: this is not a spec: sections such as dataset, model and train are"
            " expected, each with its fields indented below it"
        )
    try:
        document.values = _Builder(loader, document).mapping(node, ())
    except RecursionError:
        raise SpecError(f"{source}: nested too deeply, or an anchor that contains itself") from None
    return document


def parse_value(text: str) -> Any:
    """Returns the value that a text spells in YAML; an empty text is an empty text.

    Raises:
        ValueError: The text is not YAML.
    """
    document = Document("")
    try:
        node, loader = _compose(text.encode(), source="")
        value = _Builder(loader, document).value(node, ()) if node else ""
    except (SpecError, RecursionError):
        raise ValueError(f"{text!r} is not a YAML value") from None
    if document.problems:
        raise ValueError(f"{text!r}: {document.problems[0][1]}")
    return value


def dump_value(value: Any) -> str:
    """Returns one line of YAML that reads back as the value."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=2**20, sort_keys=False,
        allow_unicode=True,
    )  # fmt: skip
    # Not every white space: YAML writes a non-breaking space as it is.
    return str(text).removesuffix("...\n").strip(" \n")


def _compose(content: bytes, *, source: str) -> tuple[yaml.Node | None, _Loader]:
    try:
        loader = _Loader(content)
        return loader.get_single_node(), loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        cure = "; indent with spaces, not tabs" if "\\t" in str(error.problem) else ""
        raise SpecError(f"{source}{line}: not YAML: {error.problem}{cure}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{source}: not a text file: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise SpecError(f"{source}: nested too deeply") from None


class _Builder:
    """Turns YAML nodes into plain values, noting the place of each in a document."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader = loader
        self.document = document

    def value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._child(item, item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._complain(node, path, f"{node.value!r} cannot be read as {tag}")
            return None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for merged in self._merged(node):
            values |= self.mapping(merged, path)
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name in lines:
                self._complain(key, (*path, name), f"given twice; first on line {lines[name]}")
            lines[name] = key.start_mark.line + 1
            values[name] = self._child(key, value, (*path, name))
        return values

    def _merged(self, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        for key, value in node.value:
            if key.tag == _MERGE:
                found = value.value if isinstance(value, yaml.SequenceNode) else [value]
                yield from (item for item in reversed(found) if isinstance(item, yaml.MappingNode))

    def _child(self, key: yaml.Node, value: yaml.Node, path: Path) -> Any:
        self.document.places[path] = Place(self.document.source, key.start_mark.line + 1)
        return self.value(value, path)

    def _complain(self, node: yaml.Node, path: Path, text: str) -> None:
        place = Place(self.document.source, node.start_mark.line + 1)
        self.document.problems.append((place, f"{dotted(path)}: {text}" if path else text))


def dotted(path: Path) -> str:
    """Returns a path as it is written on the command line, list positions in brackets."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
