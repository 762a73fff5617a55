"""What all sections of the spec share: frozen models and the types of their fields."""

import re
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, model_validator

Item = TypeVar("Item")

_WORDS = {"true": True, "false": False}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Section(BaseModel):
    """A group of fields; the text under a field is its documentation everywhere."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_below_the_name(cls, values: object) -> object:
        return {} if values is None else values


def _unquoted(value: object) -> object:
    """Returns the number or truth value that a quoted scalar spells, as NVIDIA TAO does."""
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if _NUMBER.fullmatch(value):
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    return value


def _null_is_empty(value: object) -> object:
    return "" if value is None else value


UNQUOTED = BeforeValidator(_unquoted)

Text = Annotated[str, BeforeValidator(_null_is_empty)]
Flag = Annotated[bool, UNQUOTED]
Integer = Annotated[int, UNQUOTED]
Count = Annotated[int, UNQUOTED, Ge(0)]
PositiveInt = Annotated[int, UNQUOTED, Gt(0)]
Number = Annotated[float, UNQUOTED]
NonNegative = Annotated[float, UNQUOTED, Ge(0)]
Positive = Annotated[float, UNQUOTED, Gt(0)]
Decay = Annotated[float, UNQUOTED, Ge(0), Lt(1)]
Score = Annotated[float, UNQUOTED, Ge(0), Le(1)]
ListOf = Annotated[tuple[Item, ...], Strict(False)]
Mapping = dict[str, Any]

TaskName = Literal[
    "check",
    "dataset_convert",
    "train",
    "evaluate",
    "prune",
    "retrain",
    "export",
    "inference",
    "tune",
]
