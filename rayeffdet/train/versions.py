"""Whether the installed versions fit each other, found out by using them."""

import importlib
import io
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from PIL import Image

PACKAGES = ("torch", "torchvision", "ray", "pillow", "numpy")


def installed_versions() -> dict[str, str]:
    """Returns the versions that matter to a training step; torch's names its build (``+cpu``)."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = torch.__version__ if name == "torch" else version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def version_problems(device: str = "cpu") -> list[str]:
    """Returns a sentence for each part that does not work here, with what to install.

    One convolution, one suppression of torchvision and one JPEG are computed: compiled parts of
    another build import well and fail when they are used.

    Args:
        device: Where convolution and suppression are run.
    """
    checks = (
        (lambda: _convolve(device), lambda: f"torch {torch.__version__}", _CURE_TORCH),
        (lambda: _suppress(device), _pair, f"pip install --force-reinstall {_matching_wheel()}"),
        (_decode, lambda: f"pillow {version('pillow')}", _CURE_PILLOW),
    )
    return [
        f"{named()}: {fault}; {cure}"
        for run, named, cure in checks
        if (fault := _fault_of(run)) is not None
    ]


_CURE_TORCH = "install a build of torch for this machine, see https://pytorch.org/get-started"
_CURE_PILLOW = "pip install --force-reinstall pillow"


def _fault_of(run: Callable[[], None]) -> str | None:
    try:
        run()
    except Exception as error:  # whatever a broken build raises
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line}"
    return None


def _convolve(device: str) -> None:
    images_BCHW = torch.ones(1, 3, 8, 8, device=device)
    kernels = torch.ones(4, 3, 3, 3, device=device)
    found = torch.nn.functional.conv2d(images_BCHW, kernels)
    assert found.eq(27).all(), "a convolution of ones gives wrong sums"


def _suppress(device: str) -> None:
    # Imported here since the import itself fails where the versions do not fit.
    ops = importlib.import_module("torchvision.ops")
    boxes_xyxy = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], device=device)
    kept = ops.nms(boxes_xyxy, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    assert kept.tolist() == [0, 2], f"suppression of three boxes keeps {kept.tolist()}, not [0, 2]"


def _decode() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 100, 50)).save(file, "JPEG")
    # Imported here for torchvision's sake.
    decode = importlib.import_module("rayeffdet.data.decode")
    assert decode.decode_image(file.getvalue(), where="a drawn JPEG").size == (16, 8)


def _pair() -> str:
    torchvision = installed_versions()["torchvision"]
    return f"torchvision {torchvision} does not fit torch {torch.__version__}"


def _matching_wheel() -> str:
    """Returns pip's arguments for torch and torchvision from the index of the build at hand."""
    cuda = torch.version.cuda
    build = torch.__version__.partition("+")[2] or (f"cu{cuda.replace('.', '')}" if cuda else "cpu")
    return f"torch torchvision --index-url https://download.pytorch.org/whl/{build}"
