"""What a conversion would write, told without writing it. Invariant: no file is made, changed or removed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import printable, quoted
from pipelines.records.encoding import Encoding, Stored
from pipelines.records.workers import Sample, Streamed, Unreadable, encode_sample
from pipelines.records.writing import UnreadableImages, check_samples
from train.watch.text import megabytes

TRIED = 32  # images that are read and encoded


def describe(
    out: Path, samples: Sequence[Sample], class_names: Sequence[str], encoding: Encoding, skip_bad: bool
) -> None:
    """Print counts and classes, and sizes from some images that are encoded. UnreadableImages where the conversion would fail."""
    check_samples(samples, len(class_names))
    counts = np.bincount([sample.label for sample in samples], minlength=len(class_names))
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    print(printable(f"{out}: {len(samples):,} images of {len(class_names):,} classes would be written"))
    print(f"largest class: {counts[largest]:,} images ({quoted(class_names[largest])})")
    print(f"smallest class: {counts[smallest]:,} images ({quoted(class_names[smallest])})")
    names = [f"{label} {quoted(name)}" for label, name in enumerate(class_names[:3])]
    print(f"first classes: {', '.join(names)}")
    tried = _some(samples)
    encoded = [encode_sample(sample, encoding) for sample in tried]
    bad = [image for image in encoded if isinstance(image, Unreadable)]
    if bad and (not skip_bad or len(bad) == len(tried)):
        raise UnreadableImages(bad, len(tried))
    _print_sizes([image for image in encoded if isinstance(image, Stored)], len(samples))


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Images from all over the set, or its first ones where it can only be read from its start."""
    if any(isinstance(sample.image, Streamed) for sample in samples):
        return list(samples[:TRIED])
    places = np.linspace(0, len(samples) - 1, min(TRIED, len(samples))).round().astype(int)
    return [samples[place] for place in places]


def _print_sizes(stored: Sequence[Stored], samples: int) -> None:
    each = float(np.mean([len(image.payload) for image in stored]))
    original = np.median([(image.width, image.height) for image in stored], axis=0)
    kept = np.median([(image.stored_width, image.stored_height) for image in stored], axis=0)
    size = f"median {original[0]:.0f}x{original[1]:.0f}, stored as {kept[0]:.0f}x{kept[1]:.0f}"
    print(
        f"sizes, from {len(stored)} images: {size}, {each / 1000:.1f} kB each; about {megabytes(int(each * samples))} in all"
    )
