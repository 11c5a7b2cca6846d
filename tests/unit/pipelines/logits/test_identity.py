"""Identities: one spelling, every field that decides a target in it, differences named by their dotted field."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.small_caches import CLASSES, RECIPE, TEACHER, identity_of, make_records, some_samples
from PIL import Image

from pipelines.augment.geometry import VERSIONS
from pipelines.augment.recipe import Recipe
from pipelines.logits.identity import (
    cache_identity,
    differences,
    distinctions,
    identity_bytes,
    identity_hash,
    view_identity,
)
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import Encoding, write_records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("records") / "a.beton", some_samples(12))


def test_one_spelling() -> None:
    """The order in which a dictionary was filled does not matter; its bytes and hash are committed."""
    one = {"b": [1.5, 0.1], "a": {"y": None, "x": "é"}}
    other = {"a": {"x": "é", "y": None}, "b": [1.5, 0.1]}
    spelt = b'{\n "a": {\n  "x": "\\u00e9",\n  "y": null\n },\n "b": [\n  1.5,\n  0.1\n ]\n}\n'
    assert identity_bytes(one) == identity_bytes(other) == spelt
    assert identity_hash(one).hex() == "cf54c540ec1580dbee91781057c0a5197177fa6c9b9a2436c4606a1300dbdbf5"
    assert json.loads(identity_bytes(one)) == one


def test_any_class_name_can_be_spelt(tmp_path: Path) -> None:
    """Folder names that are not UTF-8 reach Python as surrogates."""
    names = ["häuser", "\udcff", "日本", 'a"b', "e"]
    identity = identity_of(make_records(tmp_path / "a.beton", some_samples(10), names))
    assert json.loads(identity_bytes(identity))["dataset"]["class_names"] == names


def test_what_an_identity_holds(records: Records) -> None:
    """The list of fields, spelt out: a lost field would let a foreign cache in."""
    identity = identity_of(records, codec="u8", batch=7, seed=3)
    assert identity == {
        "format": 2,
        "teacher": TEACHER,
        "codec": "u8",
        "batch": 7,
        "dataset": {"digest": records.digest, "class_names": CLASSES},
        "recipe": {"crop": "pad_crop", "size": 4, "flip": True, "pad": 1},
        "data_seed": 3,
        "size_rule": "pixels",
        "backend": "reference",
        "versions": {"views": 1, "resample": 2, "finish": 1},
    }


def test_no_path_no_host_no_time(records: Records, tmp_path: Path) -> None:
    again = make_records(tmp_path / "elsewhere.beton", some_samples(12)[::-1])
    assert identity_of(again) == identity_of(records)
    assert str(tmp_path.anchor + tmp_path.parts[1]) not in identity_bytes(identity_of(again)).decode()


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (Recipe(crop="center", size=4), "recipe.crop"),
        (dataclasses.replace(RECIPE, size=5), "recipe.size"),
        (dataclasses.replace(RECIPE, pad=2), "recipe.pad"),
        (dataclasses.replace(RECIPE, flip=False), "recipe.flip"),
    ],
)
def test_every_setting_of_a_recipe_counts(records: Records, recipe: Recipe, field: str) -> None:
    other = view_identity(records, recipe, 0, "reference")
    found = differences(identity_of(records), other)
    assert field in found and all(name.startswith("recipe.") or name == "versions.views" for name in found)
    assert other["versions"]["views"] == VERSIONS[recipe.crop]


@pytest.mark.parametrize(
    ("a", "b", "field"),
    [
        (Recipe(scale=[0.08, 1.0]), Recipe(scale=[0.1, 1.0]), "recipe.scale"),
        (Recipe(ratio=[0.75, 1.25]), Recipe(ratio=[0.75, 1.3]), "recipe.ratio"),
        (Recipe(crop="resize_crop"), Recipe(crop="resize_crop", short_side=240), "recipe.short_side"),
    ],
)
def test_ranges_and_sides_count_where_they_are_used(records: Records, a: Recipe, b: Recipe, field: str) -> None:
    one, other = (view_identity(records, recipe, 0, "reference") for recipe in (a, b))
    assert list(differences(one, other)) == [field]
    unused = dataclasses.replace(RECIPE, scale=a.scale, ratio=a.ratio, short_side=a.short_side)
    unused_too = dataclasses.replace(RECIPE, scale=b.scale, ratio=b.ratio, short_side=b.short_side)
    assert not differences(*(view_identity(records, recipe, 0, "reference") for recipe in (unused, unused_too)))


def test_differences_name_field_and_values() -> None:
    cached = {"recipe": {"pad": 4, "crop": "pad_crop"}, "names": ["a", "b", "c", "d", "e"], "seed": 0, "codec": "u8"}
    assert differences(cached, {"recipe": {"pad": 4, "crop": "pad_crop"}, "seed": 0}) == {}
    assert differences(cached, {"seed": 1}) == {"seed": "cache 0, here 1"}
    assert differences(cached, {"names": ["a", "b", "c", "e", "d"]}) == {"names": "cache [3]='d', here [3]='e'"}
    assert differences(cached, {"names": list("abcdef")}) == {"names": "cache 5 entries, here 6 entries"}
    assert differences(cached, {"names": ["z"]})["names"].endswith("here ['z']")


def test_a_field_that_only_one_side_has_is_a_difference() -> None:
    """A transform that only the teacher's views had must not pass because the student's identity lacks it."""
    plain, jittered = {"recipe": {"crop": "center"}}, {"recipe": {"crop": "center", "jitter": [0.4, 0.4]}}
    assert differences(jittered, plain) == {"recipe.jitter": "cache [0.4, 0.4], here nothing"}
    assert differences(plain, jittered) == {"recipe.jitter": "cache nothing, here [0.4, 0.4]"}
    assert differences(plain, {"recipe": {"crop": "center"}, "new": 1}) == {"new": "cache nothing, here 1"}
    assert differences(plain | {"batch": 7}, plain) == {}  # not known to the student


def test_distinctions_are_what_tells_several_apart() -> None:
    identities = [
        cache_identity({"data_seed": 0}, {"weights": "a" * 64}, "u8", 64),
        cache_identity({"data_seed": 0}, {"weights": "b" * 64}, "u8", 64),
        cache_identity({"data_seed": 0}, {"weights": "b" * 64, "ema": True}, "f32", 64),
    ]
    assert distinctions(identities) == [
        "codec u8, teacher.ema None, teacher.weights aaaaaaaaaaaa",
        "codec u8, teacher.ema None, teacher.weights bbbbbbbbbbbb",
        "codec f32, teacher.ema True, teacher.weights bbbbbbbbbbbb",
    ]
    architectures = ["resnet32 experts=4 expert_width=0.75", "resnet32 experts=6 expert_width=0.75"]
    several = [cache_identity({}, {"architecture": architecture}, "u8", 64) for architecture in architectures]
    assert distinctions(several) == [f"teacher.architecture {architecture}" for architecture in architectures]


def test_the_size_images_are_stored_at_counts(tmp_path: Path) -> None:
    """The digest covers the originals: two conversions of one folder share it, but not their pixels."""
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    samples = [Sample(f"{i}.jpg", 0, tmp_path / f"{i}.jpg") for i in range(3)]
    views = []
    for encoding in (Encoding(), Encoding(short_side=20), Encoding(short_side=20, quality=90), Encoding(max_side=30)):
        write_records(tmp_path / "r.beton", samples, ["a"], kind="test", encoding=encoding, force=True)
        views.append(view_identity(Records(tmp_path / "r.beton"), Recipe(size=16), 0, "reference"))
    assert len({view["dataset"]["digest"] for view in views}) == 1
    assert len({view["size_rule"] for view in views}) == 4
    write_records(tmp_path / "r.beton", samples, ["a"], kind="test", encoding=Encoding(restarts=False), force=True)
    assert view_identity(Records(tmp_path / "r.beton"), Recipe(size=16), 0, "reference") == views[0], "the same pixels"
    assert differences(views[0], views[1]) == {
        "size_rule": "cache 'max_side None, quality 95, short_side None', here 'max_side None, quality 95, short_side 20'"
    }
