"""How a row of logits becomes bytes, and how much those bytes lose.

Codecs: u8 (float32 low and step per sample, 8 bits per class), f16, f32. All keep every class. The certificate measures, on the
true logits, what share of a teacher's information (KL to uniform) the stored form loses at several temperatures.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines.errors import UserError

CODECS = ("u8", "f16", "f32")
TEMPERATURES = (1.0, 2.0, 3.0, 6.0, 9.0, 20.0)  # of the certificate; T = tau / p
_CHUNK = 1 << 16  # logits certified at a time: few enough for their float64 copies to stay in the CPU cache


def payload_bytes(codec: str, classes: int) -> int:
    """Bytes of one encoded row."""
    return {"u8": 8 + classes, "f16": 2 * classes, "f32": 4 * classes}[codec]


def encode(logits: np.ndarray, codec: str) -> np.ndarray:
    """uint8 [n, payload_bytes] of finite float32 logits [n, C]; UserError when the codec cannot hold them."""
    n, classes = logits.shape
    with np.errstate(over="ignore"):
        if codec != "u8":
            stored = np.ascontiguousarray(logits, np.float16 if codec == "f16" else np.float32)
            _require_finite(stored, logits, codec)
            return stored.view(np.uint8).reshape(n, payload_bytes(codec, classes))
        low = logits.min(axis=1)
        step = (logits.max(axis=1) - low) / np.float32(255)
    _require_finite(step, logits, codec)
    safe = np.where(step > 0, step, np.float32(1))
    codes = np.rint((logits - low[:, None]) / safe[:, None]).clip(0, 255).astype(np.uint8)
    head = np.stack([low, step], axis=1).astype(np.float32).view(np.uint8)
    return np.concatenate([head, codes], axis=1)


def _require_finite(stored: np.ndarray, logits: np.ndarray, codec: str) -> None:
    if not np.isfinite(stored).all():
        raise UserError(
            f"the teacher's logits reach {np.abs(logits).max():g}, more than cache.codec={codec} holds: use cache.codec=f32"
        )


def decode(payload: torch.Tensor, codec: str) -> torch.Tensor:
    """float32 logits [n, C] of uint8 payload [n, payload_bytes], on the payload's device."""
    if codec == "f32":
        return _packed(payload).view(torch.float32)
    if codec == "f16":
        return _packed(payload).view(torch.float16).float()
    head = _packed(payload[:, :8]).view(torch.float32)
    return torch.addcmul(head[:, :1], payload[:, 8:].float(), head[:, 1:])


def _packed(rows: torch.Tensor) -> torch.Tensor:
    """A packed copy: a single row counts as contiguous, but its stride and address may not be aligned for floats."""
    return rows.clone(memory_format=torch.contiguous_format)


def certificate(true: np.ndarray, payload: np.ndarray, codec: str, workers: int = 1) -> np.ndarray:
    """float64 [T, 3], one row per TEMPERATURES: sums over rows of KL(true || stored), KL(true || uniform) and a bound.

    The bound is Hoeffding's: KL(true || stored) <= r^2 / (8 T^2) where r is the range of a row's errors (u8: its step).
    workers: threads; the sums are added in the order of the rows whatever their number.
    """
    rows = max(1, _CHUNK // true.shape[1])

    def sums_from(start: int) -> np.ndarray:
        part = slice(start, start + rows)
        stored = decode(torch.from_numpy(payload[part]), codec).numpy()
        return _chunk_sums(true[part].astype(np.float64), stored.astype(np.float64))

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(sums_from, range(0, len(true), rows)), np.zeros((len(TEMPERATURES), 3)))


def _chunk_sums(true: np.ndarray, stored: np.ndarray) -> np.ndarray:
    errors = true - stored
    squares = (np.ptp(errors, axis=1) ** 2).sum()
    true = true - true.max(axis=1, keepdims=True)
    stored = stored - stored.max(axis=1, keepdims=True)
    errors = true - stored
    sums = np.empty((len(TEMPERATURES), 3))
    for i, temperature in enumerate(TEMPERATURES):
        weights = np.exp(true / temperature)
        total = weights.sum(axis=1)
        stored_total = np.exp(stored / temperature).sum(axis=1)
        mean_error = np.einsum("nc,nc->n", weights, errors) / total
        mean_true = np.einsum("nc,nc->n", weights, true) / total
        sums[i, 0] = (mean_error / temperature + np.log(stored_total / total)).sum()
        sums[i, 1] = (mean_true / temperature - np.log(total / true.shape[1])).sum()
        sums[i, 2] = squares / (8 * temperature**2)
    return sums


def certified_loss(sums: np.ndarray, temperature: float) -> float:
    """Largest share of information that may be lost at `temperature`, from the `certificate`'s sums.

    At a certified temperature it is the measured share. Elsewhere it is the bound, which holds at any T, divided by the
    information at the next higher certified temperature, since information only falls with T. Above the last certified
    temperature nothing is known about a lossy codec: infinite.
    """
    if not sums[:, 2].any():
        return 0.0  # nothing was rounded
    above = int(np.searchsorted(TEMPERATURES, temperature))
    if above == len(TEMPERATURES):
        return math.inf
    lost, information, bound = sums[above]
    if temperature != TEMPERATURES[above]:
        lost = bound * (TEMPERATURES[above] / temperature) ** 2
    return float(max(lost, 0.0) / max(information, 1e-300))  # uniform logits have information 0, or a rounding error
