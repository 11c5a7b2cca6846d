"""Where probability goes: of a cache that a run was distilled from, and of the run itself."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.report_runs import COUNTS, config, made_run, material, predictions
from helpers.small_caches import make_cache, make_records, some_samples

from pipelines.errors import UserError
from pipelines.logits import LogitCache
from pipelines.logits.folder import open_folder
from pipelines.logits.identity import identity_hash
from pipelines.records.reader import Records
from tools.reporting.virtual_examples import of_run, of_teacher, section


def student(folder: Path, cache: LogitCache, path: Path, digest: str | None = None, train: Records | None = None):
    """train: the records that it was trained on, where they are not those of the cache."""
    settings = config(method="dive", tau=3.0, p=0.5)
    settings = replace(settings, cache=replace(settings.cache, paths=[str(path)]))
    counts = np.bincount(open_folder(cache.folder).rows["label"], minlength=cache.classes)
    if train is not None:
        settings, counts = replace(settings, data=replace(settings.data, train=str(train.path))), train.class_counts
    facts = {"tau": 3.0, "caches": [digest or identity_hash(cache.identity).hex()], "backend": "ffcv"}
    (folder / "checkpoints").mkdir(parents=True)
    files = {"run.json": {"facts": facts, "sessions": []}, "result.json": {}}
    return made_run("dive", folder, files=files, config=settings, predictions=SimpleNamespace(train_counts=counts))


def test_of_a_cache(tmp_path: Path, few: Records) -> None:
    cache = LogitCache(make_cache(tmp_path / "caches", few))
    found = of_teacher(student(tmp_path / "run", cache, cache.folder.parent))
    logits = cache.gather(few.keys, np.zeros(len(few.keys), np.int32))
    assert found.temperature == 6 and found.counts.tolist() == few.class_counts.tolist()
    for temperature, values in ((1, found.raw), (6, found.soft)):
        assert values == pytest.approx(torch.softmax(logits / temperature, dim=1).sum(dim=0).numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "xerm"}, "xerm has no temperature"),
        ({"zscore": True}, "standardises the logits"),
        ({"method": "bkd"}, "bkd weights their classes"),
        ({"method": "kd", "sampling": "class_balanced"}, "data.sampling=class_balanced draws the images by class"),
        ({"method": "dive", "sampling": "square_root"}, "data.sampling=square_root draws the images by class"),
    ],
)
def test_other_targets_are_not_shown_as_those_of_dive(
    tmp_path: Path, few: Records, settings: dict[str, Any], words: str
) -> None:
    cache = LogitCache(make_cache(tmp_path / "caches", few))
    run, sampling = student(tmp_path / "run", cache, cache.folder), settings.pop("sampling", "instance")
    assert run.config is not None
    distill = replace(run.config.distill, p=1.0, **settings)
    changed = replace(run.config, distill=distill, data=replace(run.config.data, sampling=sampling))
    with pytest.raises(UserError, match=f"was not trained on its teacher's softmax, .*: .*{words}"):
        of_teacher(replace(run, config=changed))
    plain = replace(distill, method="bkd", bkd_beta=0.0, zscore=False)  # what others read means nothing here
    assert of_teacher(replace(run, config=replace(run.config, distill=plain))).temperature == 3


def test_a_part_of_a_cache(tmp_path: Path, few: Records) -> None:
    """A student may be trained on a part of its cache's images: what others would have been taught is not its own."""
    cache = LogitCache(make_cache(tmp_path / "caches", few))
    samples = [sample for sample in some_samples(len(few)) if sample.label % 2 or sample.name.endswith("3")]
    part = make_records(tmp_path / "part.beton", samples)
    assert 0 < len(part) < len(few) and set(part.keys) < set(few.keys)
    found = of_teacher(student(tmp_path / "run", cache, cache.folder, train=part))
    logits = cache.gather(part.keys, np.zeros(len(part.keys), np.int32))
    assert found.counts.tolist() == part.class_counts.tolist()
    assert found.soft == pytest.approx(torch.softmax(logits / 6, dim=1).sum(dim=0).numpy(), rel=1e-5)


def test_a_cache_that_is_not_at_hand(tmp_path: Path, few: Records) -> None:
    cache = LogitCache(make_cache(tmp_path / "caches", few))
    other = student(tmp_path / "run", cache, cache.folder, digest="0" * 64)
    with pytest.raises(UserError, match="is not at hand"):
        of_teacher(other)
    made = section(material(replace(other, predictions=made_run("x").predictions)))
    assert "type cache.paths=[FOLDER]" in made.notes[0] and [table.title for table in made.tables] == [
        "Where the predictions go, test split"
    ]


def test_where_the_predictions_go() -> None:
    """One image of each class, all of which are taken for the first class with probability 1/2."""
    shares = np.full((6, 6), 0.1)
    shares[:, 0] = 0.5
    (entry,) = material(made_run("a", predictions=predictions(np.log(shares), np.arange(6)))).entries
    found = of_run(entry)
    assert COUNTS[0] > 100 and found.mass == pytest.approx([0.6, 0.2, 0.2])
    assert found.predicted == pytest.approx([1, 0, 0]) and found.images == pytest.approx([1 / 3] * 3)
