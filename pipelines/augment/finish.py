"""The steps of a view that follow the crop, on the device and the same for every backend, a whole batch at once.

`altered` turns views, applies their policy and takes the colours from some, in 8 bits as Pillow does; `Finish` jitters colours,
erases holes, normalises, and mixes the images of mixtures. The reasons for this order: a policy works on whole levels and jitter
does not, so that levels are rounded only where Pillow does; jitter after a hole would change what the hole holds; and mixing
is linear, as normalisation is, so that it could as well come before. All of it was drawn before (transforms.py).
"""

from collections.abc import Sequence

import torch

from pipelines.augment import colour, erase, grey, mix, policy, rotation
from pipelines.batch import Batch, Colours, Draws, Holes, Operations

LEAST_STD = 0.001  # of pixels in 0..1, whose steps are 0.004
FINISH_VERSION = 1  # raise when any finished value changes; part of a cache's identity
_CHUNK = 1 << 23  # bytes of pixels altered at a time, because their indices take eight times as many


def altered(pixels: torch.Tensor, draws: Draws) -> torch.Tensor | None:
    """uint8 pixels [B, S, S, 3] after rotation, policy and grey; None where all are off."""
    if draws.angles is None and draws.operations is None and draws.grey is None:
        return None
    rows = max(1, _CHUNK // max(1, pixels[0].numel())) if len(pixels) else 1
    parts = []
    for part in (slice(start, start + rows) for start in range(0, max(1, len(pixels)), rows)):
        changed = pixels[part]
        if draws.angles is not None:
            changed = rotation.apply(changed, draws.angles[part])
        if draws.operations is not None:
            changed = policy.apply(changed, Operations(*(column[part] for column in draws.operations)))
        if draws.grey is not None:
            changed = grey.apply(changed, draws.grey[part])
        parts.append(changed)
    return torch.cat(parts)


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, prefix: str = "data.") -> None:
    """ValueError unless these are three means and three deviations; None is allowed. prefix: that of the settings' names."""
    for name, values, least in (("mean", mean, 0.0), ("std", std, LEAST_STD)):
        if values is None or (len(values) == 3 and all(least <= value <= 1 for value in values)):
            continue
        given = f"{prefix}{name}={list(values)}"
        if len(values) == 3 and all(1 < value <= 255 for value in values):
            divided = ",".join(f"{value / 255:.4g}" for value in values)
            raise ValueError(
                f"{given}: {name} is in 0..1, of pixels divided by 255; divide by 255: {prefix}{name}=[{divided}]"
            )
        raise ValueError(f"{given}: needs three numbers in {least:g}..1, of pixels divided by 255")


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [1, 3, 1, 1] each, on the CPU: with them pixels x of 0..255 are normalised as x * scale + shift."""
    wide = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * wide), -torch.tensor(mean, dtype=torch.float64) / wide
    return scale.float().view(1, 3, 1, 1), shift.float().view(1, 3, 1, 1)


def _jitter_and_normalise(
    pixels: torch.Tensor,
    factors: torch.Tensor,
    order: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    images = colour.apply(pixels.permute(0, 3, 1, 2).float() / 255, Colours(factors, order))
    return (images * 255 * scale + shift).to(dtype, memory_format=memory_format)


class Finish:
    """uint8 [B, S, S, 3] crops to float32 [B, 3, S, S] = (x / 255 - mean) / std, per channel, x jittered if the batch has jitter.

    Holes are erased after jitter. mean, std: three numbers on the 0..1 scale. channels_last: strides of the result (values are
    the same). compile: fuse the roughly thirty element-wise passes of colour jitter into a few; values may differ from
    uncompiled ones in the last bit. dtype: the type to which the result is rounded, after everything was computed in float32; a
    mixture of two results is rounded once more.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        channels_last: bool,
        compile: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        check_normalisation(mean, std)
        self._scale, self._shift = (tensor.to(device) for tensor in scale_and_shift(mean, std))
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = dtype
        self._jittered = torch.compile(_jitter_and_normalise) if compile else _jitter_and_normalise

    def __call__(
        self, pixels: torch.Tensor, colours: Colours | None = None, holes: Holes | None = None
    ) -> torch.Tensor:
        if colours is None:  # two passes: nothing to fuse
            scaled = pixels.permute(0, 3, 1, 2).mul(self._scale)
            images = torch.add(scaled, self._shift, out=torch.empty_like(scaled, dtype=self._dtype))
            images = images.contiguous(memory_format=self._format)
        else:
            images = self._jittered(pixels, *colours, self._scale, self._shift, self._dtype, self._format)
        return images if holes is None else erase.apply(images, holes, self._scale, self._shift)

    def of(self, batch: Batch) -> torch.Tensor:
        """The images of a batch, normalised by this mean and std, whatever they are normalised by there; mixed if they are."""
        images = self(batch.pixels if batch.altered is None else batch.altered, batch.colours, batch.holes)
        if batch.mix is None:
            return images
        assert batch.partners is not None
        return mix.apply(images, self.of(batch.partners), batch.mix)
