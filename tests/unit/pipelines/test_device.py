"""What is copied to a device."""

import numpy as np
import torch

from pipelines.device import to_device


def test_to_device_copies_what_is_not_contiguous() -> None:
    array = np.arange(12).reshape(3, 4).T
    assert to_device(array, torch.device("cpu")).tolist() == array.tolist()
