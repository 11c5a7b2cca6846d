"""How a row of logits becomes bytes, and how much those bytes lose.

Codecs: u8 (float32 low and step per sample, 8 bits per class), f16, f32. All keep every class. The certificate measures, on the
true logits, what share of a teacher's information (KL to uniform) the stored form loses at several temperatures.
"""

import math

import numpy as np
import torch

from pipelines.errors import UserError

CODECS = ("u8", "f16", "f32")
TEMPERATURES = (1.0, 2.0, 3.0, 6.0, 9.0, 20.0)  # of the certificate; T = tau / p
# Logits certified at a time. On a GPU so few that the teacher beside it keeps its memory (150 MB). On a CPU so few that torch
# shares no sum among threads, and that their float64 copies stay in the core's cache.
_CHUNK, _CPU_CHUNK = 1 << 21, (1 << 15) - 1


def payload_bytes(codec: str, classes: int) -> int:
    """Bytes of one encoded row."""
    return {"u8": 8 + classes, "f16": 2 * classes, "f32": 4 * classes}[codec]


def encode(logits: torch.Tensor, codec: str) -> torch.Tensor:
    """uint8 [n, payload_bytes] of finite float32 logits [n, C], on their device; UserError when the codec cannot hold them."""
    n, classes = logits.shape
    if codec != "u8":
        stored = logits.to(torch.float16 if codec == "f16" else torch.float32).contiguous()
        _require_finite(stored, logits, codec)
        return stored.view(torch.uint8).reshape(n, payload_bytes(codec, classes))
    low = logits.amin(dim=1, keepdim=True) + 0.0  # a smallest logit of 0 has no sign, whichever of 0 and -0 came first
    # By a tensor: a GPU divides by a number as it multiplies by the reciprocal, which rounds otherwise.
    step = (logits.amax(dim=1, keepdim=True) - low) / torch.full_like(low, 255)
    _require_finite(step, logits, codec)
    codes = ((logits - low) / torch.where(step > 0, step, 1)).round().clamp(0, 255).to(torch.uint8)
    return torch.cat([torch.cat([low, step], dim=1).view(torch.uint8), codes], dim=1)


def _require_finite(stored: torch.Tensor, logits: torch.Tensor, codec: str) -> None:
    if not stored.isfinite().all():
        raise UserError(
            f"the teacher's logits reach {float(logits.abs().max()):g}, more than cache.codec={codec} holds: use cache.codec=f32"
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


def certificate(true: torch.Tensor, payload: torch.Tensor, codec: str) -> torch.Tensor:
    """float64 [T, 3], one row per TEMPERATURES: sums over rows of KL(true || stored), KL(true || uniform) and a bound.

    The bound is Hoeffding's: KL(true || stored) <= r^2 / (8 T^2) where r is the range of a row's errors (u8: its step).
    true, float32 [n, C], and payload lie on one device, and so do the sums: a row of 8,142 classes takes a core a millisecond,
    for which a fast GPU would wait. On a CPU the bits do not depend on the number of threads, up to 32,767 classes.
    """
    rows = max(1, (_CHUNK if true.is_cuda else _CPU_CHUNK) // true.shape[1])
    sums = torch.zeros(len(TEMPERATURES), 3, dtype=torch.float64, device=true.device)
    for part, stored in zip(true.split(rows), payload.split(rows), strict=True):
        sums += _chunk_sums(part.double(), decode(stored, codec).double())
    return sums


def _chunk_sums(true: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    errors = true - stored
    squares = ((errors.amax(dim=1) - errors.amin(dim=1)) ** 2).sum()
    true = true - true.amax(dim=1, keepdim=True)
    stored = stored - stored.amax(dim=1, keepdim=True)
    errors = true - stored
    sums = true.new_empty(len(TEMPERATURES), 3)
    for i, temperature in enumerate(TEMPERATURES):
        weights = (true / temperature).exp()
        total = weights.sum(dim=1)
        stored_total = (stored / temperature).exp().sum(dim=1)
        mean_error = (weights * errors).sum(dim=1) / total
        mean_true = (weights * true).sum(dim=1) / total
        sums[i, 0] = (mean_error / temperature + (stored_total / total).log()).sum()
        sums[i, 1] = (mean_true / temperature - (total / true.shape[1]).log()).sum()
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
    # tau / p is one of them up to rounding: 9.8 / 0.49 is more than 20.
    above = int(np.searchsorted(TEMPERATURES, temperature * (1 - 1e-9)))
    if above == len(TEMPERATURES):
        return math.inf
    lost, information, bound = sums[above]
    if not math.isclose(temperature, TEMPERATURES[above], rel_tol=1e-9):
        lost = bound * (TEMPERATURES[above] / temperature) ** 2
    return float(max(lost, 0.0) / max(information, 1e-300))  # uniform logits have information 0, or a rounding error
