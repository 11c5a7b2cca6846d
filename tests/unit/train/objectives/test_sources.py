"""The teacher or cache that a configuration's targets come from, and the temperature that a cache gives."""

from pathlib import Path

import torch
from helpers.launch import losses, refused, result, run

from pipelines.logits import LogitCache
from pipelines.logits.flatness import recommend, virtual_examples
from pipelines.records.reader import Records
from train.config import Config
from train.objectives.sources import open_cache
from train.settings import load


def test_a_cache_of_another_dataset_or_teacher_is_refused(taught: Path, tiny: Path) -> None:
    dive = taught / "dive.yaml"
    # test.beton has the same classes, but none of the cached samples
    other = refused(taught, "distill", dive, "cache.paths=[caches]", f"data.train={tiny}/test.beton")
    assert "another dataset" in other
    run("teacher", taught / "bsce.yaml", "run=t2", "seed=7", "schedule.epochs=1", cwd=taught)
    assert "another teacher" in refused(taught, "distill", dive, "cache.paths=[caches]", "distill.teacher=t2")


def test_a_loss_without_a_temperature_takes_the_answers_as_they_are(taught: Path, tiny: Path) -> None:
    """Whatever temperature the configuration, which may be that of another method, says besides."""
    cached, train = (f"cache.paths=[{taught}/caches]", "distill.tau=6"), Records(tiny / "train.beton")
    for settings, temperature in ((("distill.method=xerm", "distill.p=1"), 1), (("distill.p=0.5",), 12)):
        config = load(Config, taught / "dive.yaml", (*cached, *settings))
        caches, _, _, notes = open_cache(config, train, torch.device("cpu"))
        assert caches.temperature == temperature and f"at T = {temperature}" in notes[0]


def test_weights_stay_with_their_caches(taught: Path, tiny: Path) -> None:
    """A run that goes on with its caches in another order, but not their weights, would learn from another mixture."""
    run("teacher", taught / "bsce.yaml", "run=t3", "seed=3", "data.seed=1", "schedule.epochs=1", cwd=taught)
    dive = taught / "dive.yaml"
    run("cache_logits", dive, "distill.teacher=t3", "cache.dir=third", cwd=taught)
    given = ["run=weighted", "cache.weights=[9,1]", "schedule.epochs=1"]
    run("distill", dive, *given, "cache.paths=[caches,third]", cwd=taught)
    swapped = refused(taught, "distill", dive, *given, "cache.paths=[third,caches]")
    assert "weighted [1.0, 9.0]" in swapped and "weighted [9.0, 1.0]" in swapped
    config = (taught / "runs/weighted/config.yaml").read_text()
    elsewhere = refused(taught, "distill", dive, *given, "cache.paths=[caches,nowhere]")  # a finished run looks, too
    assert "no logit cache at nowhere" in elsewhere
    assert (taught / "runs/weighted/config.yaml").read_text() == config
    (taught / "third").rename(taught / "moved")
    again = run("distill", dive, *given, "cache.paths=[caches,moved]", cwd=taught)
    assert "is finished; its result" in again.stdout
    (taught / "moved").rename(taught / "third")


def test_tau_null_takes_the_recommended_temperature(taught: Path, tiny: Path) -> None:
    """T comes from the cache's own distribution; tau = T * p with the configured p; printed, and kept in the result."""
    train = Records(tiny / "train.beton")
    cache = LogitCache(taught / "caches")
    chosen = recommend(virtual_examples(cache, train.keys), train.class_counts).temperature
    for p in (0.5, 1.0):
        settings = [
            "cache.paths=[caches]",
            "distill.tau=null",
            f"distill.p={p}",
            f"run=chosen-{p}",
            "schedule.epochs=1",
        ]
        done = run("distill", taught / "dive.yaml", *settings, cwd=taught)
        assert f"distill.tau: {chosen * p:g}, chosen from the cache (T = tau/p = {chosen:g}, " in done.stdout
        assert result(taught, f"chosen-{p}")["tau"] == chosen * p
    given = ["cache.paths=[caches]", f"distill.tau={chosen}", "distill.p=1.0", "run=given", "schedule.epochs=1"]
    run("distill", taught / "dive.yaml", *given, cwd=taught)
    assert losses(taught, "given") == losses(taught, "chosen-1.0")
