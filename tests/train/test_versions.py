import subprocess
import sys

import PIL.features
import pytest
import torch
import torchvision

from rayeffdet.data import decode
from rayeffdet.errors import DataError
from rayeffdet.train.versions import installed_versions, version_problems


def test_what_is_installed_here_fits_together():
    assert version_problems() == []


def test_torchvision_of_another_build_is_one_line_with_the_index_to_install_from(monkeypatch):
    def missing_kernel(*_):
        raise RuntimeError("operator torchvision::nms does not exist\na second line")

    monkeypatch.setattr(torchvision.ops, "nms", missing_kernel)
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    (problem,) = version_problems()
    assert "does not fit torch 2.99.0+cpu" in problem
    assert "operator torchvision::nms does not exist" in problem
    assert "--index-url https://download.pytorch.org/whl/cpu" in problem
    assert "\n" not in problem


def test_torchvision_that_cannot_be_imported_is_the_same_problem(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    (problem,) = version_problems()
    assert problem.startswith("torchvision ")


def test_torchvision_that_suppresses_wrongly_is_a_problem(monkeypatch):
    monkeypatch.setattr(torchvision.ops, "nms", lambda *_: torch.tensor([0, 1, 2]))
    (problem,) = version_problems()
    assert "keeps [0, 1, 2], not [0, 2]" in problem


def test_torch_that_cannot_convolve_is_a_problem(monkeypatch):
    def illegal(*_):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.nn.functional, "conv2d", illegal)
    (problem,) = version_problems()
    assert problem.startswith(f"torch {torch.__version__}: RuntimeError: could not create")


@pytest.mark.skipif(not PIL.features.check("jpg"), reason="Pillow without JPEG")
def test_pillow_that_cannot_decode_a_jpeg_is_a_problem(monkeypatch):
    def refuse(_, *, where):
        raise DataError(f"{where}: decoder jpeg not available")

    monkeypatch.setattr(decode, "decode_image", refuse)
    (problem,) = version_problems()
    assert "decoder jpeg not available; pip install --force-reinstall pillow" in problem


def test_the_versions_name_the_build_of_torch():
    assert installed_versions()["torch"] == torch.__version__


def test_check_can_be_imported_where_torchvision_cannot():
    code = "import sys; sys.modules['torchvision'] = None; import rayeffdet.tasks.check"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
