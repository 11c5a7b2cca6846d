"""Splits a user's own images into training, validation and test.

The samples of each class are ranked by a hash of key and seed; test takes the first, val the next, train the rest. So every
class is divided by the requested shares, to the nearest image, and a sample's part depends only on the seed and the keys of its
own class, not on the machine, the folder's place, the order of its files or any other class.

Exact shares, and parts that never change as a class grows, exclude each other (an image alone in its class must train; of a
hundred, ten must not). Here m new images in a class move about 0.5 * sqrt(m) of its older ones (100 move 5); all others stay.
"""

from collections import defaultdict
from collections.abc import Sequence

from pipelines.records.layout import hash63, sample_key
from pipelines.records.workers import Sample

PARTS = ("train", "val", "test")


def held_out(images: int, val: float, test: float) -> tuple[int, int]:
    """For a class: number of images in test, and in test and val together; nearest to the shares, at least one trains.

    The two are rounded together, so that a small class gives up no more images than the sum of the shares asks for.
    """
    return min(images - 1, int(images * test + 0.5)), min(images - 1, int(images * (test + val) + 0.5))


def split_samples(samples: Sequence[Sample], val: float, test: float, seed: int) -> dict[str, list[Sample]]:
    """The samples of each part, in the given order; val and test are shares, 0 <= val + test < 1."""
    classes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, sample in enumerate(samples):
        both = seed.to_bytes(8, "little") + sample_key(sample.name).to_bytes(8, "little")
        classes[sample.label].append((hash63(both), number))
    part_of = ["train"] * len(samples)
    for members in classes.values():
        testing, held = held_out(len(members), val, test)
        for rank, (_, number) in enumerate(sorted(members)[:held]):
            part_of[number] = "test" if rank < testing else "val"
    return {part: [sample for sample, own in zip(samples, part_of, strict=True) if own == part] for part in PARTS}
