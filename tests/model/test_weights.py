import dataclasses
import re

import pytest
import torch
import torchvision
from checkpoints import as_effdet, perturbed, renamed
from torch import Tensor, nn

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet, normalise
from rayeffdet.model.scaling import architecture_of
from rayeffdet.model.weight_names import timm_names
from rayeffdet.model.weights import LoadReport, load_matching

NAME = "efficientdet-d0"
# Rounding of float64 after hundreds of layers is near 1e-13; a wrong epsilon or tensor is above
# 1e-4.
FLOAT64_TOLERANCE = 1e-10
# On these sizes and every one that follows from them, symmetric padding and SAME are one.
ODD_SIZE, EVEN_SIZE = (97, 129), (96, 128)
# Slow but for one of either epsilon.
TORCHVISION = [
    pytest.param(f"efficientnet_b{b}", variant, marks=() if b in (0, 5) else pytest.mark.slow)
    for b, variant in enumerate([*(f"efficientdet-d{d}" for d in range(7)), "efficientdet-d7x"])
]


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
    assert (report.source, report.fresh, report.notes) == ("effdet", (), ())
    assert report.matched == report.total == 460 + 2 * 108
    assert_equal_weights(model, source)


def without_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What effdet's networks with PyTorch's padding hold of these tensors."""
    kept = ("predict.conv_pw.bias", "conv_reduce.bias", "conv_expand.bias")
    return {
        key: tensor
        for key, tensor in tensors.items()
        if not key.endswith((".conv.bias", "_pw.bias")) or key.endswith(kept)
    }


def test_biases_that_effdet_does_without_become_0(source: EfficientDet) -> None:
    tensors = without_biases(as_effdet(source))
    assert len(tensors) == 748
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    report = load_matching(model, tensors)
    assert (report.fresh, report.matched) == ((), report.total)
    assert report.notes[0] == "36 biases that the file does without are 0"
    assert "symmetric padding" in report.notes[-1]
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert torch.equal(parameter, source.get_parameter(name)), name


def test_only_the_backbones_norms_make_up_for_their_epsilon(source: EfficientDet) -> None:
    model = make_model()
    report = load_matching(model, without_biases(as_effdet(source)))
    assert "epsilon 1e-05 there and 0.001 here" in report.notes[1]
    scaled = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, source.get_parameter(name))
    }
    assert len(scaled) == 48
    assert all(re.fullmatch(r"backbone\..*norm\.weight", name) for name in scaled)
    # The source's norms are fresh: weight and variance are 1.
    expected = [(1.001 / 1.00001) ** 0.5] * 32
    assert model.backbone.stem.norm.weight.tolist() == pytest.approx(expected)
    assert all(torch.equal(b, source.get_buffer(name)) for name, b in model.named_buffers())


def test_one_bias_that_is_missing_is_left_fresh_and_named(source: EfficientDet) -> None:
    tensors = as_effdet(source)
    del tensors["class_net.conv_rep.1.conv_pw.bias"]
    report = load_matching(make_model(), tensors)
    assert report.fresh == ("class_head.convs.1.pointwise.bias",)
    assert report.notes == ()


def test_head_norms_numbered_by_level_first_load_alike(source: EfficientDet) -> None:
    numbered = re.compile(r"bn_rep\.(\d)\.(\d)\.bn\.")
    tensors = {numbered.sub(r"bn_rep.\2.\1.", k): t for k, t in as_effdet(source).items()}
    assert tensors["box_net.bn_rep.4.2.weight"].shape == (64,)
    model = make_model()
    assert load_matching(model, tensors).fresh == ()
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


def make_torchvision(name: str, size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """A network of torchvision with weights as after training, and images for it."""
    network = torchvision.models.get_model(name, weights=None).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    return perturbed(network, images), images


def torchvision_difference(
    theirs: nn.Module, images: Tensor, variant: str = NAME
) -> tuple[float, LoadReport]:
    """The largest relative difference of P3, P4 and P5 once our backbone has their weights."""
    model = make_model(variant=variant).double().eval()
    report = load_matching(model, theirs.state_dict(), name="efficientnet.pth")
    with torch.no_grad():
        pairs = zip(model.backbone(images), features_of_torchvision(theirs, images), strict=True)
        difference = max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs)
    return difference, report


def features_of_torchvision(network: nn.Module, images: Tensor) -> list[Tensor]:
    p3 = network.features[:4](images)
    p4 = network.features[4:6](p3)
    return [p3, p4, network.features[6:8](p4)]


@pytest.mark.parametrize(("name", "variant"), TORCHVISION)
def test_torchvisions_backbones_compute_the_same_where_paddings_agree(
    name: str, variant: str
) -> None:
    difference, report = torchvision_difference(*make_torchvision(name, ODD_SIZE), variant)
    assert difference < FLOAT64_TOLERANCE
    assert report.source == "torchvision"
    assert not any(key.startswith("backbone.") for key in report.fresh)
    assert any("symmetric padding" in note for note in report.notes)


def test_at_even_sizes_torchvisions_symmetric_padding_cannot_be_had() -> None:
    difference, _ = torchvision_difference(*make_torchvision("efficientnet_b0", EVEN_SIZE))
    assert difference > 0.1


def test_channels_that_hardly_vary_are_equal_too() -> None:
    theirs, images = make_torchvision("efficientnet_b0", ODD_SIZE)
    theirs.get_buffer("features.0.1.running_var")[:3] = 0.0
    theirs.get_buffer("features.7.0.block.3.1.running_var")[:3] = 1e-4
    difference, _ = torchvision_difference(theirs, images)
    assert difference < FLOAT64_TOLERANCE


def test_weights_for_images_in_minus_1_to_1_get_them_so(source: EfficientDet) -> None:
    model = make_model()
    images_B3HW = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
    load_matching(model, as_timm(source), name="/x/tf_efficientnet_b0_ap-f262efe1.pth")
    expected = images_B3HW / 127.5 - 1
    assert torch.allclose(normalise(images_B3HW, model.architecture), expected, atol=1e-6)


def test_our_own_tensors_load_by_identity(source: EfficientDet) -> None:
    model = make_model()
    report = load_matching(model, source.state_dict())
    assert (report.source, report.fresh, report.notes) == ("rayeffdet", (), ())
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


def test_a_neck_of_another_variant_is_an_error_that_names_it() -> None:
    tensors = as_effdet(make_model(variant="efficientdet-lite3"))
    expected = "holds the backbone of efficientdet-lite3, the model is efficientdet-lite3x"
    with pytest.raises(CheckpointError, match=expected):
        load_matching(make_model(variant="efficientdet-lite3x"), tensors)


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
