"""Online teachers and targets from a cache: the right network on the right pixels, checked when promised."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.registry import ModelSpec, build_model
from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe
from pipelines.batch import Batch, Plan
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits import CacheWriter, Ensemble, LogitCache
from pipelines.logits.fingerprint import Fingerprinter
from pipelines.logits.identity import cache_identity, differences, identity_hash, view_identity
from pipelines.records.reader import Records
from train.networks.final import save_final
from train.networks.info import ModelInfo
from train.networks.weights import read_run, weights_hash
from train.objectives.targets import CachedTargets, Teacher

CPU = torch.device("cpu")
RECIPE = Recipe(crop="pad_crop", size=8, pad=2)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def records(tiny: Path) -> Records:
    return Records(tiny / "train.beton")


def loader_of(records: Records) -> Loader:
    """The student's loader: it normalises in its own way."""
    finish = Finish([0.5] * 3, [1.0] * 3, CPU, channels_last=False)
    return Loader(records, RECIPE, seed=0, backend="reference", finish=finish, device=CPU, workers=1)


def some_batches(records: Records, count: int = 1, size: int = 8) -> list[Batch]:
    """Batches of all positions in turn, of views 0 to 2."""
    plan = [Plan((np.arange(size) + i * size) % len(records), np.full(size, i % 3, np.int32)) for i in range(count)]
    return list(loader_of(records).stream(plan))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A small network whose running statistics differ from those of any batch."""
    torch.manual_seed(0)
    model = build_model("resnet8", 5)
    for _ in range(3):
        model(torch.randn(16, 3, 8, 8) * 0.7 + 0.3)
    return model


def save(folder: Path, network: torch.nn.Module, records: Records, **meta: Any) -> Path:
    """A finished run's final weights, with the facts that train/experiment.py writes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "architecture": "resnet8",
        "class_names": list(records.class_names),
        "train_counts": records.class_counts.tolist(),
        "mean": MEAN,
        "std": STD,
        "input_size": 8,
        "recipe": {},
        "precision": "fp32",
        "method": "bsce",
    }
    save_final(folder, network.state_dict(), ModelInfo.of(known | meta))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module, records: Records) -> str:
    return str(save(tmp_path_factory.mktemp("runs") / "t", network, records))


def teacher_of(
    run: str, records: Records, size: int = 8, precision: str = "fp32", channels_last: bool = False
) -> Teacher:
    return Teacher(read_run(run), records, size, CPU, precision, channels_last)


# ---- the teacher ----


