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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_that_was_not_finite_is_named(value: float) -> None:
    meters = Meters(torch.device("cpu"))
    for step, loss in enumerate([1.0, value, 2.0, value]):
        meters.add(step, torch.tensor(loss), {})
    with pytest.raises(NotFinite) as found:
        meters.read(Accelerator(cpu=True))
    assert found.value.step == 1
