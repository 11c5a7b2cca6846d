"""A short fingerprint of a crop, to tell whether a cached target belongs to the pixels at hand.

Each crop has a 32-bit hash (equal: the same pixels) and a 4 x 4 grey thumbnail (close: the same view through another decoder).
Only integer arithmetic is used, so a GPU and a CPU give the same fingerprint.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch

THUMB = 4
# Thumbnails of one view through two JPEG decoders differ by less than this, in grey levels of 255.
MEAN_TOLERANCE, MAX_TOLERANCE = 2.0, 12
_CHUNK = 1 << 22  # bytes of pixels hashed at a time, because they are widened to 32 bits


class Fingerprints(NamedTuple):
    """hashes uint32 [B]; thumbs uint8 [B, 16], row by row."""

    hashes: np.ndarray
    thumbs: np.ndarray


def _hash_weights(length: int, device: torch.device) -> torch.Tensor:
    """int32 [length]: odd 32-bit weights of a linear hash modulo 2**32, from splitmix64 of the byte's index."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, length + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    weights = ((z >> np.uint64(32)) | np.uint64(1)).astype(np.uint32)
    return torch.from_numpy(weights.view(np.int32)).to(device)


def _cell_areas(cuts: list[int], device: torch.device) -> torch.Tensor:
    """int64 [16]: bytes in each cell of the grid with these cuts in both directions, at least 1: fewer than 4 pixels leave some
    cells empty, with sums of 0."""
    lengths = torch.tensor(cuts).diff()
    return (lengths[:, None] * lengths[None, :] * 3).reshape(-1).clamp(min=1).to(device)


class Fingerprinter:
    """Fingerprints of crops of one size; keeps the tables for that size on the device."""

    def __init__(self) -> None:
        self._prepared_for: tuple[int, torch.device] | None = None

    def __call__(self, pixels: torch.Tensor) -> Fingerprints:
        """Fingerprints of uint8 pixels [B, S, S, 3]."""
        return on_host(self.on_device(pixels))

    @torch.no_grad()
    def on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """int64 [B, 17], hash and thumbnail, on the pixels' device, without synchronising; `on_host` reads them."""
        size = pixels.shape[1]
        if self._prepared_for != (size, pixels.device):
            self._prepared_for = (size, pixels.device)
            self._weights = _hash_weights(size * size * 3, pixels.device)
            self._cuts = [i * size // THUMB for i in range(THUMB + 1)]
            self._areas = _cell_areas(self._cuts, pixels.device)
        chunks = pixels.split(max(1, _CHUNK // len(self._weights)))
        return torch.cat([self._chunk(chunk) for chunk in chunks])

    def _chunk(self, pixels: torch.Tensor) -> torch.Tensor:
        # Products and sums wrap at 32 bits: that is arithmetic modulo 2**32.
        flat = pixels.reshape(len(pixels), -1).to(torch.int32)
        hashes = (flat * self._weights).sum(dim=1, dtype=torch.int32)
        inner = self._cuts[1:-1]
        strips = flat.view(len(pixels), len(pixels[0]), -1).tensor_split(inner, dim=1)
        rows = torch.stack([strip.sum(dim=1, dtype=torch.int32) for strip in strips], dim=1)
        strips = rows.tensor_split([3 * cut for cut in inner], dim=2)
        cells = torch.stack([strip.sum(dim=2, dtype=torch.int64) for strip in strips], dim=2).reshape(len(pixels), -1)
        # The integer mean over each cell and its three channels.
        thumbs = torch.div(cells, self._areas, rounding_mode="floor")
        return torch.cat([hashes[:, None].long() & 0xFFFFFFFF, thumbs], dim=1)


def on_host(prints: torch.Tensor) -> Fingerprints:
    """Fingerprints from the result of `Fingerprinter.on_device`."""
    table = prints.cpu().numpy()
    return Fingerprints(table[:, 0].astype(np.uint32), table[:, 1:].astype(np.uint8))


def compare(stored: Fingerprints, seen: Fingerprints) -> Literal["same", "close", "other"]:
    """How the crops that a teacher saw compare with those at hand, row by row; the worst row decides."""
    if np.array_equal(stored.hashes, seen.hashes):
        return "same"
    distance = np.abs(stored.thumbs.astype(np.int32) - seen.thumbs.astype(np.int32))
    close = (distance.mean(axis=1) <= MEAN_TOLERANCE) & (distance.max(axis=1) <= MAX_TOLERANCE)
    return "close" if close.all() else "other"
