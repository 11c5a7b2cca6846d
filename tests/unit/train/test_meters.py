"""Sums on the device, and the step whose loss was not finite."""

import pytest
import torch
from accelerate import Accelerator

from train.meters import Meters, NotFinite


def test_meters_average_between_reads() -> None:
    meters, accelerator = Meters(torch.device("cpu")), Accelerator(cpu=True)
    for step, loss in enumerate([1.0, 2.0, 6.0]):
        meters.add(step, torch.tensor(loss), {"kl": torch.tensor(loss / 2)})
    assert meters.read(accelerator) == {"loss": 3.0, "kl": 1.5}
    meters.add(3, torch.tensor(5.0), {"kl": torch.tensor(0.0)})
    assert meters.read(accelerator) == {"loss": 5.0, "kl": 0.0}


def test_each_step_counts_the_same_however_it_is_divided() -> None:
    """A resumed run may take its steps in other parts than the session before."""
    meters, accelerator = Meters(torch.device("cpu")), Accelerator(cpu=True)
    for _ in range(10 * 4):
        meters.add(0, torch.tensor(4.0), {}, share=1 / 4)
    for _ in range(40):
        meters.add(1, torch.tensor(2.0), {})
    assert meters.read(accelerator) == {"loss": pytest.approx(2.4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_adding_step_by_step_whenever_they_are_read(dtype: torch.dtype) -> None:
    """To the bit, also where a checkpoint is saved and loaded in between."""
    rng, accelerator = torch.Generator().manual_seed(0), Accelerator(cpu=True)
    losses = torch.rand(50, 2, generator=rng, dtype=dtype)
    expected = torch.zeros(2, dtype=dtype)
    meters = Meters(torch.device("cpu"))
    for step, (loss, part) in enumerate(losses):
        expected = expected + torch.stack([loss, part])
        meters.add(step, loss, {"kl": part})
        if step % 7 == 0:
            sums, count = meters.state(accelerator)
            meters = Meters(torch.device("cpu"))
            meters.restore({name: value.clone() for name, value in sums.items()}, count, accelerator)
    assert meters.read(accelerator) == {"loss": (expected / 50)[0].item(), "kl": (expected / 50)[1].item()}


def test_a_program_that_never_reads_does_not_fill_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.meters._MOST_UNREAD", 10)
    meters = Meters(torch.device("cpu"))
    for step in range(25):
        meters.add(step, torch.tensor(float(step)), {})
    assert len(meters._unread) == 5
    assert meters.read(Accelerator(cpu=True)) == {"loss": 12.0}


def test_a_loss_that_is_overwritten_later_counts_as_it_was() -> None:
    """As that of a CUDA graph is, by its next run."""
    meters, loss = Meters(torch.device("cpu")), torch.tensor(2.0)
    meters.add(0, loss, {})
    loss.fill_(float("nan"))
    assert meters.read(Accelerator(cpu=True)) == {"loss": 2.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_that_was_not_finite_is_named(value: float) -> None:
    meters = Meters(torch.device("cpu"))
    for step, loss in enumerate([1.0, value, 2.0, value]):
        meters.add(step, torch.tensor(loss), {})
    with pytest.raises(NotFinite) as found:
        meters.read(Accelerator(cpu=True))
    assert found.value.step == 1
