"""The learning rates of the papers' recipes, properties of every kind, and the errors of the settings."""

import math

import pytest
from omegaconf import OmegaConf

from train.schedule import Schedule, ScheduleConfig

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
    schedule = Schedule(cifar(), base_lr=0.1, steps_per_epoch=STEPS)
    for step in (epoch * STEPS, epoch * STEPS + STEPS // 2, epoch * STEPS + STEPS - 1):
        assert schedule.at(step) == pytest.approx(lr, rel=1e-12)


def test_cosine_recipe_is_constant_within_an_epoch() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine", epochs=90), base_lr=0.2, steps_per_epoch=7)
    assert schedule.total_steps == 630
    for step in range(630):
        assert schedule.at(step) == pytest.approx(0.2 * (1 + math.cos(math.pi * (step // 7) / 90)) / 2, rel=1e-12)
    assert schedule.at(0) == 0.2 and schedule.at(45 * 7) == pytest.approx(0.1) and 0 < schedule.at(629) < 1e-4


def test_cosine_goes_on_at_its_own_epoch_after_the_warm_up() -> None:
    config = ScheduleConfig(kind="cosine", epochs=10, warmup_epochs=4)
    rates = [Schedule(config, base_lr=1.0, steps_per_epoch=1).at(epoch) for epoch in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(4, 10)])


def test_per_step() -> None:
    config = ScheduleConfig(kind="cosine", epochs=4, warmup_epochs=1, per="step")
    schedule = Schedule(config, base_lr=3.0, steps_per_epoch=5)
    rates = [schedule.at(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0])
    assert rates[5:] == pytest.approx([3 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(5, 20)])
    # Milestones fall on the start of their epoch whichever way the rate ticks.
    by_step, by_epoch = (Schedule(cifar(per=per), 0.1, STEPS) for per in ("step", "epoch"))
    assert all(by_step.at(step) == by_epoch.at(step) for step in range(5 * STEPS, 200 * STEPS))
    assert by_step.at(0) == pytest.approx(0.1 / (5 * STEPS))


def test_constant() -> None:
    schedule = Schedule(ScheduleConfig(kind="constant", epochs=3, warmup_epochs=1), base_lr=0.5, steps_per_epoch=2)
    assert [schedule.at(step) for step in range(6)] == [0.5] * 6


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    one, other = (Schedule(cifar(), 0.1, STEPS) for _ in range(2))
    forwards = [one.at(step) for step in range(one.total_steps)]
    assert forwards == [other.at(step) for step in reversed(range(other.total_steps))][::-1]
    assert min(forwards) > 0


@pytest.mark.parametrize("step", [-1, 200 * STEPS])
def test_steps_outside_the_training_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} is outside 0 .. 16799"):
        Schedule(cifar(), 0.1, STEPS).at(step)


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
        ({"milestones": []}, r"schedule\.milestones=\[\] with schedule\.kind=multistep"),
        ({"kind": "cosine"}, r"schedule\.milestones=\[120, 160\] with schedule\.kind=cosine"),
        ({"kind": "constant"}, r"schedule\.milestones"),
        ({"epochs": 0}, r"schedule\.epochs=0"),
        ({"epochs": -3}, r"schedule\.epochs=-3"),
        ({"warmup_epochs": -1}, r"schedule\.warmup_epochs=-1"),
        ({"warmup_epochs": 201}, r"schedule\.warmup_epochs=201.*schedule\.epochs=200"),
        ({"gamma": 0.0}, r"schedule\.gamma=0\.0"),
        ({"gamma": -0.1}, r"schedule\.gamma"),
        ({"gamma": 10.0}, r"schedule\.gamma"),
    ],
)
def test_wrong_settings_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar(**changes)


def test_an_epoch_has_steps() -> None:
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        Schedule(cifar(), 0.1, 0)


def test_the_settings_are_omegaconf_structured() -> None:
    merged = OmegaConf.merge(
        OmegaConf.structured(ScheduleConfig), {"kind": "multistep", "milestones": [3], "epochs": 5}
    )
    assert OmegaConf.to_object(merged) == ScheduleConfig(kind="multistep", milestones=[3], epochs=5)
