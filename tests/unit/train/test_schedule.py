"""The learning rates of the papers' recipes, properties of every kind, lengths in steps and images, errors of the settings."""

import math

import pytest
from omegaconf import OmegaConf

from pipelines.errors import UserError
from train.schedule import Schedule, ScheduleConfig, begun_epochs

STEPS = 84  # an epoch of CIFAR-100-LT at imbalance 100, batch 128


def cifar(**changes) -> ScheduleConfig:
    settings = {
        "kind": "multistep",
        "epochs": 200,
        "warmup_epochs": 5,
        "milestones": [120, 160],
        "gamma": 0.01,
    }
    return ScheduleConfig(**(settings | changes))


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (0, 0.02), (1, 0.04), (2, 0.06), (3, 0.08), (4, 0.1), (5, 0.1),
        (119, 0.1), (120, 1e-3), (159, 1e-3), (160, 1e-5), (199, 1e-5),
    ],
)  # fmt: skip
def test_cifar_recipe(epoch: int, lr: float) -> None:
    schedule = Schedule(cifar(), base_lr=0.1, steps_per_epoch=STEPS, batch=128)
    for step in (epoch * STEPS, epoch * STEPS + STEPS // 2, epoch * STEPS + STEPS - 1):
        assert schedule.at(step) == pytest.approx(lr, rel=1e-12)


def test_cosine_recipe_is_constant_within_an_epoch() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine", epochs=90), base_lr=0.2, steps_per_epoch=7, batch=128)
    assert schedule.total_steps == 630
    for step in range(630):
        assert schedule.at(step) == pytest.approx(0.2 * (1 + math.cos(math.pi * (step // 7) / 90)) / 2, rel=1e-12)
    assert schedule.at(0) == 0.2 and schedule.at(45 * 7) == pytest.approx(0.1) and 0 < schedule.at(629) < 1e-4


def test_cosine_goes_on_at_its_own_epoch_after_the_warm_up() -> None:
    config = ScheduleConfig(kind="cosine", epochs=10, warmup_epochs=4)
    rates = [Schedule(config, base_lr=1.0, steps_per_epoch=1, batch=128).at(epoch) for epoch in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(4, 10)])


def test_per_step() -> None:
    config = ScheduleConfig(kind="cosine", epochs=4, warmup_epochs=1, per="step")
    schedule = Schedule(config, base_lr=3.0, steps_per_epoch=5, batch=128)
    rates = [schedule.at(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0])
    assert rates[5:] == pytest.approx([3 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(5, 20)])
    # Milestones fall on the start of their epoch, whether the rate changes per epoch or per step.
    by_step, by_epoch = (Schedule(cifar(per=per), 0.1, STEPS, 128) for per in ("step", "epoch"))
    assert all(by_step.at(step) == by_epoch.at(step) for step in range(5 * STEPS, 200 * STEPS))
    assert by_step.at(0) == pytest.approx(0.1 / (5 * STEPS))


def test_constant() -> None:
    schedule = Schedule(
        ScheduleConfig(kind="constant", epochs=3, warmup_epochs=1), base_lr=0.5, steps_per_epoch=2, batch=128
    )
    assert [schedule.at(step) for step in range(6)] == [0.5] * 6


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    one, other = (Schedule(cifar(), 0.1, STEPS, 128) for _ in range(2))
    forwards = [one.at(step) for step in range(one.total_steps)]
    assert forwards == [other.at(step) for step in reversed(range(other.total_steps))][::-1]
    assert min(forwards) > 0


@pytest.mark.parametrize("step", [-1, 200 * STEPS])
def test_steps_outside_the_training_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} is outside 0 .. 16799"):
        Schedule(cifar(), 0.1, STEPS, 128).at(step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"milestones": [120, 200]},
            r"schedule\.milestones=\[120, 200\].* 1 to 199 \(schedule\.epochs=200\)",
        ),
        ({"milestones": [0, 160]}, r"schedule\.milestones"),
        ({"milestones": [-5]}, r"schedule\.milestones"),
        ({"milestones": [160, 120]}, r"schedule\.milestones.*increase"),
        ({"milestones": [120, 120]}, r"schedule\.milestones.*increase"),
        ({"milestones": []}, r"schedule\.kind=multistep has milestones; type schedule\.milestones=\[N,N\]"),
        (
            {"kind": "cosine"},
            r"milestones=\[120, 160\]: schedule\.kind=cosine has none; type schedule\.milestones=\[\]$",
        ),
        ({"kind": "constant"}, r"schedule\.milestones"),
        ({"epochs": 0}, r"schedule\.epochs=0"),
        ({"epochs": -3}, r"schedule\.epochs=-3"),
        ({"warmup_epochs": -1}, r"schedule\.warmup_epochs=-1"),
        (
            {"epochs": 1},
            r"warmup_epochs=5: must be from 0 to 1 .*; schedule\.milestones=\[120, 160\]: .* type schedule\.kind=cosine",
        ),
        ({"warmup_epochs": 201}, r"schedule\.warmup_epochs=201.*schedule\.epochs=200"),
        (
            {"steps": 100},
            r"epochs=200 and schedule\.steps=100 are both a length.*schedule\.epochs=null schedule\.steps=100$",
        ),
        (
            {"samples": 9, "steps": 7},
            r"type schedule\.epochs=null schedule\.steps=null schedule\.samples=9$",
        ),
        (
            {"epochs": None},
            r"schedule\.epochs=null: a training has a length; type schedule\.epochs=N, schedule\.steps=N",
        ),
        ({"epochs": None, "steps": 0}, r"schedule\.steps=0: must be at least 1"),
        ({"epochs": None, "samples": -1}, r"schedule\.samples=-1: must be at least 1"),
        ({"warmup_steps": -1, "warmup_epochs": 0}, r"schedule\.warmup_steps=-1"),
        ({"warmup_steps": 10}, r"warmup_epochs=5 and schedule\.warmup_steps=10 .* type schedule\.warmup_epochs=0"),
        ({"gamma": 0.0}, r"schedule\.gamma=0\.0"),
        ({"gamma": -0.1}, r"schedule\.gamma"),
        ({"gamma": 10.0}, r"schedule\.gamma"),
    ],
)
def test_wrong_settings_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar(**changes)


