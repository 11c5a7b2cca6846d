"""Which of one's own images train, which validate and which test.

Each class is ranked by a hash of its samples' keys and the seed; test takes the first, val the next, train the rest. So every
class is divided by the shares asked for, to the nearest image, and a sample's part follows from the seed and the keys of its
own class: neither the machine, the folder's place, the order of its files nor any other class has a say.

Exact shares and parts that never change as a class grows exclude each other (an image alone in its class must train; of a
hundred, ten must not). Here m new images in a class move some 0.5 * sqrt(m) of its older ones (100 move 5); all others stay.
"""

from collections import defaultdict
from collections.abc import Sequence

from pipelines.records.layout import hash63, sample_key
from pipelines.records.writing import Sample

PARTS = ("train", "val", "test")


def held_out(images: int, val: float, test: float) -> tuple[int, int]:
    """Of a class: how many images test, and how many test or validate; nearest to the shares, one always trains.

    Rounded together, so that a small class loses no more to both than their sum asks for.
    """
    return min(images - 1, int(images * test + 0.5)), min(images - 1, int(images * (test + val) + 0.5))


def split_samples(samples: Sequence[Sample], val: float, test: float, seed: int) -> dict[str, list[Sample]]:
    """The samples of each part, in their order; val and test are shares, 0 <= val + test < 1."""
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
