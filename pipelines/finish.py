"""The last steps of a view, on the device and the same for every backend: normalise, memory format.

Colour jitter belongs here too; its random lanes are reserved in views.py.
"""

from collections.abc import Sequence

import torch

FINISH_VERSION = 1  # raise when any finished value changes; part of a cache's identity


class Finish:
    """uint8 [B, S, S, 3] crops to float32 [B, 3, S, S] = (x / 255 - mean) / std, per channel.

    mean, std: three numbers on the 0..1 scale. channels_last: strides of the result (values are the same).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool):
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"data.mean={list(mean)} data.std={list(std)}: each needs three numbers, std above 0")
        wide = torch.float64
        std_t = torch.tensor(std, dtype=wide)
        self._scale = (1.0 / (255.0 * std_t)).float().view(1, 3, 1, 1).to(device)
        self._shift = (-torch.tensor(mean, dtype=wide) / std_t).float().view(1, 3, 1, 1).to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).float().mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=self._format)
