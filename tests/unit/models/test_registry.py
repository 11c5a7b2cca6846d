"""Networks: counts, torchvision's names and shapes, blocks against direct formulas, initial weights, errors.

The fixtures `torchvision_NAME.json` hold {name: shape} of torchvision 0.29.1's
`torchvision.models.NAME(num_classes=1000).state_dict()`.
Where no value matters, the networks are on the `meta` device, which skips the initialisation.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.nondeterministic import Refused
from torch import Tensor, nn

from models.registry import MODELS, Architecture, ModelConfig, ModelSpec, build_model, model_names
from models.resnet import BasicBlock, Bottleneck, ResNet, ResNeXtBottleneck
from models.resnet_cifar import CifarBlock, CifarResNet, shortcut_option_a

CIFAR = ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
IMAGENET = ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"]
IN_TORCHVISION = IMAGENET[1:]
FIXTURES = Path(__file__).parents[2] / "fixtures"


def meta_model(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes)


def seeded_model(name: str, num_classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes)


def randomise(module: nn.Module) -> None:
    """Random values everywhere, including batch norm's affine parameters and running statistics."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(std=0.1)


def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Batch norm in eval mode, written out."""
    assert bn.running_mean is not None and bn.running_var is not None
    mean, var, weight, bias = (t[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def test_the_registry_holds_exactly_these_names() -> None:
    assert model_names() == CIFAR + IMAGENET
    assert ModelConfig().name == "resnet32"
    assert ModelConfig().name in model_names()


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("resnet8", 100, 81_140),
        ("resnet14", 100, 178_356),
        ("resnet20", 10, 269_722),
        ("resnet20", 100, 275_572),
        ("resnet32", 10, 464_154),
        ("resnet32", 100, 470_004),
        ("resnet44", 100, 664_436),
        ("resnet56", 100, 858_868),
        ("resnet110", 100, 1_733_812),
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnext50_32x4d", 1000, 25_028_904),
    ],
)
def test_parameter_counts(name: str, num_classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in meta_model(name, num_classes).parameters()) == parameters


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    expected = json.loads((FIXTURES / f"torchvision_{name}.json").read_text())
    found = {key: list(tensor.shape) for key, tensor in meta_model(name, 1000).state_dict().items()}
    assert found == expected


def test_resnet10_is_resnet18_with_the_first_block_of_each_stage() -> None:
    resnet18 = meta_model("resnet18", 1000).state_dict()
    expected = {key: t.shape for key, t in resnet18.items() if ".1." not in key.replace("downsample.1", "")}
    assert {key: t.shape for key, t in meta_model("resnet10", 1000).state_dict().items()} == expected


@pytest.mark.parametrize(("name", "blocks"), list(zip(CIFAR, (1, 2, 3, 5, 7, 9, 18), strict=True)))
def test_names_of_the_cifar_networks(name: str, blocks: int) -> None:
    stages = [f"layer{stage}.{block}." for stage in (1, 2, 3) for block in range(blocks)]
    convolutions = [f"{at}conv{i}.weight" for at in ["", *stages] for i in ((1, 2) if at else (1,))]
    norms = [key.replace("conv", "bn").replace("weight", p) for key in convolutions for p in ("weight", "bias")]
    found = [key for key, _ in meta_model(name, 100).named_parameters()]
    assert sorted(found) == sorted([*convolutions, *norms, "fc.weight", "fc.bias"])


@pytest.mark.parametrize("size", [7, 8])
def test_option_a_shortcut_against_its_formula(size: int) -> None:
    x = torch.randn(2, 16, size, size)
    out = shortcut_option_a(x, out_channels=32, stride=2)
    assert out.shape == (2, 32, math.ceil(size / 2), math.ceil(size / 2))
    for channel in range(32):  # channels 8..23 are the input's 0..15; the rest is zero
        for row in range(out.shape[2]):
            for column in range(out.shape[3]):
                inside = 8 <= channel < 24
                expected = x[:, channel - 8, 2 * row, 2 * column] if inside else torch.zeros(2)
                assert torch.equal(out[:, channel, row, column], expected)


@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(16, 16, 1), (16, 32, 2)])
def test_cifar_block_against_its_formula(in_channels: int, out_channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block = CifarBlock(in_channels, out_channels, stride).eval()
    randomise(block)
    x = torch.randn(2, in_channels, 9, 9)
    out = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1))
    out = norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
    pad = torch.zeros(2, (out_channels - in_channels) // 2, *out.shape[2:])
    shortcut = torch.cat([pad, x[:, :, ::stride, ::stride], pad], dim=1)
    torch.testing.assert_close(block(x), F.relu(out + shortcut), rtol=1e-5, atol=1e-5)


def projected(x: Tensor, downsample: nn.Sequential | None, stride: int) -> Tensor:
    """The shortcut of an ImageNet block: the identity, or a strided 1x1 convolution and batch norm."""
    if downsample is None:
        return x
    conv, bn = downsample
    assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
    return norm(F.conv2d(x, conv.weight, stride=stride), bn)


@pytest.mark.parametrize(("in_channels", "stride", "projects"), [(64, 1, False), (64, 2, True), (32, 1, True)])
def test_basic_block_against_its_formula(in_channels: int, stride: int, projects: bool) -> None:
    torch.manual_seed(0)
    block = BasicBlock(in_channels, 64, stride).eval()
    randomise(block)
    x = torch.randn(2, in_channels, 9, 9)
    out = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1))
    out = norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
    expected = F.relu(out + projected(x, block.downsample, stride))
    assert (block.downsample is not None) == projects
    torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "inner", "groups"), [(Bottleneck, 64, 1), (ResNeXtBottleneck, 128, 32)])
def test_bottleneck_against_its_formula(kind: type[Bottleneck], inner: int, groups: int, stride: int) -> None:
    torch.manual_seed(0)
    block = kind(256, 64, stride).eval()
    randomise(block)
    x = torch.randn(2, 256, 9, 9)
    out = F.relu(norm(F.conv2d(x, block.conv1.weight), block.bn1))
    assert out.shape == (2, inner, 9, 9)  # v1.5: the stride comes after the first convolution
    out = F.conv2d(out, block.conv2.weight, stride=stride, padding=1, groups=groups)
    out = norm(F.conv2d(F.relu(norm(out, block.bn2)), block.conv3.weight), block.bn3)
    expected = F.relu(out + projected(x, block.downsample, stride))
    torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=1e-4)


def assert_same_logits(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_stem_and_head_of_a_cifar_network_against_their_formulas() -> None:
    torch.manual_seed(0)
    model = CifarResNet(blocks=1, num_classes=5).eval()
    randomise(model)
    images = torch.randn(2, 3, 12, 12)
    x = F.relu(norm(F.conv2d(images, model.conv1.weight, padding=1), model.bn1))
    x = model.layer3(model.layer2(model.layer1(x))).mean(dim=(2, 3))
    assert_same_logits(model(images), F.linear(x, model.fc.weight, model.fc.bias))


def test_stem_and_head_of_an_imagenet_network_against_their_formulas() -> None:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5).eval()
    randomise(model)
    images = torch.randn(2, 3, 40, 40)
    x = F.relu(norm(F.conv2d(images, model.conv1.weight, stride=2, padding=3), model.bn1))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    x = model.layer4(model.layer3(model.layer2(model.layer1(x)))).mean(dim=(2, 3))
    assert_same_logits(model(images), F.linear(x, model.fc.weight, model.fc.bias))


@pytest.mark.parametrize(("name", "size", "strides"), [("resnet32", 32, (1, 2, 4)), ("resnet50", 64, (4, 8, 16, 32))])
def test_stages_reduce_the_image(name: str, size: int, strides: tuple[int, ...]) -> None:
    model, sides = meta_model(name, 10), []
    for stage in range(1, len(strides) + 1):
        layer = model.get_submodule(f"layer{stage}")
        layer.register_forward_hook(lambda _module, _inputs, out: sides.append(out.shape[-1]))
    model(torch.empty(2, 3, size, size, device="meta"))
    assert sides == [size // stride for stride in strides]


@pytest.mark.parametrize("size", [24, 32, 40])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_networks_accept_other_sizes(name: str, size: int) -> None:
    logits = seeded_model(name, 7)(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_accept_other_sizes(name: str) -> None:
    assert meta_model(name, 7)(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [("resnet32", 27), ("resnet18", 65), ("resnext50_32x4d", 65)])
def test_channels_last_gives_the_same_logits(name: str, size: int) -> None:
    model = seeded_model(name, 7).eval()
    images = torch.randn(2, 3, size, size)
    expected = model(images)
    assert expected.isfinite().all() and expected.std() > 0
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing in torch's stubs)
    found = model(images.to(memory_format=torch.channels_last))
    assert_same_logits(found, expected)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet18", "resnet50", "resnext50_32x4d"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = seeded_model(name, 3).train()
    size = 16 if name in CIFAR else 33
    with Refused() as refused:
        F.cross_entropy(model(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 2, 0])).backward()
    assert refused.found == set(), "a deterministic GPU refuses"
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet32", "resnet50"])
def test_a_deterministic_gpu_gives_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model = seeded_model(name, 3).train().to("cuda", memory_format=torch.channels_last)
    size = 32 if name in CIFAR else 224
    images = torch.randn(32, 3, size, size, device="cuda")
    images, found = images.to(memory_format=torch.channels_last), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(5):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(model(images), torch.arange(32, device="cuda") % 3)
            loss.backward()
            found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for later in found[1:] for a, b in zip(found[0], later, strict=True))


@pytest.mark.parametrize("name", ["resnet32", "resnet18"])
def test_seed_reproduces_the_weights(name: str) -> None:
    first, again, other = (seeded_model(name, 10, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].dim() > 1 or key == "fc.bias"]
    assert drawn and not any(torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize(
    ("name", "key", "fan"),
    [
        ("resnet32", "conv1.weight", 3 * 9),  # fan_in
        ("resnet32", "layer3.0.conv1.weight", 32 * 9),
        ("resnet32", "fc.weight", 64),
        ("resnet18", "conv1.weight", 64 * 49),  # fan_out
        ("resnet18", "layer3.0.conv1.weight", 256 * 9),
        ("resnext50_32x4d", "layer3.1.conv2.weight", 512 * 9),  # PyTorch counts all groups' outputs
    ],
)
def test_kaiming_normal_weights(name: str, key: str, fan: int) -> None:
    weight = seeded_model(name, 100).state_dict()[key]
    # The standard error of a standard deviation over n draws is std / sqrt(2 n); five of them are allowed.
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=5 / math.sqrt(2 * weight.numel()))
    assert weight.abs().max() > 3 * weight.std()  # normal, not uniform


@pytest.mark.parametrize("name", ["resnet32", "resnet18", "resnet50"])
def test_norms_start_as_the_identity_and_the_classifier_has_a_small_bias(name: str) -> None:
    model = seeded_model(name, 100)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((bn.weight == 1).all() and (bn.bias == 0).all() for bn in norms)
    fc = model.get_submodule("fc")
    assert isinstance(fc, nn.Linear)
    bound = 1 / math.sqrt(fc.in_features)  # PyTorch's default for a Linear's bias, and for resnet.py's weight too
    assert 0.9 * bound < fc.bias.abs().max() <= bound
    if name != "resnet32":
        assert 0.9 * bound < fc.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("name", "first", "bias"),
    [
        ("resnet20", [-0.255603, -0.107999, 0.081582], 0.02535),
        ("resnet18", [0.002197, 0.035336, 0.016136], -0.016951),
    ],
)
def test_the_weights_of_a_seed_stay_what_they_were(name: str, first: list[float], bias: float) -> None:
    state = seeded_model(name, 10).state_dict()
    assert state["conv1.weight"].flatten()[:3].tolist() == pytest.approx(first, abs=1e-5)
    assert state["fc.bias"][-1].item() == pytest.approx(bias, abs=1e-5)


# ---- heads and experts ----

FORMS = [
    (ModelSpec("resnet32", 100), "resnet32", "resnet32 with 100 classes"),
    (
        ModelSpec("resnet50", 8, "cosine", 16.5),
        "resnet50 head=cosine head_scale=16.5",
        "resnet50 with a cosine head of scale 16.5, 8 classes",
    ),
    (
        ModelSpec("resnet32", 5, experts=1, expert_width=1),
        "resnet32 experts=1 expert_width=1",
        "resnet32 with 1 expert of 1 of the plain width, 5 classes",
    ),
    (
        ModelSpec("resnet32", 5, "cosine", experts=6),
        "resnet32 head=cosine head_scale=30 experts=6 expert_width=0.75",
        "resnet32 with a cosine head of scale 30, 6 experts of 0.75 of the plain width, 5 classes",
    ),
    (
        ModelSpec("resnet32", 100, experts=3, router=30),
        "resnet32 experts=3 expert_width=0.75 router=30",
        "resnet32 with 3 experts of 0.75 of the plain width, routers that see 30 logits, 100 classes",
    ),
]


@pytest.mark.parametrize(("spec", "text", "words"), FORMS)
def test_an_architecture_is_a_text_that_reads_back(spec: ModelSpec, text: str, words: str) -> None:
    assert spec.architecture == text and str(spec) == words
    assert ModelSpec.parse(text, spec.num_classes) == spec
    meta = {"architecture": text, "class_names": [str(i) for i in range(spec.num_classes)]}
    assert ModelSpec.of(meta) == spec


def test_what_has_no_effect_is_not_in_an_architecture() -> None:
    assert ModelSpec("resnet32", 5, head_scale=20, expert_width=0.5).architecture == "resnet32"
    assert ModelSpec.parse("resnet32 experts=6 head=cosine", 5) == FORMS[3][0]  # what is left out has its default


@pytest.mark.parametrize("name", CIFAR + IMAGENET)
def test_every_network_has_both_heads_and_experts(name: str) -> None:
    with torch.device("meta"):
        plain, cosine = ModelSpec(name, 7).build(), ModelSpec(name, 7, "cosine").build()
        several = ModelSpec(name, 7, experts=2).build().state_dict()
    missing = plain.state_dict().keys() - cosine.state_dict().keys()
    assert missing == {"fc.bias"} and cosine.state_dict().keys() < plain.state_dict().keys()
    trunk = {key: t.shape for key, t in several.items() if not key.startswith("experts.")}
    shared = ("conv1.", "bn1.", "layer1.") if name in CIFAR else ("conv1.", "bn1.", "layer1.", "layer2.")
    assert trunk == {key: t.shape for key, t in plain.state_dict().items() if key.startswith(shared)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet32 experts=0", "experts=0: must be from 1 to 64"),
        ("resnet32 experts=three", "'experts=three' in 'resnet32 experts=three': 'three' is no int"),
        ("resnet32 head=arc", "head=arc: must be linear or cosine"),
        ("resnet32 head=cosine head_scale=nan", "head_scale=nan: must be above 0, at most 1000"),
        ("resnet32 experts=2 expert_width=0.3", "expert_width=0.3: must be from 0.5 to 1"),
        ("resnet32 shared=3", "'shared=3' in .* is not understood; .* head=..., head_scale=..., experts=..., "),
        ("resnet32 experts=2 router=true", "'router=true' in 'resnet32 experts=2 router=true': 'true' is no int"),
        ("resnet32 router=5", "router=5: a router decides between experts; give experts=2 or more, or router=null"),
        ("resnet32 experts=1 router=5", "router=5: a router decides between experts"),
        ("resnet32 experts=2 router=0", "router=0: must be from 1 to 5, the number of classes, or null for no routers"),
        ("resnet32 experts=2 router=6", "router=6: must be from 1 to 5, the number of classes"),
        ("resnet32 experts=2 experts=3", "'experts=3' in .* is not understood; .* once each"),
        ("resnet32 32", "'32' in 'resnet32 32' is not understood"),
    ],
)
def test_an_architecture_that_makes_no_sense_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelSpec.parse(text, 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": 0}, "model.experts=0: must be from 1 to 64, or null for the plain network"),
        ({"head_scale": 0.0}, "model.head_scale=0.0: must be above 0, at most 1000"),
        ({"expert_width": 1.5}, "model.expert_width=1.5: must be from 0.5 to 1"),
        ({"router": 5}, "model.router=5: a router decides between experts; give model.experts=2 or more"),
        ({"experts": 2, "router": 0}, "model.router=0: must be from 1 to the number of classes, or null"),
    ],
)
def test_settings_out_of_range_name_their_key(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", ["head=cosine head_scale=30", "experts=2 expert_width=0.75"])
def test_networks_without_other_forms_refuse_them(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mine", Architecture(lambda classes: nn.Linear(3, classes)))
    assert isinstance(ModelSpec("mine", 5).build(), nn.Linear)  # a function of the number of classes alone will do
    for name in ("mine", "timm/resnet50"):
        with pytest.raises(ValueError, match=f"{name} has a linear head and no experts, not {form}; .*: resnet8, "):
            ModelSpec.parse(f"{name} {form}", 5).build()


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    with pytest.raises(ValueError) as error:
        build_model("resnext50", 10)
    message = str(error.value)
    assert message.startswith("no model is named 'resnext50' (model.name); nearest: resnext50_32x4d; ")
    assert message.endswith(f"allowed: {', '.join(model_names())}, or timm/NAME for a network of the timm package")
    assert "\n" not in message


def test_a_misspelt_name_finds_the_one_meant() -> None:
    with pytest.raises(ValueError, match=r"'resnet_32' \(model.name\); nearest: resnet32, "):
        build_model("resnet_32", 10)


def test_a_name_near_to_nothing_lists_all() -> None:
    with pytest.raises(ValueError, match=r"no model is named 'vit' \(model.name\); allowed: resnet8, "):
        build_model("vit", 10)


def test_without_timm_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # makes `import timm` fail as if it were not installed
    with pytest.raises(ValueError, match="'timm/resnet50' needs the timm package; type: bash tools/setup.sh timm"):
        build_model("timm/resnet50", 10)


def test_timm_builds_with_our_number_of_classes() -> None:
    pytest.importorskip("timm", reason="timm is not installed: bash tools/setup.sh timm")
    model = seeded_model("timm/resnet18", 7)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in meta_model("resnet18", 7).parameters())


def test_an_unknown_timm_name_lists_the_nearest() -> None:
    pytest.importorskip("timm", reason="timm is not installed: bash tools/setup.sh timm")
    with pytest.raises(ValueError, match=r"has no model named 'resnet55' .*nearest: timm/resnet50, "):
        build_model("timm/resnet55", 7)
