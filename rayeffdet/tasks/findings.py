"""What a check has found, gathered so that all of it is said at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rayeffdet.errors import UserError


@dataclass
class Findings:
    """Errors stop a run, warnings do not; facts are numbers for the report."""

    errors: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps an error of the block instead of letting it through."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    @property
    def problems(self) -> list[str]:
        """One sentence for each error, each once."""
        return list(dict.fromkeys(text for error in self.errors for text in error.problems))

    def raise_errors(self) -> None:
        """Raises all errors as one, of the kind of the first.

        Raises:
            UserError: There is an error.
        """
        if self.errors:
            raise type(self.errors[0])(*self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON document of report.json."""
        return {"errors": self.problems, "warnings": self.warnings, **self.facts}
