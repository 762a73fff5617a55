"""From a spec file and command-line overrides to a checked spec that knows its origins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rayeffdet import storage
from rayeffdet.errors import SpecError
from rayeffdet.spec.aliases import RENAMED, modernise, present_form
from rayeffdet.spec.document import (
    Document,
    Path,
    Place,
    dotted,
    dump_value,
    parse_value,
    read_document,
)
from rayeffdet.spec.fields import (
    did_you_mean,
    field_at,
    is_known,
    section_at,
    split_name,
    unknown_field,
)
from rayeffdet.spec.relations import Relation, remarks
from rayeffdet.spec.root import Spec
from rayeffdet.spec.section import Section, TaskName
from rayeffdet.spec.validation import validate

_COMMAND_LINE = Place("command line")

Problem = tuple[Place, str]


@dataclass(frozen=True)
class LoadedSpec:
    """A spec, where its values come from, and what its author should know.

    Attributes:
        spec: The checked spec.
        origins: Dotted name of every field that was given, to `spec.yaml:14` or `command line`.
        notices: One sentence for each older spelling and each value without effect.
        path: The file that was read.
    """

    spec: Spec
    origins: dict[str, str]
    notices: list[str]
    path: str


def load_spec(path: str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Returns the spec of a YAML file, changed by `section.field=value` overrides.

    Args:
        path: Local path or URI.
        overrides: Dotted field names with values in YAML, the last one of a field wins.

    Raises:
        SpecError: One line for every problem of the file and of the overrides.
    """
    document = read_document(_content(path), source=path)
    notices = modernise(document)
    problems = list(document.problems)
    for override in overrides:
        try:
            notices += _apply(document, override)
        except ValueError as error:
            problems.append((_COMMAND_LINE, str(error)))
    spec, broken = validate(document.values)
    problems += [_placed(relation, document) for relation in broken]
    if problems:
        ordered = sorted(problems, key=lambda problem: (problem[0] == _COMMAND_LINE, problem[0]))
        raise SpecError(*dict.fromkeys(f"{place}: {text}" for place, text in ordered))
    spec = _with_all_gpus(spec, document, notices)
    for name, text in remarks(spec):
        notices.append(f"{document.place(split_name(name))}: {name}: {text}")
    origins = {
        dotted(path): str(place)
        for path, place in document.places.items()
        if field_at(path) and not section_at(path)
    }
    return LoadedSpec(spec=spec, origins=origins, notices=notices, path=path)


def with_values(spec: Spec, values: Mapping[str, Any], *, where: str) -> Spec:
    """Returns the spec with other values for some fields, checked as a whole.

    Args:
        spec: The spec to start from; it stays as it is.
        values: Dotted field name to value, for instance what a search has sampled.
        where: What the values come from, for messages.

    Raises:
        SpecError: One line for every problem.
    """
    document = Document(where, values=spec.to_dict())
    for name, value in values.items():
        document.assign(split_name(name), value, Place(where))
    changed, broken = validate(document.values)
    if broken:
        raise SpecError(*(f"{where}: {_placed(relation, document)[1]}" for relation in broken))
    return changed


def validate_for(loaded: LoadedSpec, tasks: Sequence[str]) -> None:
    """Checks that the spec says all that the tasks need; other sections may be incomplete.

    Raises:
        SpecError: One line for every unknown task and every field that must be given.
    """
    names = get_args(TaskName)
    problems = [
        f"{task!r} is not a task: choose from {', '.join(names)}{did_you_mean(task, names)}"
        for task in tasks
        if task not in names
    ]
    for name, text in _missing(loaded.spec, tasks):
        problems.append(f"{loaded.origins.get(name, loaded.path)}: {name}: {text}")
    if problems:
        raise SpecError(*problems)


def resolved_yaml(loaded: LoadedSpec) -> str:
    """Returns the whole spec as YAML, with the origin of every value that is not the default.

    It loads as the same spec, but for the encryption key, which is not written down.
    """
    return "\n".join(_lines(loaded.spec, Spec(), loaded.origins, ())) + "\n"


def _content(path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None


def _apply(document: Document, override: str) -> list[str]:
    """Applies one override; returns notices, or raises ValueError with a sentence."""
    given, equals, text = override.partition("=")
    if not equals or not given.strip():
        raise ValueError(f"{override!r} is not of the form section.field=value")
    name = RENAMED.get(given.strip(), given.strip())
    path = split_name(name)
    if not is_known(path):
        raise ValueError(f"{name}: {unknown_field(path)}")
    try:
        value, change = present_form(name, parse_value(text.strip()))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    document.assign(path, value, _COMMAND_LINE)
    notices = [f"command line: {given} is read as {name}"] if name != given.strip() else []
    return notices + ([f"command line: {name}: {change}"] if change else [])


def _placed(relation: Relation, document: Document) -> Problem:
    """Blames the first of the fields that was given at all."""
    paths, text = relation
    path = next((path for path in paths if document.has(path)), paths[0])
    name = dotted(path)
    return document.place(path), f"{name}: {text.removeprefix(f'{name} is ')}"


def _with_all_gpus(spec: Spec, document: Document, notices: list[str]) -> Spec:
    """Raises num_gpus to the number of gpu_ids, as TAO does, unless the command line gave it."""
    place = document.place(("gpu_ids",))
    if len(spec.gpu_ids) <= spec.num_gpus or document.place(("num_gpus",)) == _COMMAND_LINE:
        return spec
    count = len(spec.gpu_ids)
    notices.append(f"{place}: num_gpus: raised from {spec.num_gpus} to {count}, as gpu_ids has it")
    document.places[("num_gpus",)] = place
    return spec.model_copy(update={"num_gpus": count})


def _missing(spec: Spec, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the dotted name and a sentence for each field without which a task cannot run."""
    convert = spec.dataset_convert
    wanted = convert.image_dir or convert.annotations_file
    if "dataset_convert" in tasks and not (convert.splits or convert.synthetic or wanted):
        yield "dataset_convert", "needs image_dir and annotations_file, splits, or synthetic"
    if "dataset_convert" in tasks and wanted:
        for name in ("image_dir", "annotations_file"):
            if not getattr(convert, name):
                yield f"dataset_convert.{name}", "dataset_convert needs it"
    if "inference" in tasks and not spec.inference.image_dir:
        yield "inference.image_dir", "inference needs the folder of the images"
    if "tune" in tasks and not spec.tune.search_space:
        yield "tune.search_space", "tune needs at least one field to vary"


def _lines(section: Section, default: Any, origins: Mapping[str, str], path: Path) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name in type(section).model_fields:
        value, usual = getattr(section, name), getattr(default, name, None)
        indent, here = "  " * len(path), dotted((*path, name))
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _lines(value, usual or type(value)(), origins, (*path, name))
            continue
        secret = here == "encryption_key"
        line = f"{indent}{name}: {dump_value('' if secret else plain[name])}"
        origin = origins.get(here, "derived")
        note = f"{origin}, not written down" if secret else origin
        yield line if value == usual else f"{line}  # {note}"
