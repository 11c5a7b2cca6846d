"""docs/method.md says what the code does: its tables and numbers against the configurations and the formulas in the code."""

import math
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.registry import ModelSpec, build_model
from pipelines.augment import operations, policy
from pipelines.augment.recipe import Recipe
from pipelines.logits.flatness import TEMPERATURES, recommend
from tools.conversion.cifar import long_tail_counts
from tools.paper.datasets import CIFAR100_LT, RIDE_SOURCE, ROWS
from tools.paper.datasets import METHODS as TABLE_1
from tools.paper.flatness import COUNTS, EPSILONS, Pair
from tools.reporting.shifted import IMBALANCES
from train.config import Config
from train.evaluation.metrics import FEW_BELOW, MANY_ABOVE, shot_groups
from train.evaluation.shifted import long_tail, shifted_sets
from train.objectives import losses, reweighting
from train.objectives.methods import METHODS, DistillConfig
from train.schedule import Schedule
from train.settings import load

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "method.md").read_text()
WORDS = " ".join(TEXT.split())
FOLDERS = {"CIFAR-100-LT": "cifar100_lt", "ImageNet-LT": "imagenet_lt", "iNaturalist 2018": "inat18"}


def table(last_column: str) -> dict[str, dict[str, str]]:
    """{first cell: {column: cell}} of the one table whose last column has this name."""
    tables = re.findall(r"^(?:\|.*\n)+", TEXT, re.MULTILINE)
    parsed = [[[cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines()] for found in tables]
    ((head, _, *rows),) = [lines for lines in parsed if lines[0][-1] == last_column]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def found(pattern: str) -> tuple[str, ...]:
    """The groups of the only match of this pattern in the text."""
    (match,) = re.finditer(pattern, WORDS)
    return match.groups()


def integers(text: str) -> list[int]:
    """`12,058 / 14,437` -> [12058, 14437]"""
    return [int(number.replace(",", "")) for number in text.split(" / ")]


def floats(text: str) -> list[float]:
    return [float(number) for number in re.split(r",? ", text)]


def named(data_set: str, names: Collection[str]) -> dict[str, Config]:
    """{name without the data set's tag: settings} of the configurations with one of these names."""
    paths = sorted((ROOT / "configs" / FOLDERS[data_set]).glob("*.yaml"))
    found = {path.stem: load(Config, path) for path in paths if re.sub(r"_(if\d+|[xr]50.*)$", "", path.stem) in names}
    assert found
    return found


def configs(data_set: str) -> list[Config]:
    """Those of Table 1's methods."""
    return list(named(data_set, TABLE_1).values())


FAMILY = {row.stem for name, row in ROWS.items() if name not in TABLE_1 and row.network is None}


def test_magnitudes_of_strong_augmentation() -> None:
    """The table of ranges, at both ends and for TrivialAugment's, and the defaults in the text."""
    rows = table("magnitude 0 to M")

    def last(code: int, wide: bool) -> float:
        return float(policy._value(code, 30, 31, wide, False, 331))

    ends = {
        "ShearX, ShearY": (operations.SHEAR_X, r"0 to ([\d.]+) \(([\d.]+)\)"),
        "Rotate": (operations.ROTATE, r"0 to (\d+) \((\d+)\) degrees"),
        "TranslateX, TranslateY": (operations.TRANSLATE_X, r"0 to (\d+) / 331 of the side \((\d+) pixels\)"),
        "Posterize": (operations.POSTERIZE, r"8 to (\d) \((\d)\) bits"),
        "Solarize": (operations.SOLARIZE, r"threshold 255 to ((\d+))"),
    }
    for name, (code, pattern) in ends.items():
        match = re.fullmatch(pattern, rows[name]["magnitude 0 to M"])
        assert match and [float(end) for end in match.groups()] == [last(code, wide) for wide in (False, True)], name
    factor, wide = found(r"factor 1 to 1 \+- ([\d.]+) \(([\d.]+)\)")
    assert (1 + float(factor), 1 + float(wide)) == (last(operations.COLOR, False), last(operations.COLOR, True))
    ops, strength, holes = found(
        r"`policy_ops` \((\d)\).*?`policy_magnitude` \((\d) of 0 to 30\).*?`cutout_holes` \((\d)\)"
    )
    recipe = Recipe()
    assert (int(ops), int(strength), int(holes)) == (recipe.policy_ops, recipe.policy_magnitude, recipe.cutout_holes)
    assert recipe.cutout_fill == "grey" and "hold grey 128" in WORDS
    low, high, flat, tall = found(
        r"`erasing_area` \(([\d.]+) to ([\d.]+)\) of the view, height / width in `erasing_ratio` \(([\d.]+) to 1 / ([\d.]+)\)"
    )
    assert [float(low), float(high)] == recipe.erasing_area
    assert [float(flat), 1 / float(tall)] == recipe.erasing_ratio
    assert floats(" ".join(found(r"`mix_alpha` \((\d)\); `mix_share` \((\d)\)"))) == [
        recipe.mix_alpha,
        recipe.mix_share,
    ]


def groups_of(counts: list[int]) -> list[int]:
    return [int(shot_groups(np.array(counts))[name].sum()) for name in ("many", "medium", "few")]


@pytest.mark.parametrize("data_set", FOLDERS)
def test_the_settings_are_those_of_the_configurations(data_set: str) -> None:
    row, epochs = table("Nesterov")[data_set], set()
    for config in configs(data_set):
        optim, schedule, distill = config.optim, config.schedule, config.distill
        assert config.model.name == row["network"]
        assert [optim.batch, optim.lr, optim.weight_decay] == [
            float(row[key]) for key in ("batch", "lr", "weight decay")
        ]
        assert optim.momentum == float(found(r"SGD with momentum ([\d.]+) \[SUP\]")[0])
        assert (optim.nesterov, optim.no_decay) == ({"yes": True, "no": False}[row["Nesterov"]], [])
        assert (schedule.kind, schedule.per) == (row["schedule"], "epoch")
        if distill.method == "dive":
            assert [distill.tau, distill.p, distill.alpha] == [float(row[key]) for key in ("tau", "p", "alpha")]
        epochs.add(schedule.epochs)
    assert epochs == {int(number) for number in row["epochs"].split(", ")}


@pytest.mark.parametrize("data_set", FOLDERS)
def test_the_recipes_are_those_of_the_configurations(data_set: str) -> None:
    row = table("std")[data_set]
    for config in configs(data_set):
        assert (config.data.mean, config.data.std) == (floats(row["mean"]), floats(row["std"]))
        recipe = config.data.recipe
        if data_set == "CIFAR-100-LT":
            pad, size, _ = found(r"Training: (\d) zero pixels on each side, a random (\d+) x (\d+) crop")
            expected = ("pad_crop", int(size), int(pad), [0.0] * 3)
            assert (recipe.crop, recipe.size, recipe.pad, recipe.jitter) == expected
            assert recipe.evaluation().short_side == int(size)
        else:
            (jitter,) = found(r"colour jitter of ([\d.]+) \(brightness, contrast, saturation\)")
            expected = [float(jitter)] * 3 if data_set == "ImageNet-LT" else [0.0] * 3
            assert (recipe.crop, recipe.size, recipe.jitter) == ("random_resized_crop", 224, expected)
            side, size = found(r"Test: short side (\d+), the central (\d+) x \d+")
            assert (recipe.evaluation().short_side, recipe.evaluation().size) == (int(side), int(size))
        assert recipe.flip


@pytest.mark.parametrize("data_set", FOLDERS)
def test_the_recipes_of_experts_are_those_of_the_configurations(data_set: str) -> None:
    row, loaded = table("eta")[data_set], named(data_set, FAMILY)
    assert len(loaded) == len(FAMILY)
    warmups, switch, weight = floats(row["warm-up"]), int(row["switch"]), float(row["lambda"])
    decay = float(found(r"LDAM-DRW on CIFAR has the weight decay ([\de-]+) and no Nesterov")[0])
    for name, config in loaded.items():
        optim, schedule, distill, model = config.optim, config.schedule, config.distill, config.model
        own = data_set == "CIFAR-100-LT" and name.startswith("ldam_drw")
        expected = [row["batch"], row["lr"], decay if own else row["weight decay"]]
        assert [optim.batch, optim.lr, optim.weight_decay] == [float(value) for value in expected]
        assert (optim.momentum, optim.nesterov) == (0.9, not own)
        (degrees,) = found(r"On CIFAR images are also rotated by up to (\d+) degrees")
        assert config.data.recipe.rotation == (float(degrees) if data_set == "CIFAR-100-LT" else 0)
        assert (model.name, model.head, model.head_scale) == (row["network"], "cosine", 30)
        assert (schedule.kind, schedule.per, schedule.gamma) == ("multistep", "epoch", float(row["gamma"]))
        assert (schedule.epochs, schedule.milestones) == (int(row["epochs"]), floats(row["milestones"]))
        soft = distill.method in ("dive", "kd")
        assert schedule.warmup_epochs == warmups[soft] and config.data.seed == (0 if soft else 1)
        assert distill.drw_from == (switch if "ldam" in (distill.method, distill.hard) else None)
        share = distill.hard_weight or (1 - distill.alpha if soft else 1)
        plain = name.startswith("ldam_drw")
        assert (model.experts is None) == plain and distill.diversity == (0 if plain else pytest.approx(share * weight))
        assert plain or (distill.diversity_from, distill.diversity_eta) == (switch, float(row["eta"]))


def test_the_recipe_of_routers() -> None:
    lr, decay, epochs, batch = found(
        r"\*\*Recipe\*\* \[RIDE code\]: SGD, lr ([\d.]+), momentum 0.9, Nesterov, weight decay ([\de-]+), cosine over (\d) "
        r"epochs, batch (\d+), class-balanced sampling"
    )
    cifar, large = found(r"sees the k largest \(`model.router`: (\d+) on CIFAR, (\d+) on large data sets\)")
    (seed,) = found(r"The configurations of routers have `data.seed=(\d)`")
    (views,) = found(r"They have\s+`data.views=(\d+)`")
    for data_set in FOLDERS:
        ((_, config),) = named(data_set, ["router"]).items()
        ((_, network),) = named(data_set, ["ride3"]).items()
        optim, schedule = config.optim, config.schedule
        numbers = [float(number) for number in (epochs, batch, lr, decay)]
        assert [schedule.epochs, optim.batch, optim.lr, optim.weight_decay] == numbers
        assert (schedule.kind, optim.nesterov, config.distill.method) == ("cosine", True, "router")
        assert (config.data.sampling, config.data.seed, config.data.views) == ("class_balanced", int(seed), int(views))
        assert config.model.router == int(cifar if data_set == "CIFAR-100-LT" else large)
        assert replace(config.model, router=None) == network.model
        assert replace(config.data, sampling="instance", seed=1, views=None) == network.data


def test_ride_dive() -> None:
    """Teacher of six experts with BSCE, student of four with DiVE for each; tau and p of DiVE but for the tau of ImageNet-LT."""
    alpha, tau = found(r"DiVE is applied to each, with a = ([\d.]+), and tau = (\d) on ImageNet-LT")
    for data_set in FOLDERS:
        ((_, teacher),) = named(data_set, ["bsce6"]).items()
        ((_, student),) = named(data_set, ["ride_dive4"]).items()
        assert (teacher.distill.method, teacher.model.experts, student.model.experts) == ("bsce", 6, 4)
        own, row = student.distill, table("Nesterov")[data_set]
        assert (own.method, own.hard, own.kl_of, own.alpha) == ("dive", None, "experts", float(alpha))
        assert own.tau == float(tau if data_set == "ImageNet-LT" else row["tau"]) and own.p == float(row["p"])
        ((_, kd),) = named(data_set, ["ride_kd4"]).items()
        of_ride = (kd.distill.method, kd.distill.hard, kd.distill.kl_of, kd.distill.tau)
        assert of_ride == ("kd", "ldam", "ensemble", 1.5) and kd.model.experts == 4
        assert (kd.distill.alpha, kd.distill.hard_weight) == (1, 1)
        ((_, ride),) = named(data_set, ["ride3"]).items()
        assert (ride.distill.method, ride.model.experts) == ("ldam", 3)


def test_the_published_figures_of_experts() -> None:
    three, *groups, six = found(
        r"RIDE ([\d.]+) with 3 experts \(many ([\d.]+), medium ([\d.]+), few ([\d.]+)\) and ([\d.]+) with 6"
    )
    paper = {name: figure for name, figure in CIFAR100_LT[100].paper.items() if name not in TABLE_1}
    assert paper == {"ride3": float(three), "ride6": float(six)}
    assert "{} many, {} medium, {} few".format(*groups) in RIDE_SOURCE
    large = found(
        r"ImageNet-LT: RIDE ([\d.]+) with 3 and ([\d.]+) with 6, ([\d.]+) with 4 and distilled \[RIDE\]; RIDE-DiVE ([\d.]+) "
        r"\[paper\]\. iNaturalist 2018: RIDE ([\d.]+) with 3, ([\d.]+) with 4 and distilled \[RIDE\]; RIDE-DiVE ([\d.]+)"
    )
    stems = ("imagenet_lt/ride3_x50", "imagenet_lt/ride3_x50", "imagenet_lt/ride_kd4_x50", "imagenet_lt/ride_dive4_x50")
    stems += ("inat18/ride3_r50", "inat18/ride_kd4_r50", "inat18/ride_dive4_r50")
    for figure, stem in zip((three, six, *large), (*["cifar100_lt/ride3_if100"] * 2, *stems), strict=True):
        (expected,) = re.findall("^# expected: .*", (ROOT / f"configs/{stem}.yaml").read_text(), re.MULTILINE)
        assert f"{figure} %" in expected


def test_the_learning_rates() -> None:
    (multistep,) = {
        (c.schedule.warmup_epochs, *c.schedule.milestones, c.schedule.gamma) for c in configs("CIFAR-100-LT")
    }
    warmup, last, gamma, first, second = found(
        r"`lr \* \(epoch \+ 1\) / (\d)` in epochs 0 to (\d); times ([\d.]+) from the start of epoch (\d+), and again from (\d+)"
    )
    assert multistep == (int(warmup), int(first), int(second), float(gamma)) and int(last) == int(warmup) - 1
    schedule = Schedule(configs("CIFAR-100-LT")[0].schedule, 1.0, steps_per_epoch=1, batch=128)
    assert [schedule.at(epoch) for epoch in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert [schedule.at(epoch) for epoch in (119, 120, 159, 160)] == pytest.approx([1, 0.01, 0.01, 0.0001])
    assert "`lr * (1 + cos(pi * epoch / epochs)) / 2`, without warm-up" in WORDS
    cosine = Schedule(configs("ImageNet-LT")[0].schedule, 1.0, steps_per_epoch=1, batch=512)
    assert [cosine.at(e) for e in range(90)] == pytest.approx([(1 + math.cos(math.pi * e / 90)) / 2 for e in range(90)])


def test_the_loss() -> None:
    """The text's formula, computed with numpy as the text words it: power normalisation by its definition."""
    assert "`L = (1 - a) * CE(y, softmax(s + log n)) + a * tau^2 * KL(t_hat || softmax(s / tau))`" in WORDS
    assert "`t_hat` is `softmax(t / tau)^p`, renormalised" in WORDS and "`softmax(p * t / tau)`" in WORDS

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    rng, tau, p, a = np.random.default_rng(0), 3.0, 0.5, 0.3
    s, t, y, n = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), np.array([0, 4, 2, 2]), np.array([50, 20, 9, 4, 1])
    powered = softmax(t / tau) ** p
    t_hat = powered / powered.sum(axis=1, keepdims=True)
    kl = (t_hat * np.log(t_hat / softmax(s / tau))).sum(axis=1).mean()
    hard = -np.log(softmax(s + np.log(n))[range(4), y]).mean()
    student, teacher = torch.tensor(s), torch.tensor(t)
    loss = losses.distilled(
        losses.balanced_softmax(student, torch.tensor(y), torch.tensor(np.log(n))),
        losses.kd_kl(student, losses.soften(teacher, tau, p), tau),
        tau,
        a,
    )
    assert float(loss) == pytest.approx((1 - a) * hard + a * tau**2 * kl)


def test_the_flatness_rule() -> None:
    (grid,) = found(r"T is the smallest of ([\d., ]+) at which")
    assert floats(grid) == list(TEMPERATURES)
    bars = {key: [float(cell) for cell in row.values()] for key, row in table("few").items() if key[0].isdigit()}
    counts = long_tail_counts(500, 100, 100)
    virtual = np.array([np.repeat(row, groups_of(counts)) for row in bars.values()])
    assert recommend(virtual, np.array(counts), [float(key) for key in bars]) == (6, True)
    parts = np.split(np.array(counts), np.cumsum(groups_of(counts))[:2])
    assert [round(part.mean()) for part in parts] == [int(cell) for cell in table("few")["training images"].values()]


def test_the_class_counts() -> None:
    for imbalance, row in table("CIFAR-10-LT").items():
        counts = long_tail_counts(500, 100, int(imbalance))
        assert integers(row["CIFAR-100-LT"]) == [sum(counts)]
        assert [int(row[name]) for name in ("many", "medium", "few")] == groups_of(counts)
        assert integers(row["CIFAR-10-LT"]) == [sum(long_tail_counts(5000, 10, int(imbalance)))]
    *first, last = found(r"keep (\d+), (\d+), (\d+), (\d+) at imbalance 100, the last one (\d)")
    counts = long_tail_counts(500, 100, 100)
    assert [*counts[:4], counts[-1]] == [int(number) for number in (*first, last)]


def test_the_shot_groups() -> None:
    many, low, high, few = found(r"many > (\d+), medium (\d+) to (\d+), few < (\d+)\.")
    assert int(many) == int(high) == MANY_ABOVE and int(low) == int(few) == FEW_BELOW
    rows = table("std")
    (groups,) = found(r"ImageNet-LT has ([\d/ ]+) classes in them")
    assert [sum(integers(groups))] == integers(rows["ImageNet-LT"]["classes"])
    assert integers(rows["iNaturalist 2018"]["val"]) == [3 * integers(rows["iNaturalist 2018"]["classes"])[0]]
    assert integers(rows["ImageNet-LT"]["test"]) == [50 * integers(rows["ImageNet-LT"]["classes"])[0]]


def test_the_published_figures() -> None:
    columns = {method: row for method, row in table("10").items()}
    written = {(name.lower(), int(i)): float(cell) for name, row in columns.items() for i, cell in row.items()}
    assert written == {(name, i): one.paper[name] for i, one in CIFAR100_LT.items() for name in TABLE_1}
    public = found(r"\[code\] reports ([\d.]+) and ([\d.]+) for DiVE at imbalance (\d+) and (\d+)")
    theirs = {i: one.public for i, one in CIFAR100_LT.items() if one.public}
    assert {int(public[i + 2]): {"dive": float(public[i])} for i in (0, 1)} == theirs
    large = found(r"ImageNet-LT: CE ([\d.]+), BSCE ([\d.]+), DiVE ([\d.]+) \[SUP\]\. iNaturalist 2018: DiVE ([\d.]+);")
    stems = ("imagenet_lt/ce_x50", "imagenet_lt/bsce_x50", "imagenet_lt/dive_x50", "inat18/dive_r50_90")
    for figure, stem in zip(large, stems, strict=True):
        assert f"# expected: {figure} % top-1" in (ROOT / f"configs/{stem}.yaml").read_text()


def test_the_parameters_of_resnet_32() -> None:
    (count,) = found(r"It has ([\d,]+) parameters with 100 classes")
    assert integers(count) == [sum(p.numel() for p in build_model("resnet32", 100).parameters())]


def test_the_parameters_of_experts() -> None:
    *counts, one, three, four, six = found(
        r"100 classes has ([\d,]+), ([\d,]+), ([\d,]+) and ([\d,]+) parameters with (\d), (\d), (\d) and (\d) experts"
    )
    for count, experts in zip(counts, (one, three, four, six), strict=True):
        with torch.device("meta"):
            network = ModelSpec("resnet32", 100, "cosine", experts=int(experts)).build()
        assert integers(count) == [sum(p.numel() for p in network.parameters())]


def test_the_defaults_of_heads_and_experts() -> None:
    scale, width = found(r"scale is (\d+) \(`model.head_scale`\).*`model.expert_width` \(([\d.]+)\)")
    config = Config().model
    assert (float(scale), float(width)) == (config.head_scale, config.expert_width)


def test_the_shifted_test_sets() -> None:
    factors, imagenet, cifar = found(
        r"Totals for F = ([\d/ ]+) \[calc\]: ([\d,/ ]+) on ImageNet-LT \(n = 50\), ([\d,/ ]+) on CIFAR-100 \(n = 100\)"
    )
    for n, classes, totals in ((50, 1000, imagenet), (100, 100, cifar)):
        counts = [[max(1, int(n * (1 / f) ** (k / (classes - 1)))) for k in range(classes)] for f in integers(factors)]
        assert integers(totals) == [sum(row) for row in counts]
        assert counts == [long_tail(n, classes, f).tolist() for f in integers(factors)]
    assert "`max(1, int(n * (1/F)^(k/(C-1))))`" in WORDS


def test_the_published_figures_on_shifted_test_sets() -> None:
    """U is the balanced test set, where post-compensation changes nothing after balanced softmax."""
    rows = table("B50")
    large = found(r"ImageNet-LT: CE ([\d.]+), BSCE ([\d.]+), DiVE ([\d.]+) \[SUP\]\.")
    assert tuple(rows[f"{name} on its own"]["U"] for name in ("CE", "BSCE", "DiVE")) == large
    assert all(rows[f"PC {name}"]["U"] == rows[f"{name} on its own"]["U"] for name in ("BSCE", "DiVE"))
    assert len(rows) == 6 and all(len(row) == 11 for row in rows.values())
    assert list(rows["CE on its own"]) == [one.name for one in shifted_sets(np.arange(5), np.full(5, 50), IMBALANCES)]


def test_the_ratios_of_label_smoothing() -> None:
    assert "`R = (n_tail + n_head * eps) / (n_head - n_head * eps)`" in WORDS
    eps, first, head, tail, second_head, second_tail, second, other_head, other_tail = found(
        r"For eps = ([\d., ]+) it is ([\d., ]+) with (\d+) / (\d+) images, or with (\d+) / (\d+), and ([\d., ]+) with "
        r"(\d+) / (\d+) \[calc\]"
    )
    rows = ((first, head, tail), (first, second_head, second_tail), (second, other_head, other_tail))
    for ratios, n_head, n_tail in rows:
        expected = [(int(n_tail) + int(n_head) * e) / (int(n_head) * (1 - e)) for e in floats(eps)]
        assert floats(ratios) == pytest.approx(expected, abs=0.0006)  # three decimals
        pair = Pair("airplane", "dog", int(n_head), int(n_tail))
        assert [pair.ratio(e) for e in floats(eps)] == pytest.approx(expected)
    assert floats(eps) == list(EPSILONS) and [(int(head), int(tail)) for _, head, tail in rows[::2]] == list(COUNTS[:2])
    config = load(Config, Pair("airplane", "dog", 500, 50).config)
    numbers = found(
        r"with 500 / 50, batch (\d+), (\d+) epochs, warm-up of (\d+) epochs, steps at (\d+) and (\d+) \[ours\]"
    )
    schedule = config.schedule
    expected = (config.optim.batch, schedule.epochs, schedule.warmup_epochs, *schedule.milestones)
    assert tuple(map(int, numbers)) == expected
    large, same = load(Config, Pair("airplane", "dog", 5000, 50).config), configs("CIFAR-100-LT")[0]
    assert (large.schedule, large.optim) == (same.schedule, same.optim)


def test_the_links() -> None:
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
    assert "docs/method.md" in (ROOT / "README.md").read_text()
    assert "docs/method.md" in (ROOT / "CONTRIBUTING.md").read_text()


def test_ldam_and_the_switches() -> None:
    counts = np.array(long_tail_counts(500, 100, 100))
    factor, largest = found(
        r"`m_j = ([\d.]+) \* n_j\^\(-1/4\) / max_k n_k\^\(-1/4\)`, so that the rarest class has the margin ([\d.]+)"
    )
    assert float(factor) == float(largest) == DistillConfig().margin
    expected = float(largest) * counts**-0.25 / (counts**-0.25).max()
    np.testing.assert_allclose(reweighting.margins(counts, float(largest)).numpy(), expected, rtol=1e-6)
    beta, spread = found(
        r"with beta = ([\d.]+) \(`distill.drw_beta`\).* their ratio varies by a (\w+) from batch to batch"
    )
    assert float(beta) == DistillConfig().drw_beta
    weights = reweighting.class_weights(counts, float(beta)).double().numpy()
    variance = (counts * weights**2).sum() / counts.sum() - 1
    assert spread == "sixth" and (variance / 128) ** 0.5 == pytest.approx(1 / 6, rel=0.1)
    (eta,) = found(r"`distill.diversity_eta` is ([\d.]+) on CIFAR")
    assert float(eta) == DistillConfig().diversity_eta
    raised = float(eta) * 100 * counts / counts.sum() + 1 - float(eta)
    assert "`T_j = (eta * C * p_j + 1 - eta) / max_k (eta * C * p_k + 1 - eta)`" in WORDS
    np.testing.assert_allclose(reweighting.diversity_temperatures(counts, float(eta)), raised / raised.max(), rtol=1e-6)


def test_the_router() -> None:
    code, weight = found(
        r"a code of (\d+) numbers, `relu\(A_e h_e / \|h_e\| \+ b_e\)`.* with w = (\d+) \(`distill.router_weight`\)"
    )
    network = ModelSpec("resnet8", 100, "cosine", experts=2, router=30).build()
    assert network.get_parameter("router.codes.0.weight").shape == (int(code), 48)
    assert float(weight) == DistillConfig().router_weight
    (command,) = re.findall(r"^accelerate launch (train/router\.py .*)$", TEXT, re.MULTILINE)
    script, _, *settings = command.split()
    config = load(Config, ROOT / "configs/cifar100_lt/ce_if100.yaml", settings)
    assert METHODS[config.distill.method].script == script and config.model.spec(100).router == 30