def test_a_length_in_steps_or_images() -> None:
    """10 steps per epoch at batch 32; images are rounded up to a whole step, and a begun epoch counts."""
    for settings, steps, epochs in (
        ({"steps": 1000}, 1000, 100),
        ({"steps": 25}, 25, 3),
        ({"steps": 3}, 3, 1),
        ({"samples": 800}, 25, 3),
        ({"samples": 801}, 26, 3),
        ({"samples": 961}, 31, 4),
        ({"epochs": 3}, 30, 3),
    ):
        config = ScheduleConfig(**({"epochs": None, "kind": "constant"} | settings))
        schedule = Schedule(config, 1.0, steps_per_epoch=10, batch=32)
        assert (schedule.total_steps, schedule.epochs) == (steps, epochs) == (steps, begun_epochs(config, 10, 32))
        assert schedule.at(steps - 1) == 1.0
        with pytest.raises(ValueError, match=f"step {steps} is outside"):
            schedule.at(steps)


def test_a_cosine_ends_with_the_training_in_steps_and_in_epochs() -> None:
    """Per step, over all steps; per epoch, like a training over the begun epochs, cut off."""
    by_step = Schedule(ScheduleConfig(epochs=None, steps=25, per="step"), 1.0, steps_per_epoch=10, batch=32)
    rates = [by_step.at(step) for step in range(25)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / 25)) / 2 for step in range(25)])
    by_epoch = Schedule(ScheduleConfig(epochs=None, samples=800), 1.0, steps_per_epoch=10, batch=32)
    whole = Schedule(ScheduleConfig(epochs=3), 1.0, steps_per_epoch=10, batch=32)
    assert [by_epoch.at(step) for step in range(25)] == [whole.at(step) for step in range(25)]


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_a_warm_up_in_steps(per: str) -> None:
    """After warm-up the schedule is where it would be without; 0 steps mean none; milestones stay where their epochs begin."""
    settings = {"epochs": None, "steps": 25, "per": per, "kind": "multistep", "milestones": [1, 2]}
    plain, warm, none = (
        Schedule(ScheduleConfig(**settings, warmup_steps=n), 2.0, steps_per_epoch=10, batch=32) for n in (None, 4, 0)
    )
    assert [warm.at(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    rates = [plain.at(step) for step in range(25)]
    assert [warm.at(step) for step in range(4, 25)] == rates[4:] and [none.at(step) for step in range(25)] == rates
    assert rates == pytest.approx([2.0] * 10 + [0.2] * 10 + [0.02] * 5)
    all_of_it = ScheduleConfig(kind="constant", epochs=None, steps=4, warmup_steps=4)
    assert Schedule(all_of_it, 1.0, 10, 32).at(3) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 26}, r"schedule\.warmup_steps=26: must be at most 25 \(25 steps in all, 10 an epoch\)"),
        ({"warmup_epochs": 4}, r"schedule\.warmup_epochs=4: must be from 0 to 3 \(25 steps in all, 10 an epoch\)"),
        (
            {"kind": "multistep", "milestones": [1, 3]},
            r"schedule\.milestones=\[1, 3\]: each must be from 1 to 2 \(25 steps",
        ),
        (
            {"kind": "multistep", "milestones": [1], "steps": 9},
            r"=\[1\]: one epoch has no room for any \(9 .*; type schedule\.kind=cosine schedule\.milestones=\[\]$",
        ),
    ],
)
def test_what_lies_beyond_the_last_step_is_refused(changes: dict, message: str) -> None:
    config = ScheduleConfig(**({"epochs": None, "steps": 25} | changes))
    with pytest.raises(UserError, match=message):
        Schedule(config, 1.0, steps_per_epoch=10, batch=32)


def test_an_epoch_has_steps() -> None:
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        Schedule(cifar(), 0.1, 0, 128)


def test_the_settings_are_omegaconf_structured() -> None:
    merged = OmegaConf.merge(
        OmegaConf.structured(ScheduleConfig), {"kind": "multistep", "milestones": [3], "epochs": 5}
    )
    assert OmegaConf.to_object(merged) == ScheduleConfig(kind="multistep", milestones=[3], epochs=5)
