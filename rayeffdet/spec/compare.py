"""What changed between the spec of a results folder and the spec of this run."""

from collections.abc import Iterator
from typing import Any

from rayeffdet.spec.root import Spec
from rayeffdet.spec.section import Section
from rayeffdet.spec.wording import shown

_HARMFUL = ("model.", "dataset.num_classes", "train.optimizer.name", "train.pruned_model_path")
_SECRET = "encryption_key"


def compare_specs(old: dict[str, Any], new: Spec) -> tuple[list[str], list[str]]:
    """Returns the harmless and the harmful differences, a sentence each.

    Harmful is what the weights or the optimizer state of the folder do not fit: network, classes,
    input size, optimizer.

    Args:
        old: What `Spec.to_dict` or `Spec.public_dict` gave for the earlier run; a field that did
            not exist then counts as its default.
        new: The spec of this run.
    """
    usual = Spec().to_dict()
    before = dict(_flat(Spec, old, usual))
    harmless, harmful = [], []
    for name, value in _flat(Spec, new.to_dict(), usual):
        if value == before[name] or name == _SECRET:
            continue
        sentence = f"{name} was {shown(before[name])} and is {shown(value)}"
        if name.startswith(_HARMFUL):
            harmful.append(f"{sentence}: take the old value back, or another results_dir")
        else:
            harmless.append(sentence)
    return harmless, harmful


def _flat(
    section: type[Section], values: dict[str, Any], usual: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, info in section.model_fields.items():
        value = values.get(name, usual[name])
        if isinstance(info.default, Section):
            yield from _flat(type(info.default), value, usual[name], f"{prefix}{name}.")
        else:
            yield prefix + name, value
