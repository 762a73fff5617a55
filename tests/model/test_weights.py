import argparse
import dataclasses
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from checkpoints import as_effdet, renamed
from torch import Tensor

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.model.weight_names import timm_names
from rayeffdet.model.weights import load_matching, parse_state_dict, read_state_dict

NAME = "efficientdet-d0"


def make_model(*, num_classes: int = 3, variant: str = NAME) -> EfficientDet:
    return EfficientDet(architecture_of(variant, num_classes=num_classes))


def as_timm(model: EfficientDet) -> dict[str, Tensor]:
    return renamed(model, timm_names(model.architecture))


def assert_equal_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[key]), key


@pytest.fixture(scope="module")
def source() -> EfficientDet:
    torch.manual_seed(1)
    return make_model()


def test_effdet_names_are_the_784_of_its_d0() -> None:
    with torch.device("meta"):
        keys = as_effdet(make_model(num_classes=90))
    assert len(keys) == 784
    assert keys["fpn.cell.0.fnode.4.combine.resample.1.conv.conv.weight"].shape == (64, 112, 1, 1)
    assert keys["fpn.cell.2.fnode.6.combine.edge_weights"].shape == (3,)
    assert keys["backbone.blocks.0.0.conv_pw.weight"].shape == (16, 32, 1, 1)
    assert keys["class_net.bn_rep.2.4.bn.running_var"].shape == (64,)
    assert keys["class_net.predict.conv_pw.bias"].shape == (810,)


def test_an_effdet_detector_loads_whole(source: EfficientDet) -> None:
    model = make_model()
    report = load_matching(model, as_effdet(source))
    assert (report.source, report.fresh) == ("effdet", ())
    assert report.matched == report.total == 460 + 2 * 108
    assert_equal_weights(model, source)


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "_orig_mod."])
def test_prefixes_of_wrapping_modules_come_off(source: EfficientDet, prefix: str) -> None:
    wrapped = {prefix + key: tensor for key, tensor in as_effdet(source).items()}
    report = load_matching(make_model(), {**wrapped, "anchors.boxes": torch.zeros(9, 4)})
    assert report.fresh == ()


def test_a_class_layer_of_other_classes_is_left_fresh_and_named(source: EfficientDet) -> None:
    model = make_model(num_classes=5)
    before = model.class_head.predict.pointwise.weight.clone()
    report = load_matching(model, as_effdet(source))
    layer = "class_head.predict.pointwise"
    assert set(report.fresh) == {f"{layer}.weight", f"{layer}.bias"}
    assert torch.equal(model.class_head.predict.pointwise.weight, before)
    assert f"674 of 676 tensors loaded from effdet weights; left fresh: {layer}." in (
        report.describe()
    )


def test_a_timm_backbone_leaves_neck_and_heads_fresh(source: EfficientDet) -> None:
    model = make_model()
    report = load_matching(model, as_timm(source))
    assert report.source == "timm"
    assert_equal_weights(model.backbone, source.backbone)
    assert {key.split(".")[0] for key in report.fresh} == {"neck", "class_head", "box_head"}
    assert report.describe().endswith("left fresh: neck (228), class_head (72), box_head (72)")


def test_torchvisions_backbone_computes_the_same() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.efficientnet_b0().double().eval()
    model = make_model().double().eval()
    assert load_matching(model, theirs.state_dict()).source == "torchvision"
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    # At odd sizes down to stride 32 both projects pad alike.
    images = torch.randn(1, 3, 97, 97, dtype=torch.float64)
    with torch.no_grad():
        p5, expected = model.backbone(images)[-1], theirs.features[:8](images)
    assert (p5 - expected).norm() < 1e-10 * expected.norm()


def test_our_own_tensors_load_by_identity(source: EfficientDet) -> None:
    model = make_model()
    assert load_matching(model, source.state_dict()).source == "rayeffdet"
    assert_equal_weights(model, source)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"resnet\.pth: none of 1 tensors belongs"):
        load_matching(make_model(), {"layer1.0.weight": torch.zeros(1)}, name="resnet.pth")


@pytest.mark.parametrize(
    ("model_variant", "file_variant"),
    [(NAME, "efficientdet-d1"), ("efficientdet-d1", NAME), (NAME, "efficientdet-d2")],
)
def test_another_variants_backbone_is_an_error_that_names_it(
    model_variant: str, file_variant: str
) -> None:
    tensors = as_timm(make_model(variant=file_variant))
    model = make_model(variant=model_variant)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    expected = f"holds the backbone of {file_variant}, the model is {model_variant}"
    with pytest.raises(CheckpointError, match=expected):
        load_matching(model, tensors)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_pruned_model_says_so(source: EfficientDet) -> None:
    architecture = source.architecture
    pruned = dataclasses.replace(
        architecture,
        blocks=(
            architecture.blocks[0],
            dataclasses.replace(architecture.blocks[1], expand_channels=48),
            *architecture.blocks[2:],
        ),
    )
    expected = "is 96x16x1x1, the model needs 48x16x1x1.*the model is a pruned efficientdet-d0"
    with pytest.raises(CheckpointError, match=expected):
        load_matching(EfficientDet(pruned), as_effdet(source))


def test_a_neck_of_other_width_is_an_error(source: EfficientDet) -> None:
    narrow = EfficientDet(dataclasses.replace(source.architecture, fpn_channels=32))
    with pytest.raises(CheckpointError, match=r"fpn\.resample\.3\.conv\.conv\.weight is 64x320"):
        load_matching(narrow, as_effdet(source))


def as_pth(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def test_safetensors_are_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))


@pytest.mark.parametrize("wrapper", ["state_dict", "state_dict_ema", "model"])
def test_pth_wrappers_come_off(wrapper: str) -> None:
    content = as_pth({"epoch": 3, "args": argparse.Namespace(lr=1), wrapper: {"a": torch.ones(2)}})
    assert list(parse_state_dict(content, name="x.pth")) == ["a"]


def test_averaged_weights_win() -> None:
    content = as_pth({"state_dict": {"a": torch.ones(1)}, "state_dict_ema": {"a": torch.zeros(1)}})
    assert parse_state_dict(content, name="x.pth")["a"].item() == 0


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_a_pth_with_code_is_refused_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth: neither"):
        parse_state_dict(as_pth({"a": Malicious()}), name="x.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "neither a safetensors file nor a PyTorch file"),
        (b"hello world, not weights", "neither a safetensors file nor a PyTorch file"),
        (safetensors.torch.save({"a": torch.ones(9)})[:-5], "damaged safetensors file"),
        (as_pth({"a": torch.ones(9)})[:-50], "neither a safetensors file nor a PyTorch file"),
        (as_pth([1, 2]), "no named tensors"),
    ],
)
def test_unusable_files_get_one_line(content: bytes, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected) as caught:
        parse_state_dict(content, name="w.bin")
    assert str(caught.value).startswith("w.bin: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth: cannot be read: No such file"):
        read_state_dict(tmp_path / "gone.pth")
