"""How a row of logits becomes bytes, and how much a row of bytes can be trusted.

Codecs: u8 (float32 low and step per sample, 8 bits per class), f16, f32. Every class is kept. The certificate measures, on
the true logits, what share of a teacher's information (KL to uniform) the stored form loses at several temperatures.
"""

import numpy as np
import torch

CODECS = ("u8", "f16", "f32")
TEMPERATURES = (1.0, 2.0, 3.0, 6.0, 9.0)  # of the certificate; T = tau / p


def payload_bytes(codec: str, classes: int) -> int:
    """Bytes of one encoded row."""
    return {"u8": 8 + classes, "f16": 2 * classes, "f32": 4 * classes}[codec]


def encode(logits: np.ndarray, codec: str) -> np.ndarray:
    """uint8 [n, payload_bytes] of float32 logits [n, C]."""
    n, classes = logits.shape
    if codec != "u8":
        stored = np.ascontiguousarray(logits, np.float16 if codec == "f16" else np.float32)
        return stored.view(np.uint8).reshape(n, payload_bytes(codec, classes))
    low = logits.min(axis=1)
    step = (logits.max(axis=1) - low) / np.float32(255)
    safe = np.where(step > 0, step, np.float32(1))
    codes = np.rint((logits - low[:, None]) / safe[:, None]).clip(0, 255).astype(np.uint8)
    head = np.stack([low, step], axis=1).astype(np.float32).view(np.uint8)
    return np.concatenate([head, codes], axis=1)


def decode(payload: torch.Tensor, codec: str) -> torch.Tensor:
    """float32 logits [n, C] of uint8 payload [n, payload_bytes], on the payload's device."""
    if codec == "f32":
        return payload.contiguous().view(torch.float32)
    if codec == "f16":
        return payload.contiguous().view(torch.float16).float()
    head = payload[:, :8].contiguous().view(torch.float32)
    return torch.addcmul(head[:, :1], payload[:, 8:].float(), head[:, 1:])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def certificate(true: np.ndarray, payload: np.ndarray, codec: str) -> np.ndarray:
    """float64 [len(TEMPERATURES), 2]: sums over rows of KL(true || stored) and of KL(true || uniform)."""
    stored = decode(torch.from_numpy(payload), codec).numpy()
    sums = np.empty((len(TEMPERATURES), 2))
    for i, temperature in enumerate(TEMPERATURES):
        log_true = _log_softmax(true.astype(np.float64) / temperature)
        log_stored = _log_softmax(stored.astype(np.float64) / temperature)
        p = np.exp(log_true)
        sums[i, 0] = (p * (log_true - log_stored)).sum()
        sums[i, 1] = (p * log_true).sum() + len(true) * np.log(true.shape[1])
    return sums


def certified_loss(sums: np.ndarray, temperature: float) -> float:
    """Share of information lost at `temperature`: the worse of the two neighbouring certified temperatures."""
    losses = np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1e-300), 0.0)
    right = int(np.searchsorted(TEMPERATURES, temperature))
    left = right if right < len(TEMPERATURES) and TEMPERATURES[right] == temperature else right - 1
    last = len(TEMPERATURES) - 1
    return float(max(losses[max(left, 0)], losses[min(right, last)]))
