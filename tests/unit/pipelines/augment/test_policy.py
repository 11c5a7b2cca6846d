"""Policies against their published form on Pillow's images; how often each operation, sign and magnitude is drawn; identities."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.pillow_operations import by_pillow, pictures
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.augment import operations, policy
from pipelines.augment.operations import AUTOCONTRAST, COLOR, IDENTITY, ROTATE, SHEAR_Y, SOLARIZE, TRANSLATE_Y
from pipelines.augment.policy import CIFAR10, DRAWN_FROM, IMAGENET, apply, identity, operations_of
from pipelines.augment.recipe import Recipe, view_params
from pipelines.batch import Operations

# AutoAugment's as published (and in torchvision): operation, probability and, where there is one, magnitude.
PUBLISHED = {
    "autoaugment_cifar10": """
        Invert 0.1, Contrast 0.2 6; Rotate 0.7 2, TranslateX 0.3 9; Sharpness 0.8 1, Sharpness 0.9 3;
        ShearY 0.5 8, TranslateY 0.7 9; AutoContrast 0.5, Equalize 0.9; ShearY 0.2 7, Posterize 0.3 7;
        Color 0.4 3, Brightness 0.6 7; Sharpness 0.3 9, Brightness 0.7 9; Equalize 0.6, Equalize 0.5;
        Contrast 0.6 7, Sharpness 0.6 5; Color 0.7 7, TranslateX 0.5 8; Equalize 0.3, AutoContrast 0.4;
        TranslateY 0.4 3, Sharpness 0.2 6; Brightness 0.9 6, Color 0.2 8; Solarize 0.5 2, Invert 0.0;
        Equalize 0.2, AutoContrast 0.6; Equalize 0.2, Equalize 0.6; Color 0.9 9, Equalize 0.6;
        AutoContrast 0.8, Solarize 0.2 8; Brightness 0.1 3, Color 0.7 0; Solarize 0.4 5, AutoContrast 0.9;
        TranslateY 0.9 9, TranslateY 0.7 9; AutoContrast 0.9, Solarize 0.8 3; Equalize 0.8, Invert 0.1;
        TranslateY 0.7 9, AutoContrast 0.9""",
    "autoaugment_imagenet": """
        Posterize 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6; Equalize 0.8, Equalize 0.6;
        Posterize 0.6 7, Posterize 0.6 6; Equalize 0.4, Solarize 0.2 4; Equalize 0.4, Rotate 0.8 8;
        Solarize 0.6 3, Equalize 0.6; Posterize 0.8 5, Equalize 1.0; Rotate 0.2 3, Solarize 0.6 8;
        Equalize 0.6, Posterize 0.4 6; Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6;
        Equalize 0.0, Equalize 0.8; Invert 0.6, Equalize 1.0; Color 0.6 4, Contrast 1.0 8;
        Rotate 0.8 8, Color 1.0 2; Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6;
        ShearX 0.6 5, Equalize 1.0; Color 0.4 0, Equalize 0.6; Equalize 0.4, Solarize 0.2 4;
        Solarize 0.6 5, AutoContrast 0.6; Invert 0.6, Equalize 1.0; Color 0.6 4, Contrast 1.0 8;
        Equalize 0.8, Equalize 0.6""",
}
NAMES = {
    name: getattr(operations, constant)
    for constant, name in (
        *(("IDENTITY", "Identity"), ("SHEAR_X", "ShearX"), ("SHEAR_Y", "ShearY"), ("TRANSLATE_X", "TranslateX")),
        *(("TRANSLATE_Y", "TranslateY"), ("ROTATE", "Rotate"), ("BRIGHTNESS", "Brightness"), ("COLOR", "Color")),
        *(("CONTRAST", "Contrast"), ("SHARPNESS", "Sharpness"), ("POSTERIZE", "Posterize"), ("SOLARIZE", "Solarize")),
        *(("AUTOCONTRAST", "AutoContrast"), ("EQUALIZE", "Equalize"), ("INVERT", "Invert")),
    )
}
ENHANCED = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *ENHANCED)
N = 20_000


def space(name: str, size: int, bins: int, wide: bool) -> list[float]:
    """torchvision's magnitudes of an operation, from torch.linspace; wide: of TrivialAugmentWide."""
    ends = dict.fromkeys(("ShearX", "ShearY"), 0.99 if wide else 0.3)
    ends |= dict.fromkeys(("TranslateX", "TranslateY"), 32.0 if wide else 150.0 / 331.0 * size)
    ends |= dict.fromkeys(ENHANCED, 0.99 if wide else 0.9) | {"Rotate": 135.0 if wide else 30.0}
    if name in ends:
        return torch.linspace(0.0, ends[name], bins).tolist()
    if name == "Posterize":
        return (8 - (torch.arange(bins) / ((bins - 1) / (6 if wide else 4))).round().int()).tolist()
    return torch.linspace(255.0, 0.0, bins).tolist() if name == "Solarize" else [0.0] * bins


