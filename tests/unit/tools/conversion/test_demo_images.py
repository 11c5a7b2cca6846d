"""tools/conversion/demo_images.py: counts, determinism, what the files are, and what write_demo refuses to replace."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UserError
from tools.conversion import demo_images
from tools.conversion.demo_images import CLASSES, SIDES, class_name, draw, image_count, write_demo

# By frequency rank, as 300 * (6 / 300) ** (rank / 19) rounds.
TRAIN_COUNTS = [300, 244, 199, 162, 132, 107, 87, 71, 58, 47, 38, 31, 25, 21, 17, 14, 11, 9, 7, 6]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set, as a user gets it."""
    out = tmp_path_factory.mktemp("demo") / "new" / "images"
    write_demo(out)
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three training images and one test image per class."""
    for name, count in (("HEAD_IMAGES", 3), ("TAIL_IMAGES", 3), ("TEST_IMAGES", 1)):
        monkeypatch.setattr(demo_images, name, count)


def contents(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_counts_and_names(demo: Path) -> None:
    expected = {
        f"{split}/{class_name(rank)}/{number:04d}.jpg"
        for rank, count in enumerate(TRAIN_COUNTS)
        for split, images in (("train", count), ("test", 50))
        for number in range(images)
    }
    assert len(expected) == 1586 + 1000
    assert set(contents(demo)) == expected
    assert sorted(path.name for path in demo.iterdir()) == ["test", "train"]


def test_class_order() -> None:
    names = [class_name(rank) for rank in range(CLASSES)]
    assert len(set(names)) == CLASSES == 20
    assert names[:3] == ["striped-star", "dotted-heart", "ringed-gear"] and names[-1] == "checked-flower"
    frequent = [set(words) for words in zip(*(name.split("-") for name in names[:6]), strict=True)]
    rare = [set(words) for words in zip(*(name.split("-") for name in names[14:]), strict=True)]
    assert frequent == rare  # every pattern and every silhouette is among the frequent and the rare classes
    groups = [sum(count > 100 for count in TRAIN_COUNTS), sum(count < 20 for count in TRAIN_COUNTS)]
    assert groups == [6, 6]


def test_files_are_rgb_jpegs_of_many_sizes(demo: Path) -> None:
    shapes = set()
    for path in demo.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.mode == "RGB", path
            assert np.asarray(image).std() > 2, path  # decodes, and is not blank
            shapes.add(image.size)
    sides = {side for shape in shapes for side in shape}
    assert min(sides) >= SIDES[0] == 40 and max(sides) == SIDES[1] == 96
    assert len(shapes) > 500
    aspects = np.array([width / height for width, height in shapes])
    assert aspects.min() < 0.75 and aspects.max() > 1.33 and aspects.min() > 1 / 1.52 and aspects.max() < 1.52


def test_no_image_twice(demo: Path) -> None:
    digests = contents(demo).values()
    assert len(set(digests)) == len(digests)


@pytest.mark.usefixtures("small")
def test_bytes_depend_on_the_seed_alone(tmp_path: Path, demo: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_demo(tmp_path / name, seed)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys() and not set(first.values()) & set(other.values())
    whole = contents(demo)
    assert all(whole[name] == digest for name, digest in first.items())  # independent of the counts


def test_classes_look_different() -> None:
    """From the same draws of pose, clutter and noise, every other class gives another image."""
    images = [draw(np.random.RandomState(5), class_name(rank)) for rank in range(CLASSES)]
    for rank, image in enumerate(images):
        others = (other for other in images[rank + 1 :])
        assert all(np.abs(image.astype(int) - other).mean() > 1 for other in others), class_name(rank)


@pytest.mark.parametrize("name", demo_images.SILHOUETTES)
def test_silhouettes_survive_a_flip(name: str) -> None:
    """Each outline has an axis of symmetry: its mirror image is a rotation of it; and it fits its size."""
    radius = demo_images.SILHOUETTES[name].radius
    angle = np.linspace(-np.pi, np.pi, 721)
    for n in (5, 6, 7):
        mirrored = radius(np.pi - angle if name == "heart" else -angle, n)
        assert np.allclose(radius(angle, n), mirrored, atol=1e-9)
        assert 0.2 < radius(angle, n).min() < 0.9 and 0.95 < radius(angle, n).max() < 1.2


@pytest.mark.parametrize("name", demo_images.PATTERNS)
def test_patterns_survive_a_flip(name: str) -> None:
    """Each equals its own mirror image, and leaves between a quarter and three quarters of the surface bare."""
    wave = demo_images.PATTERNS[name].wave
    u, v = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201))
    assert np.allclose(wave(u, v), wave(-u, v)) and np.allclose(wave(u, v), wave(u, -v))
    assert 0.25 < (wave(u, v) < 0).mean() < 0.75


@pytest.mark.usefixtures("small")
def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    write_demo(tmp_path, 1)
    extra = tmp_path / "train" / class_name(0) / "0999.jpg"
    extra.write_bytes(b"from a longer profile")
    unfinished = tmp_path / ".train.unfinished" / "left" / "over"
    unfinished.mkdir(parents=True)
    (tmp_path / "train.beton").write_bytes(b"not ours to touch")
    write_demo(tmp_path, 0)
    write_demo(tmp_path / "fresh", 0)
    assert contents(tmp_path / "fresh") == {
        name: digest for name, digest in contents(tmp_path).items() if name.split("/")[0] in ("train", "test")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "test", "train", "train.beton"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "name",
    ["test/cat/0000.jpg", "test/striped-star/me.jpg", "test/striped-star/a/0000.jpg", "test/a.txt", "test"],
)
def test_foreign_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is to be replaced; give another folder"):
        write_demo(tmp_path)
    assert contents(tmp_path) == before


def test_bad_arguments(tmp_path: Path) -> None:
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed {seed} is not in 0..4294967295"):
            write_demo(tmp_path, seed)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; give a folder"):
        write_demo(tmp_path / "file")


def test_counts_follow_the_profile() -> None:
    assert [image_count("train", rank) for rank in range(CLASSES)] == TRAIN_COUNTS
    assert {image_count("test", rank) for rank in range(CLASSES)} == {50}
