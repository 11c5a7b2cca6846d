"""The mismatch drill: everything in a cache that does not match the student is refused by name; what does not matter passes.

From the command line, on real JPEG records: a teacher, its cache, and students whose data or settings changed afterwards.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import run, tiny_config
from PIL import Image

from pipelines.records.workers import Sample
from pipelines.records.writing import Encoding, write_records

DIVE = "  tau: 3\n  p: 0.5\n  alpha: 0.5\n"
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
COUNT = 45
RECIPE = ["data.recipe.crop=random_resized_crop", "data.backend=reference"]


def draw(folder: Path, seed: int) -> None:
    """COUNT smooth pictures of 216 x 168 pixels as JPEG files."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((216, 168), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)


def samples(folder: Path, numbers: Sequence[int] = range(COUNT)) -> list[Sample]:
    return [Sample(f"p/{i}.jpg", i % len(CLASSES), folder / f"{i}.jpg") for i in numbers]


def write(path: Path, items: Sequence[Sample], classes: Sequence[str] = CLASSES, **options: object) -> None:
    write_records(path, items, classes, kind="test", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with train.beton, test.beton, the teachers t and t2, and the cache of t in caches/."""
    folder = tmp_path_factory.mktemp("mismatch")
    draw(folder / "images", 0)
    draw(folder / "others", 1)
    for name in ("train", "test"):
        write(folder / f"{name}.beton", samples(folder / "images"))
    short = ["schedule.epochs=2", *RECIPE]
    bsce, dive = tiny_config(folder, folder, "bsce"), tiny_config(folder, folder, "dive", DIVE)
    run("teacher", bsce, "run=t", "data.seed=1", *short, cwd=folder)
    run("teacher", bsce, "run=t2", "data.seed=1", "seed=5", *short, cwd=folder)
    run("cache_logits", dive, "distill.teacher=t", *short, cwd=folder)
    return folder


def student(work: Path, *settings: object) -> tuple[int, str]:
    """(exit code, all output) of a student's start: everything is opened, and one batch goes through."""
    usual = ["cache.paths=[caches]", "schedule.epochs=2", *RECIPE, "--dry-run"]
    done = run("distill", work / "dive.yaml", *usual, *settings, cwd=work, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_student_itself_fits(work: Path) -> None:
    code, said = student(work, "distill.teacher=t", "cache.pixels=same", "cache.check=always")
    assert code == 0 and "the pixels are those the teacher saw" in said, said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distill.teacher=t2"], "teacher.weights: another teacher"),
        (["data.recipe.scale=[0.2,1.0]"], "recipe.scale"),
        (["data.recipe.crop=center"], "recipe.crop"),
        (["data.recipe.flip=false"], "recipe.flip"),
        (["data.recipe.jitter=[0.4,0.4,0.4]"], "recipe.jitter"),
        (["data.seed=9"], "data_seed: cache 0, here 9"),
        (["data.views=3"], "holds 2 views, this run uses 3"),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_name(work: Path, settings: list[str], words: str) -> None:
    code, said = student(work, *settings)
    assert code == 2 and words in said, said


def test_the_students_own_normalisation_is_its_own_affair(work: Path) -> None:
    """The cache holds the teacher's answers on pixels that it normalised itself."""
    code, said = student(work, "data.mean=[0.1,0.1,0.1]", "data.std=[0.5,0.5,0.5]", "cache.pixels=same")
    assert code == 0, said


def replaced(work: Path) -> list[Sample]:
    """Picture 7 is replaced by another of the same name and size."""
    return [s if i != 7 else s._replace(image=work / "others/7.jpg") for i, s in enumerate(samples(work / "images"))]


def relabelled(work: Path) -> list[Sample]:
    return [s if i != 7 else s._replace(label=(s.label + 1) % 5) for i, s in enumerate(samples(work / "images"))]


def another_dataset(work: Path) -> list[Sample]:
    return [s._replace(name=f"q/{i}") for i, s in enumerate(samples(work / "others"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [(replaced, "source"), (relabelled, "label"), (another_dataset, "is not in it")],
)
def test_other_images_are_refused(work: Path, tmp_path: Path, change: Callable, words: str) -> None:
    write(tmp_path / "train.beton", change(work))
    code, said = student(work, f"data.train={tmp_path}/train.beton")
    assert code == 2 and "another dataset" in said and words in said, said


def test_permuted_classes_are_refused(work: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.beton", samples(work / "images"), [CLASSES[i] for i in (1, 0, 2, 3, 4)])
    both = [f"data.train={tmp_path}/train.beton", f"data.test={tmp_path}/train.beton"]
    code, said = student(work, *both)
    assert code == 2 and "class_names" in said and "'ant'" in said, said


def test_another_stored_size_is_close_or_refused(work: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.beton", samples(work / "images"), encoding=Encoding(short_side=144))
    data = f"data.train={tmp_path}/train.beton"
    code, said = student(work, data)
    assert code == 0 and "cache differs in size_rule" in said and "through slightly other pixels" in said, said
    code, said = student(work, data, "cache.pixels=same")
    assert code == 2 and "size_rule" in said, said


def test_restart_markers_are_no_difference(work: Path, tmp_path: Path) -> None:
    """A cache of records with them serves records without, and the reverse."""
    write(tmp_path / "train.beton", samples(work / "images"), encoding=Encoding(restarts=False))
    plain = f"data.train={tmp_path}/train.beton"
    code, said = student(work, plain, "cache.pixels=same", "cache.check=always")
    assert code == 0 and "the pixels are those the teacher saw" in said, said
    cache = f"cache.dir={tmp_path}/caches"
    run("cache_logits", work / "dive.yaml", "distill.teacher=t", plain, cache, "schedule.epochs=2", *RECIPE, cwd=work)
    code, said = student(work, f"cache.paths=[{tmp_path}/caches]", "cache.pixels=same", "cache.check=always")
    assert code == 0 and "the pixels are those the teacher saw" in said, said


def test_an_image_that_only_claims_to_be_the_same_is_refused_by_its_pixels(work: Path, tmp_path: Path) -> None:
    """Rows equal to the cached ones, but other pixels, as in a forged or mixed-up record file: fingerprints tell."""
    from pipelines.records.reader import Records

    other = tmp_path / "other.beton"
    write(other, [s._replace(name=f"p/{i}.jpg") for i, s in enumerate(samples(work / "others"))])
    honest, forged = Records(work / "train.beton"), Records(other)
    data = bytearray(other.read_bytes())
    graft_sources(data, honest, forged)
    other.write_bytes(data)
    code, said = student(work, f"data.train={other}")
    assert code == 2 and "the teacher saw other pixels" in said, said


def graft_sources(data: bytearray, honest, forged) -> None:
    """Give a record file the source hashes of another, with every checksum right."""
    import json
    import zlib

    from pipelines.records import layout

    table = np.frombuffer(data, layout.TABLE, len(forged), layout.TABLE_START)
    table["f5"] = honest.sources
    end = int(np.frombuffer(data, layout.HEADER, 1)["alloc_table_ptr"][0])
    footer = np.frombuffer(data, layout.FOOTER, 1, end - layout.FOOTER.itemsize)
    start, size = int(footer["manifest_offset"][0]), int(footer["manifest_size"][0])
    manifest = json.loads(bytes(data[start : start + size]))
    manifest["digest"] = honest.digest
    text = json.dumps(manifest, sort_keys=True, indent=1).encode("ascii")
    assert len(text) == size
    data[start : start + size] = text
    footer["manifest_crc"] = zlib.crc32(text)
    footer["head_crc"] = zlib.crc32(data[: layout.TABLE_START + table.nbytes])
    footer["crc"] = layout.footer_crc(footer)


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        (np.random.default_rng(3).permutation(COUNT).tolist(), "equal hashes"),
        (list(range(0, COUNT, 2)), "23 of the cache's 45 samples"),
        (list(range(5, 25)), "20 of the cache's 45 samples"),
    ],
    ids=["shuffled", "half", "twenty"],
)
def test_another_order_or_a_part_of_the_data_still_works(
    work: Path, tmp_path: Path, numbers: list[int], note: str
) -> None:
    write(tmp_path / "train.beton", samples(work / "images", numbers))
    code, said = student(work, f"data.train={tmp_path}/train.beton", "cache.pixels=same", "cache.check=always")
    assert code == 0 and note in said and "equal hashes" in said, said


def test_a_moved_cache_works(work: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(work / "caches", tmp_path / "elsewhere")
    code, said = student(work, f"cache.paths=[{tmp_path}/elsewhere]", "distill.teacher=t")
    assert code == 0, said