def value_of(name: str, magnitude: float, negative: bool) -> float:
    """What torchvision hands to Pillow; its single precision has 15.999999 for the 16 pixels of TrivialAugmentWide's middle."""
    if name in SIGNED and negative:
        magnitude = -magnitude
    if name.startswith("Translate"):
        return int(magnitude + np.copysign(1e-5, magnitude))
    return 1 + magnitude if name in ENHANCED else magnitude


def drawn(n: int = N, seed: int = 0, **settings: Any) -> Operations:
    """The operations of one view of each of n samples, on images of 32 pixels."""
    params = view_params(Recipe(**({"crop": "pad_crop", "size": 32} | settings)), seed)
    return Operations(*operations_of(params, np.arange(n, dtype=np.int64) * 7919, np.full(n, 3, np.int32)))


def pairs_of(text: str) -> list[list[list[str]]]:
    return [[operation.split() for operation in pair.split(",")] for pair in text.split(";")]


@pytest.mark.parametrize(("name", "table"), [("autoaugment_cifar10", CIFAR10), ("autoaugment_imagenet", IMAGENET)])
def test_the_pairs_are_the_published_ones(name: str, table: np.ndarray) -> None:
    published = [
        [[NAMES[name], round(10 * float(chance)), int(*rest) if rest else 0] for name, chance, *rest in pair]
        for pair in pairs_of(PUBLISHED[name])
    ]
    assert table.tolist() == published and len(published) == 25


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bins", [10, 31])
@pytest.mark.parametrize("name", NAMES)
def test_magnitudes_are_torchvisions(name: str, bins: int, wide: bool) -> None:
    """Its floats are single, ours double; whole pixels and bits are equal."""
    whole = name.startswith("Translate") or name == "Posterize"
    for size in (32, 33, 64, 128, 224, 299):
        for index, magnitude in enumerate(space(name, size, bins, wide)):
            for negative in (False, True):
                found = policy._value(NAMES[name], index, bins, wide, negative, size)
                expected = value_of(name, magnitude, negative)
                assert found == pytest.approx(expected, rel=0, abs=0 if whole else 2e-5), (size, index)


def shares(values: np.ndarray) -> dict[Any, float]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), (counts / len(values)).tolist(), strict=True))


def near(share: float, of: int = N) -> Any:
    """Within four standard deviations of a binomial share."""
    return pytest.approx(share, abs=4 * np.sqrt(max(share * (1 - share), 1e-9) / of))


@pytest.mark.parametrize("name", PUBLISHED)
def test_pairs_are_drawn_uniformly_and_operations_with_their_probabilities(name: str) -> None:
    found = drawn(policy=name)
    expected = np.zeros((2, 15, 15))
    for (first, p, *_), (second, q, *_) in pairs_of(PUBLISHED[name]):
        a, b, p, q = NAMES[first], NAMES[second], float(p), float(q)
        for code, other, share in (
            *((a, b, p * q), (a, IDENTITY, p * (1 - q))),
            *((IDENTITY, b, (1 - p) * q), (IDENTITY, IDENTITY, (1 - p) * (1 - q))),
        ):
            expected[0, code, other] += share / 25
    counted = np.zeros((15, 15))
    np.add.at(counted, tuple(found.codes.T), 1 / N)
    for code in range(15):
        for other in range(15):
            assert counted[code, other] == near(expected[0, code, other]), (code, other)


@pytest.mark.parametrize(
    "settings", [{"policy": "randaugment", "policy_ops": 3}, {"policy": "trivialaugment"}], ids=str
)
def test_operations_are_drawn_uniformly(settings: dict[str, Any]) -> None:
    found = drawn(**settings)
    layers = settings.get("policy_ops", 1)
    assert found.codes.shape == found.values.shape == (N, layers)
    for layer in range(layers):
        counted = shares(found.codes[:, layer])
        assert set(counted) == set(DRAWN_FROM.tolist()) and len(DRAWN_FROM) == 14
        assert all(share == near(1 / 14) for share in counted.values())
    if layers > 1:
        joint = shares(found.codes[:, 0] * 15 + found.codes[:, 1])
        assert len(joint) == 196 and all(share == near(1 / 196) for share in joint.values())