def test_a_teacher_normalises_in_its_own_way(run: str, records: Records, network: torch.nn.Module) -> None:
    """Against a forward pass by hand from the uint8 crops; the student's normalisation has no effect."""
    (batch,) = some_batches(records)
    wide = batch.pixels.permute(0, 3, 1, 2).double() / 255
    by_hand = (wide - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        expected = network(by_hand.float())
    found = teacher_of(run, records)(batch)
    assert found.dtype == torch.float32 and found.shape == (8, 5) and not found.requires_grad
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(found, network(batch.images), rtol=0, atol=1e-2)
        network.train()
        assert not torch.allclose(found, network(by_hand.float()), rtol=0, atol=1e-2)


def test_a_teacher_never_changes(run: str, records: Records) -> None:
    """Neither its statistics nor its weights change, and a sample's answer does not depend on its neighbours."""
    teacher = teacher_of(run, records)
    before = weights_hash(teacher._network.state_dict())
    batches = some_batches(records, 4)
    first = teacher(batches[0])
    for batch in batches:
        teacher(batch)
    assert torch.equal(teacher(batches[0]), first)
    assert torch.allclose(teacher(batches[0].rows(2, 5)), first[2:5], rtol=0, atol=1e-5)
    assert weights_hash(teacher._network.state_dict()) == before == teacher.identity["weights"]
    assert not any(parameter.requires_grad for parameter in teacher._network.parameters())


def test_a_teacher_in_bf16(run: str, records: Records) -> None:
    (batch,) = some_batches(records)
    exact, rough = teacher_of(run, records), teacher_of(run, records, precision="bf16")
    found = rough(batch)
    assert found.dtype == torch.float32
    gap = float((found - exact(batch)).abs().max())
    assert 0 < gap < 0.03 * float(found.abs().max())
    with torch.autocast("cpu", torch.bfloat16):  # a student's precision is not the teacher's
        assert torch.equal(exact(batch), teacher_of(run, records)(batch))
        assert float((exact(batch) - found).abs().max()) == gap


def test_channels_last_is_the_same_teacher(run: str, records: Records) -> None:
    (batch,) = some_batches(records)
    found = teacher_of(run, records, channels_last=True)(batch)
    assert torch.allclose(found, teacher_of(run, records)(batch), rtol=0, atol=1e-5)


def test_identity_of_a_teacher(run: str, records: Records, network: torch.nn.Module, tmp_path: Path) -> None:
    """It holds all that decides the logits, and nothing about where the teacher lies."""
    teacher = teacher_of(run, records)
    assert teacher.identity == {
        "weights": weights_hash(network.state_dict()),
        "architecture": "resnet8",
        "input_size": 8,
        "mean": MEAN,
        "std": STD,
        "dtype": "float32",
        "memory_format": "contiguous",
        "kind": "raw",
    }
    moved = teacher_of(str(save(tmp_path / "moved", network, records)), records)
    assert (moved.identity, moved.name, teacher.name) == (teacher.identity, "moved", "t")
    other = teacher_of(run, records, precision="bf16", channels_last=True).identity
    assert other == teacher.identity | {"dtype": "bfloat16", "memory_format": "channels_last", "head": "float32"}


def test_identities_tell_heads_and_experts_apart(records: Records, tmp_path: Path) -> None:
    identities = []
    forms = ("", " head=cosine head_scale=30", " head=cosine head_scale=20", " experts=2 expert_width=0.75")
    for i, form in enumerate(forms):
        spec = ModelSpec.parse(f"resnet8{form}", 5)
        folder = save(tmp_path / str(i), spec.build(), records, architecture=spec.architecture)
        teacher = teacher_of(str(folder), records)
        identities.append(cache_identity({}, teacher.identity | {"weights": ""}, "u8", 64))
        assert teacher.teachers[0]["architecture"] == f"resnet8{form}"
    assert len({identity_hash(identity) for identity in identities}) == 4
    assert differences(identities[0], identities[3]) == {
        "teacher.architecture": "cache 'resnet8', here 'resnet8 experts=2 expert_width=0.75'"
    }


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/model.safetensors"])
def test_a_teacher_is_named_after_its_run(run: str, records: Records, spelling: str) -> None:
    assert teacher_of(spelling.format(run), records).name == "t"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (lambda names: names[::-1], "class 0 = 'class_4', the data has 'class_0'"),
        (lambda names: [*names[:3], names[4], names[3]], "class 3 = 'class_4', the data has 'class_3'"),
        (lambda names: [*names, "more"], "6 classes, the data has 5"),
        (lambda names: names[:-1], "4 classes, the data has 5"),
    ],
)
def test_a_teacher_of_other_classes(records: Records, tmp_path: Path, names, words: str) -> None:
    theirs = names(list(records.class_names))
    run = save(tmp_path / "other", build_model("resnet8", len(theirs)), records, class_names=theirs)
    with pytest.raises(UserError, match=rf"distill.teacher=.*other was trained on other classes: {words}"):
        teacher_of(str(run), records)


def test_a_teacher_of_another_input_size(run: str, records: Records) -> None:
    with pytest.raises(UserError, match=r"was trained on 8-pixel views, data.recipe.size is 32: make them equal"):
        teacher_of(run, records, size=32)


