"""Prints how far this project is from the published network: `python tests/parity/table.py`.

Every number is the largest difference found, measured by the function that a test calls too. The
exit code is 1 when one is above its tolerance.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from rayeffdet.model.scaling import VARIANTS

# Where pytest finds what the tests share.
sys.path.insert(1, str(Path(__file__).parents[1]))

MODULES = (
    "test_forward",
    "test_pretrained",
    "test_counts",
    "test_targets_and_losses",
    "test_predictions",
    "test_lockstep",
)


def checks(attribute: str) -> tuple[list[str], list, list[float]]:
    """Names, measuring functions and tolerances of all modules."""
    modules = [importlib.import_module(name) for name in MODULES]
    found = [check for module in modules for check in getattr(module, attribute, ())]
    return tuple(map(list, zip(*found, strict=True)))


def line(title: str, values: list, *, within: bool = True) -> tuple[str, bool]:
    cells = [value if isinstance(value, str) else f"{value:.2g}" for value in values]
    text = f"{title:<64}" if len(cells) < 3 else f"{title:<22}"
    return text + "".join(f"{cell:>12}" for cell in cells) + "  ABOVE" * (not within), within


def lines() -> Iterator[tuple[str, bool]]:
    """Each line, and whether what it says is within the tolerances."""
    names, measures, tolerances = checks("VARIANT_CHECKS")
    yield line("largest difference", names)
    yield line("tolerance", tolerances)
    for variant in VARIANTS:
        values = [measure(variant) for measure in measures]
        within = all(value <= most for value, most in zip(values, tolerances, strict=True))
        yield line(variant, values, within=within)
    yield line("", ["difference", "tolerance"])
    for name, measure, most in zip(*checks("CHECKS"), strict=True):
        value = measure()
        yield line(name, [value, most], within=value <= most)


if __name__ == "__main__":
    verdicts = []
    for text, within in lines():
        print(text, flush=True)
        verdicts.append(within)
    sys.exit(not all(verdicts))