def test_half_of_the_signs_are_negative_and_magnitudes_are_uniform() -> None:
    found = drawn(policy="randaugment", policy_magnitude=10)
    turned = found.values[found.codes == ROTATE]
    assert shares(turned) == {-10.0: near(0.5, len(turned)), 10.0: near(0.5, len(turned))}
    found = drawn(10 * N, policy="trivialaugment")
    turned = np.round(found.values[found.codes == ROTATE] / 4.5).astype(int)
    counted = shares(turned)
    assert set(counted) == set(range(-30, 31))
    for step, share in counted.items():
        assert share == near(1 / 31 if step == 0 else 1 / 62, len(turned)), step
    assert abs(found.values[found.codes == ROTATE] - 4.5 * turned).max() < 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        *({"policy": name} for name in PUBLISHED),
        {"policy": "randaugment", "policy_ops": 3, "policy_magnitude": 17},
        {"policy": "trivialaugment"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [32, 50])
def test_a_policy_is_pillows_operations_one_after_another(settings: dict[str, Any], size: int) -> None:
    """All images of a mixed batch, bit for bit."""
    rng, n = np.random.default_rng(0), 120
    images = np.concatenate([pictures(size)[:6]] * (n // 6))
    images = np.clip(images + rng.integers(-20, 20, images.shape), 0, 255).astype(np.uint8)
    found = drawn(n, **settings, crop="center", size=size)
    given = images.copy()
    result = apply(torch.from_numpy(images), found).numpy()
    for i in range(n):
        image = images[i]
        for code, value in zip(found.codes[i].tolist(), found.values[i].tolist(), strict=True):
            image = by_pillow(image, code, value)
        np.testing.assert_array_equal(result[i], image, err_msg=f"{found.codes[i]} {found.values[i]}")
    assert np.array_equal(images, given), "the crops are left alone"
    changed = (result != images).any(axis=(1, 2, 3)).mean()
    assert 0.6 < changed <= 1


class _Dispatched(TorchDispatchMode):
    """Collects the names of the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["autoaugment_cifar10", "trivialaugment"])
def test_nothing_waits_for_the_device(name: str) -> None:
    """No operation whose result the host must know, and about as many for a large batch as for a small one."""
    counts = []
    for n in (100, 1000):
        found, images = drawn(n, policy=name), torch.from_numpy(np.concatenate([pictures(8)] * (n // 10)))
        with _Dispatched() as dispatched:
            apply(images, found)
        assert not {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "item"} & set(dispatched.names)
        counts.append(len(dispatched.names))
    assert counts[0] > 50 and counts[1] < 1.2 * counts[0], counts
    with _Dispatched() as dispatched:
        assert images.float().max().item() == 255
    assert "_local_scalar_dense" in dispatched.names, "it would have been seen"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment"])
def test_a_gpu_computes_the_same_bits_without_waiting(name: str) -> None:
    found, images = drawn(200, policy=name), torch.from_numpy(np.concatenate([pictures(32)] * 20))
    on_device = images.cuda()
    apply(on_device, found)  # the first call may allocate and wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = apply(on_device, found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result.cpu(), apply(images, found))


def test_vectors() -> None:
    """Committed draws: changing them makes every cache with a policy invalid."""
    keys, views = np.array([1, 2**62 + 3]), np.array([0, 7], np.int32)
    found = {}
    for name in ("autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment"):
        codes, values = operations_of(view_params(Recipe(policy=name, size=32), 5), keys, views)
        found[name] = (codes.tolist(), np.round(values, 6).tolist())
    assert found == {
        "autoaugment_cifar10": ([[TRANSLATE_Y, 0], [0, AUTOCONTRAST]], [[14.0, 0.0], [0.0, 0.0]]),
        "autoaugment_imagenet": ([[SOLARIZE, 0], [0, 0]], [[113.333333, 0.0], [0.0, 0.0]]),
        "randaugment": ([[ROTATE, COLOR], [SOLARIZE, SHEAR_Y]], [[9.0, 0.73], [178.5, 0.09]]),
        "trivialaugment": ([[ROTATE], [SOLARIZE]], [[4.5], [59.5]]),
    }


def test_only_a_policy_that_is_on_is_in_the_identity() -> None:
    assert identity(Recipe()) == identity(Recipe(policy_ops=3, policy_magnitude=4)) == {}
    assert identity(Recipe(policy="trivialaugment", policy_ops=3)) == {"policy": "trivialaugment"}
    expected = {"policy": "randaugment", "policy_ops": 2, "policy_magnitude": 9}
    assert identity(Recipe(policy="randaugment")) == expected
    for changed in ({"policy_ops": 3}, {"policy_magnitude": 10}):
        assert identity(Recipe(policy="randaugment", **changed)) == expected | changed
    assert Recipe(policy="randaugment").evaluation().policy is None
