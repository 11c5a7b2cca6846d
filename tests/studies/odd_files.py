"""How near some 300 odd image files come out on every backend: python tests/studies/odd_files.py [--markdown FILE].

The files are generated (tests/helpers/odd_files.py), converted without and with the option to leave out unreadable ones, and read
by every backend that is installed. The central 64 x 64 pixels of every stored image, at a short side of 72, are compared with
the same view of Pillow's decode of the ORIGINAL file. Fails where a file that Pillow reads is missing, has another size, or
where the mean difference of its view exceeds the bound.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from helpers.odd_files import CONTENTS, many_odd_files
from PIL import Image

from pipelines.augment import geometry
from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe, view_params
from pipelines.augment.transforms import draw
from pipelines.backends.choice import available_backends
from pipelines.batch import Plan
from pipelines.files import write_bytes_atomic
from pipelines.loader import Loader
from pipelines.records.marking import marked
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import UnreadableImages, write_records

RECIPE = Recipe(
    crop="center", size=64, short_side=72, flip=False
)  # of most files, it copies pixels and resizes nothing
CPU = torch.device("cpu")
# Bounds of the mean difference of a view from the original, in grey levels: a kept file is decoded alike, up to DALI's filter
# where it resizes; JPEG coding at quality 95 moves noise by 3.
KEPT, ENCODED = 0.5, 4.0


class Outcome(NamedTuple):
    """What became of the files."""

    records: Records
    originals: dict[str, np.ndarray]  # of all that Pillow reads: uint8[height, width, 3]
    unreadable: list[str]
    files: Mapping[str, bytes]

    def names(self) -> list[str]:
        return [self.records.name(position) for position in range(len(self.records))]

    def kept(self, position: int) -> bool:
        """Whether the file is stored as it is, but for restart markers."""
        data = self.files[self.records.name(position)]
        return self.records.payload(position).tobytes() in (data, marked(data))


def decoded(data: bytes) -> np.ndarray | None:
    """What Pillow shows, the upper 8 bits of 16-bit grey; None if it cannot read the file."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
        return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def converted(files: Mapping[str, bytes], folder: Path) -> Outcome:
    """Write and convert the files, first without leaving any out."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    samples = [Sample(name, 0, folder / name) for name in files]
    out, refused = folder / "odd.beton", []
    try:
        write_records(out, samples, ["any"], kind="study")
    except UnreadableImages as error:
        refused = [image.name for image in error.images]
    unreadable = [image.name for image in write_records(out, samples, ["any"], kind="study", skip_bad=True, force=True)]
    assert unreadable == refused
    originals = {name: pixels for name, data in files.items() if (pixels := decoded(data)) is not None}
    return Outcome(Records(out), originals, unreadable, files)


def size_faults(outcome: Outcome) -> list[str]:
    """Files that Pillow reads and conversion does not or the other way round, or whose sizes differ."""
    faults = [f"{name}: Pillow reads it" for name in outcome.unreadable if name in outcome.originals]
    records = outcome.records
    for position, name in enumerate(outcome.names()):
        original = outcome.originals.get(name)
        size = records.widths[position], records.heights[position]
        if original is None or size != original.shape[1::-1]:
            faults.append(f"{name}: {size} in the record")
        elif name != "large.jpg" and size != (records.stored_widths[position], records.stored_heights[position]):
            faults.append(f"{name}: stored at another size")
    return faults


def views_of_originals(outcome: Outcome) -> np.ndarray:
    """uint8 [N, 64, 64, 3]: the view of each record, cut from the original."""
    records = outcome.records
    views = np.empty((len(records), 64, 64, 3), np.uint8)
    plan = Plan(np.arange(len(records)), np.zeros(len(records), np.int32))
    boxes = draw(view_params(RECIPE, 0), records, plan).boxes
    for position, (name, *box) in enumerate(zip(outcome.names(), *boxes, strict=True)):
        picture = outcome.originals[name]
        stored = int(records.stored_widths[position]), int(records.stored_heights[position])
        if stored != picture.shape[1::-1]:
            picture = np.asarray(Image.fromarray(picture).resize(stored, Image.Resampling.BILINEAR))
        geometry.apply(np.ascontiguousarray(picture), 0, 0, *box, views[position])
    return views


def differences(outcome: Outcome, backend: str) -> np.ndarray:
    """float [N]: mean difference of each view from the original's, in grey levels."""
    finish = Finish([0.5] * 3, [0.25] * 3, CPU, channels_last=False)
    loader = Loader(outcome.records, RECIPE, seed=0, backend=backend, finish=finish, device=CPU, workers=2)
    positions = np.arange(len(outcome.records))
    batches = loader.batches(positions, np.zeros_like(positions, np.int32), 32)
    shown = np.concatenate([item.pixels.numpy() for item in batches])
    return np.abs(shown.astype(int) - views_of_originals(outcome)).mean(axis=(1, 2, 3))


def group(outcome: Outcome, position: int) -> str:
    """The row of the table in which a file counts."""
    name = outcome.records.name(position)
    if min(outcome.originals[name].shape[:2]) < 16:
        return "a few pixels wide or high"
    content = next((content for content in CONTENTS if name.startswith(content)), "other forms, modes, endings")
    return f"{content}, {'kept' if outcome.kept(position) else 'encoded anew'}"


def bound(outcome: Outcome, position: int) -> float:
    return KEPT if outcome.kept(position) else ENCODED


def rows(outcome: Outcome, apart: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Markdown: for each group and backend, the median and the largest mean difference, and the file that has it."""
    groups: dict[str, list[int]] = {}
    for position in range(len(outcome.records)):
        groups.setdefault(group(outcome, position), []).append(position)
    yield f"| files | number | {' | '.join(f'{name}: median / worst' for name in apart)} | worst file |"
    yield f"|---|---:|{'---:|' * len(apart)}---|"
    for name, members in sorted(groups.items()):
        cells = [f"{np.median(found[members]):.2f} / {found[members].max():.2f}" for found in apart.values()]
        worst = max(members, key=lambda position: max(found[position] for found in apart.values()))
        yield f"| {name} | {len(members)} | {' | '.join(cells)} | {outcome.records.name(worst)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the text to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = converted(many_odd_files(), Path(folder))
        names, faults = outcome.names(), size_faults(outcome)
        apart = {backend: differences(outcome, backend) for backend in available_backends(outcome.records, RECIPE, CPU)}
        for backend, found in apart.items():
            faults += [
                f"{names[position]}: {found[position]:.2f} grey levels from the original on {backend}"
                for position in range(len(names))
                if found[position] > bound(outcome, position)
            ]
        table = "\n".join(rows(outcome, apart))
        kept = sum(outcome.kept(position) for position in range(len(names)))
    lines = [
        "# How near odd image files come out",
        "",
        "By `python tests/studies/odd_files.py`, which says what is compared: mean differences of views in grey levels.",
        "",
        f"{len(outcome.files)} files: {kept} kept, {len(names) - kept} encoded anew, "
        f"{len(outcome.unreadable)} unreadable. Bounds: {KEPT:g} where kept, {ENCODED:g} where encoded anew.",
        "",
        table,
        "",
        *(
            ["Outside the bounds:", "", *(f"* {fault}" for fault in faults)]
            if faults
            else ["All are within the bounds."]
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        write_bytes_atomic(options.markdown, text.encode())
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
