"""What each codec costs and loses on a real teacher: python tests/studies/codecs.py RUN FILE.beton [--markdown FILE].

The true logits of the run's network over one view of every record are encoded by each codec of the cache; certified loss is
sum KL(true || stored) / sum KL(true || uniform) at T = tau / p. Top-K files, which the cache does not offer, are
the negative control: the K largest logits as float32 with their classes, and for all the others one value that keeps
their mass right at T = 1, the most favourable reading of such files.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.backends.choice import resolve_backend
from pipelines.files import write_bytes_atomic
from pipelines.loader import Loader
from pipelines.logits.codec import CODECS, decode, encode, payload_bytes
from pipelines.records.reader import Records
from train.networks.final import load_final
from train.networks.weights import read_run
from train.objectives.targets import Teacher

TEMPERATURES = (1.0, 2.0, 3.0, 6.0, 9.0)
TOP_K = (10, 50, 100)


def true_logits(run: str, records: Records) -> np.ndarray:
    """float32 [N, C]: the teacher over view 0 of every record, under its own training recipe, data.seed 0."""
    recipe = Recipe(**load_final(run)[1]["recipe"])
    device = torch.device("cpu")
    teacher = Teacher(read_run(run), records, recipe.size, device, "fp32", channels_last=True)
    finish = Finish([0.5] * 3, [0.5] * 3, device, channels_last=True)
    backend = resolve_backend("auto", records, recipe, device)
    loader = Loader(records, recipe, seed=0, backend=backend, finish=finish, device=device)
    positions = np.arange(len(records))
    return np.concatenate(
        [teacher(b).numpy() for b in loader.batches(positions, np.zeros_like(positions, np.int32), 256)]
    )


def top_k(true: np.ndarray, k: int) -> np.ndarray:
    """float64 [N, C]: the logits that a top-K file gives back."""
    true = true.astype(np.float64)
    if k >= true.shape[1]:
        return true
    order = np.argsort(-true, axis=1)
    rest = np.take_along_axis(true, order[:, k:], axis=1)
    largest = rest.max(axis=1, keepdims=True)
    value = largest + np.log(np.exp(rest - largest).mean(axis=1, keepdims=True))
    stored = np.broadcast_to(value, true.shape).copy()
    np.put_along_axis(stored, order[:, :k], np.take_along_axis(true, order[:, :k], axis=1), axis=1)
    return stored


def log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def lost(true: np.ndarray, stored: np.ndarray, temperature: float) -> float:
    """Share of the teacher's information that the stored form loses."""
    a, b = log_softmax(true, temperature), log_softmax(stored, temperature)
    weights = np.exp(a)
    return float((weights * (a - b)).sum() / (weights * (a + np.log(true.shape[1]))).sum())


def table(true: np.ndarray) -> str:
    """Markdown: bytes of a record and loss at each temperature."""
    classes = true.shape[1]
    forms = {
        codec: (payload_bytes(codec, classes), decode(encode(torch.from_numpy(true), codec), codec).numpy())
        for codec in CODECS
    }
    forms |= {f"top-{k}": (min(k, classes) * 6 + 4, top_k(true, k)) for k in TOP_K}
    heads = [f"T = {t:g}" for t in TEMPERATURES]
    lines = [f"| form | bytes a record | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
    for name, (size, stored) in forms.items():
        shares = [f"{lost(true, stored, t):.2e}" for t in TEMPERATURES]
        lines.append(f"| {name} | {size} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("file", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    text = table(true_logits(options.run, Records(options.file)))
    print(text)
    if options.markdown:
        write_bytes_atomic(options.markdown, text.encode())


if __name__ == "__main__":
    main()
