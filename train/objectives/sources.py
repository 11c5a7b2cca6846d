"""Where the targets of a configuration come from: the teacher that it names, or its caches, and the temperature.

Everything that does not fit is refused here, before a run begins.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.augment.recipe import Recipe
from pipelines.backends import pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.logits import Ensemble, LogitCache
from pipelines.logits.flatness import TEMPERATURES, recommend, virtual_examples
from pipelines.logits.folder import Wanted
from pipelines.logits.identity import identity_hash, view_identity
from pipelines.records.reader import Records
from train.config import Config
from train.data import views_of
from train.networks.weights import Pretrained, read_file, read_run, weights_hash
from train.objectives.methods import METHODS, DistillConfig
from train.objectives.targets import CachedTargets, Targets, Teacher
from train.run.environment import precision_of


class Source(NamedTuple):
    """Where a run's soft targets come from, and what is to be known of it; a method without any has none."""

    targets: Targets | None
    teachers: list[dict[str, str]]
    "source, architecture and weights' hash of each, for the papers of the network"
    cache_hashes: list[str]
    "of the caches' identities, sorted; none: the teacher is asked online"
    cache_weights: list[float] | None = None
    "of these caches, in the same order; None: all alike"

    @property
    def teacher_hashes(self) -> list[str]:
        """Hashes of the teachers' weights, sorted."""
        return sorted(teacher["weights"] for teacher in self.teachers)


def asked_recipe(config: Config) -> Recipe:
    """The recipe of the views about which the teacher is asked: the student's, or its parts where targets are mixed of those."""
    recipe = config.data.recipe
    return recipe.unmixed() if config.distill.mixed_targets == "parts" else recipe


def make_source(
    config: Config, train: Records, accelerator: Accelerator, caches: Ensemble | None, steps_per_epoch: int
) -> Source:
    """The caches that were opened, or without any the teacher, online."""
    if not METHODS[config.distill.method].targets:
        return Source(None, [], [])
    if caches is None:
        accelerator.print(f"targets: {config.distill.teacher}, online")
        teacher = make_teacher(config, train, accelerator)
        return Source(teacher, teacher.teachers, [])
    every, check = steps_per_epoch * config.optim.accumulate, config.cache
    targets = CachedTargets(caches, accelerator.device, check.check, check.pixels, every, accelerator.print)
    hashes = [identity_hash(cache.identity).hex() for cache in caches.caches]
    if not caches.weights:
        return Source(targets, targets.teachers, sorted(hashes))
    weighted = sorted(zip(hashes, caches.weights, strict=True))
    return Source(targets, targets.teachers, [hash for hash, _ in weighted], [weight for _, weight in weighted])


def read_teacher(config: Config) -> Pretrained:
    """The network that distill.teacher names: a run's, or that of a file of weights."""
    distill, data = config.distill, config.data
    assert distill.teacher is not None
    if distill.teacher_arch is None:
        return read_run(distill.teacher)
    assert distill.teacher_classes is not None
    return read_file(
        distill.teacher,
        distill.teacher_arch,
        distill.teacher_classes,
        distill.teacher_mean or data.mean,
        distill.teacher_std or data.std,
        data.recipe.size,
    )


def make_teacher(config: Config, records: Records, accelerator: Accelerator) -> Teacher:
    """The network that distill.teacher names, in the configuration's precision."""
    source = read_teacher(config)
    for note in source.notes:
        accelerator.print(note)
    return Teacher(
        source,
        records,
        config.data.recipe.size,
        accelerator.device,
        precision_of(accelerator),
        channels_last=True,
        compile=config.compile,
        compile_mode=config.compile_mode,
    )


def resolve_tau(distill: DistillConfig, caches: Ensemble, train: Records) -> tuple[DistillConfig, str | None]:
    """(settings with a temperature, a line that says how it was chosen); distill.tau=null takes it from the cache.

    The rule is flatness.recommend's, on the run's own samples under the first view; tau = T * p with the configured p.
    """
    if distill.tau is not None or "tau" not in METHODS[distill.method].settings:
        return distill, None
    # Only a mean of probabilities depends on the temperature at which it is read: one pass over the cache for each.
    grids = [[t] for t in TEMPERATURES] if caches.average == "probabilities" else [list(TEMPERATURES)]
    virtual = np.concatenate([virtual_examples(caches.at(grid[0]), train.keys, grid) for grid in grids])
    chosen = recommend(virtual, train.class_counts)
    tau = chosen.temperature * distill.p
    how = (
        "the smallest at which the rarest third of classes has as many virtual examples as the most frequent third"
        if chosen.flat
        else "the largest of the grid: at none has the rarest third of classes as many virtual examples as the most frequent"
    )
    line = f"distill.tau: {tau:g}, chosen from the cache (T = tau/p = {chosen.temperature:g}, {how})"
    return dataclasses.replace(distill, tau=tau), line


def open_cache(config: Config, train: Records, device: torch.device) -> tuple[Ensemble, str, DistillConfig, list[str]]:
    """(caches, backend to load with, settings with a temperature, notes for the first screen), refusing what does not fit."""
    settings, recipe = config.cache, asked_recipe(config)
    if config.distill.teacher and len(settings.paths) > 1:
        raise UserError(
            f"distill.teacher={config.distill.teacher} is one teacher, cache.paths names {len(settings.paths)} caches: "
            "leave distill.teacher out"
        )
    weights = weights_hash(read_teacher(config).network.state_dict()) if config.distill.teacher else None
    wanted = Wanted(view_identity(train, recipe, config.data.seed), train.rows(), weights)
    caches = [LogitCache(path, wanted) for path in settings.paths]
    _require_different_teachers(caches)
    backend = resolve_backend(config.data.backend, train, recipe, device, cached=caches[0].pixels)
    wanted = wanted.with_pixels(pixel_source(backend, train, device, config.data.hw_decoder_load))
    differing = [cache.require(wanted, views_of(config, len(train)), settings.pixels) for cache in caches]
    distill, chosen = resolve_tau(config.distill, Ensemble(caches, settings.weights, settings.average), train)
    temperature = 1.0  # a method without one takes the answers as they are, whatever distill.tau is
    if "tau" in METHODS[distill.method].settings:
        assert distill.tau is not None
        temperature = distill.tau / distill.p
    notes = []
    for cache, found in zip(caches, differing, strict=True):
        teacher, loss = cache.identity["teacher"], cache.require_temperature(temperature)
        notes.append(
            f"cache {cache.folder}: {cache.views} views of {teacher['architecture']} {teacher['weights'][:12]}, "
            f"codec {cache.identity['codec']}, certified loss {loss:.4%} at T = {temperature:g}"
        )
        notes += [f"cache differs in {note}" for note in found]
    if len(caches) > 1:
        shares = f", weighted {settings.weights}" if settings.weights else ""
        notes.append(f"targets: the mean of {len(caches)} teachers' {settings.average}{shares}")
    notes += [chosen] if chosen else []
    return Ensemble(caches, settings.weights, settings.average, temperature), backend, distill, notes


def _require_different_teachers(caches: list[LogitCache]) -> None:
    first: dict[str, LogitCache] = {}
    for cache in caches:
        other = first.setdefault(cache.identity["teacher"]["weights"], cache)
        if other is not cache:
            raise UserError(
                f"cache.paths: {other.folder} and {cache.folder} are of the same teacher; name one of them, and give it "
                "more of cache.weights if it is to count more"
            )
