"""A short fingerprint of a crop, to tell whether a cached target belongs to the pixels at hand.

Per crop a 32-bit hash (equal: the same pixels) and a 4 x 4 grey thumbnail (close: the same view through another decoder).
Integer arithmetic only, so a GPU and a CPU give the same fingerprint.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch

THUMB = 4
# Thumbnails of one view through two JPEG decoders differ by less than this, in grey levels of 255.
MEAN_TOLERANCE, MAX_TOLERANCE = 2.0, 12
_CHUNK = 64  # crops hashed at a time: their pixels are widened to 64 bits


class Fingerprints(NamedTuple):
    """hashes uint32 [B]; thumbs uint8 [B, 16], row by row."""

    hashes: np.ndarray
    thumbs: np.ndarray


def _hash_weights(length: int, device: torch.device) -> torch.Tensor:
    """Odd 32-bit weights, one a byte (a linear hash modulo 2**32), from splitmix64 of the byte's index."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, length + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    weights = ((z >> np.uint64(32)) | np.uint64(1)).astype(np.int64)
    return torch.from_numpy(weights).to(device)


class Fingerprinter:
    """Fingerprints of crops of one size; keeps its weights on the device."""

    def __init__(self) -> None:
        self._weights: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> Fingerprints:
        """Fingerprints of uint8 pixels [B, S, S, 3], S >= 4."""
        hashes, thumbs = [], []
        for chunk in pixels.split(_CHUNK):
            flat = chunk.reshape(len(chunk), -1).long()
            if self._weights is None or len(self._weights) != flat.shape[1] or self._weights.device != flat.device:
                self._weights = _hash_weights(flat.shape[1], flat.device)
            # 8-bit pixels times 32-bit weights: the sum stays far below 2**63.
            hashes.append((flat * self._weights).sum(dim=1) & 0xFFFFFFFF)
            thumbs.append(_thumbnails(chunk))
        return Fingerprints(
            torch.cat(hashes).cpu().numpy().astype(np.uint32), torch.cat(thumbs).cpu().numpy().astype(np.uint8)
        )


def _thumbnails(pixels: torch.Tensor) -> torch.Tensor:
    """int64 [B, 16]: the integer mean over each cell of a 4 x 4 grid and its three channels."""
    size = pixels.shape[1]
    cuts = [i * size // THUMB for i in range(THUMB + 1)]
    rows = torch.stack(
        [pixels[:, cuts[i] : cuts[i + 1]].sum(dim=(1, 3), dtype=torch.int64) for i in range(THUMB)], dim=1
    )
    cells = torch.stack([rows[:, :, cuts[i] : cuts[i + 1]].sum(dim=2) for i in range(THUMB)], dim=2)
    lengths = torch.tensor([b - a for a, b in zip(cuts, cuts[1:], strict=False)], device=pixels.device)
    counts = lengths[:, None] * lengths[None, :] * 3
    return torch.div(cells, counts, rounding_mode="floor").reshape(len(pixels), -1)


def compare(stored: Fingerprints, seen: Fingerprints) -> Literal["same", "close", "other"]:
    """How the crops that a teacher saw relate to the ones at hand, row by row; the worst row decides."""
    if np.array_equal(stored.hashes, seen.hashes):
        return "same"
    distance = np.abs(stored.thumbs.astype(np.int32) - seen.thumbs.astype(np.int32))
    close = (distance.mean(axis=1) <= MEAN_TOLERANCE) & (distance.max(axis=1) <= MAX_TOLERANCE)
    return "close" if close.all() else "other"