# ---- targets from a cache ----


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory, records: Records) -> Path:
    """Three views of made-up logits, with the fingerprints of the true crops."""
    view = view_identity(records, RECIPE, 0, "reference")
    identity = cache_identity(view, {"weights": "ab" * 32, "architecture": "resnet8"}, "f32", 118)
    writer = CacheWriter(tmp_path_factory.mktemp("caches"), "t", identity, records.rows())
    by_key = np.argsort(records.keys)
    for number in range(3):
        plan = [Plan(by_key, np.full(len(by_key), number, np.int32))]
        (batch,) = loader_of(records).stream(plan)
        logits = np.random.default_rng(number).normal(0, 3, (len(by_key), 5)).astype(np.float32)
        writer.write((number, 0), logits, Fingerprinter()(batch.pixels))
    writer.finish(3, {})
    return writer.folder


def targets_of(
    folder: Path, check: str = "epoch", pixels: str = "close", every: int = 4
) -> tuple[CachedTargets, list[str]]:
    said: list[str] = []
    return CachedTargets(Ensemble([LogitCache(folder)]), CPU, check, pixels, every, said.append), said


def nudged(batch: Batch) -> Batch:
    """The view as from another decoder: every channel one level off."""
    return batch._replace(pixels=torch.where(batch.pixels < 255, batch.pixels + 1, batch.pixels - 1))


def wrong(batch: Batch) -> Batch:
    """Pixels of another view under the same keys and view numbers."""
    return batch._replace(pixels=batch.pixels.flip(2))


def test_targets_are_those_of_the_cache(cache_folder: Path, records: Records) -> None:
    targets, said = targets_of(cache_folder)
    cache = LogitCache(cache_folder)
    for batch in some_batches(records, 7):
        found = targets(batch)
        assert found.dtype == torch.float32 and not found.requires_grad
        assert torch.equal(found, cache.gather(batch.keys, batch.views))
    assert said == ["cache: the pixels are those the teacher saw (equal hashes)"]


@pytest.mark.parametrize(
    ("check", "checked"),
    [("open", {0, 1}), ("epoch", {0, 1, 4, 8, 12}), ("always", set(range(14)))],
)
def test_when_pixels_are_checked(cache_folder: Path, records: Records, check: str, checked: set[int]) -> None:
    """Wrong pixels in batch i of 14 are refused exactly where a check is due (every: 4)."""
    batches = some_batches(records, 14)
    for i in range(14):
        targets, _ = targets_of(cache_folder, check)
        for batch in batches[:i]:
            targets(batch)
        if i in checked:
            with pytest.raises(UserError, match="the teacher saw other pixels than this run shows under the same keys"):
                targets(wrong(batches[i]))
        else:
            targets(wrong(batches[i]))


def test_one_wrong_sample_of_a_batch_is_enough(cache_folder: Path, records: Records) -> None:
    (batch,) = some_batches(records)
    pixels = batch.pixels.clone()
    pixels[5] = 255 - pixels[5]
    with pytest.raises(UserError, match="other pixels"):
        targets_of(cache_folder)[0](batch._replace(pixels=pixels))
    with pytest.raises(UserError, match="other pixels"):  # right pixels, another view's number
        targets_of(cache_folder)[0](batch._replace(views=batch.views + 1))


def test_other_pixels_of_the_same_view_are_announced_once(cache_folder: Path, records: Records) -> None:
    same, close = (
        "the pixels are those the teacher saw",
        "the views are those the teacher saw, through slightly other pixels",
    )
    batches = some_batches(records, 9)
    for shown, heard in (
        ([nudged] * 9, [close]),
        ([lambda b: b] * 5 + [nudged] * 4, [same, close]),
        ([nudged] * 5 + [lambda b: b] * 4, [close]),
    ):
        targets, said = targets_of(cache_folder, "always")
        for show, batch in zip(shown, batches, strict=True):
            targets(show(batch))
        assert len(said) == len(heard)
        assert all(line.startswith(f"cache: {start}") for line, start in zip(said, heard, strict=True))


def test_other_pixels_of_the_same_view_can_be_refused(cache_folder: Path, records: Records) -> None:
    (batch,) = some_batches(records)
    targets, said = targets_of(cache_folder, pixels="same")
    targets(batch)
    with pytest.raises(UserError, match="which cache.pixels=same refuses; use cache.pixels=close"):
        targets(nudged(batch))
    assert len(said) == 1
