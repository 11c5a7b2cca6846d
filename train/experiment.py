"""Putting an experiment together: records, loaders, network and targets of a configuration, checked before anything runs.

Everything that can be refused is refused here, before a run directory exists. Owns no training and no formula.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from models.registry import build_model
from pipelines.backends import available_backends, pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.finish import Finish
from pipelines.loader import Loader
from pipelines.logits import LogitCache
from pipelines.logits.cache import Wanted
from pipelines.logits.identity import view_identity
from pipelines.order import TrainOrder
from pipelines.records import Records
from pipelines.views import Recipe
from train import checkpoint, loop, tracking
from train.config import Config, Options
from train.evaluation import evaluate
from train.losses import log_prior
from train.objective import DISTILLING, PRIOR, Objective
from train.optim import build_optimizer
from train.run import Run, make_accelerator, run_name
from train.schedule import Schedule
from train.targets import CachedTargets, Targets, Teacher, weights_hash


class Splits(NamedTuple):
    """Opened record files; the classes of all are equal."""

    train: Records
    evaluation: dict[str, Records]
    "val and test, those that the configuration names"


def open_splits(config: Config) -> Splits:
    """Open data.train, data.val and data.test, and refuse different classes."""
    if config.data.train is None:
        raise UserError("data.train is not set; type data.train=FILE.beton (tools/convert.py makes it)")
    train = Records(config.data.train)
    named = {"val": config.data.val, "test": config.data.test}
    evaluation = {split: Records(path) for split, path in named.items() if path is not None}
    for split, records in evaluation.items():
        if records.class_names != train.class_names:
            raise UserError(
                f"data.{split}={records.path} has other classes than data.train={train.path} "
                f"({records.num_classes} and {train.num_classes}): convert both with the same --classes"
            )
        unseen = np.flatnonzero((records.class_counts > 0) & (train.class_counts == 0))
        if len(unseen):
            more = f" (and of {len(unseen) - 1} more)" if len(unseen) > 1 else ""
            raise UserError(
                f"data.{split}={records.path} has images of class {train.class_names[unseen[0]]}{more}, of which "
                f"data.train={train.path} has none, so that nobody can learn it (its prior is log 0): convert both again, "
                "with training images of every class or without these"
            )
    return Splits(train, evaluation)


def views_of(config: Config) -> int:
    """V: how many different views of a sample the training walks through."""
    return config.data.views or config.schedule.epochs


def channels_last(network: nn.Module) -> nn.Module:
    """The network laid out as the images are: what tensor cores want, and on a CPU 26 and 29 % faster than contiguous.

    (ResNet-20 at 24 pixels, ResNet-32 at 32; fp32, two cores.)
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_loader(config: Config, records: Records, recipe: Recipe, backend: str, accelerator: Accelerator) -> Loader:
    """A loader with the configuration's normalisation, workers and checks."""
    data, device = config.data, accelerator.device
    try:
        return Loader(
            records,
            recipe,
            seed=data.seed,
            backend=backend,
            finish=Finish(data.mean, data.std, device, channels_last=True, compile=config.compile),
            device=device,
            workers=data.workers,
            verify=data.verify,
            hw_decoder_load=data.hw_decoder_load,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def make_teacher(config: Config, records: Records, accelerator: Accelerator) -> Teacher:
    """The run that distill.teacher names, in the configuration's precision."""
    assert config.distill.teacher is not None
    return Teacher(
        config.distill.teacher,
        records,
        config.data.recipe.size,
        accelerator.device,
        config.precision,
        channels_last=True,
        compile=config.compile,
    )


def open_cache(config: Config, train: Records, device: torch.device) -> tuple[LogitCache, str, list[str]]:
    """(cache, backend to load with, notes for the first screen), refusing a cache that does not fit."""
    if len(config.cache.paths) > 1:
        raise UserError(f"cache.paths={config.cache.paths}: one cache at a time")
    distill = config.distill
    weights = weights_hash(checkpoint.load_final(distill.teacher)[0]) if distill.teacher else None
    recipe = config.data.recipe
    view = view_identity(train, recipe, config.data.seed, config.data.backend)
    wanted = Wanted(view, train.rows(), weights)
    cache = LogitCache(config.cache.paths[0], wanted)
    backend = resolve_backend(config.data.backend, train, recipe, device, cached=cache.identity["backend"])
    wanted = wanted._replace(view=view | {"backend": pixel_source(backend, train, device)})
    notes = cache.require(wanted, views_of(config), config.cache.pixels)
    assert distill.tau is not None
    loss = cache.require_temperature(distill.tau / distill.p)
    teacher = cache.identity["teacher"]
    notes = [
        f"cache {cache.folder}: {cache.views} views of {teacher['architecture']} {teacher['weights'][:12]}, "
        f"codec {cache.identity['codec']}, certified loss {loss:.4%} at T = {distill.tau / distill.p:g}",
        *(f"cache differs in {note}" for note in notes),
    ]
    return cache, backend, notes


def _check_method(config: Config, allowed: tuple[str, ...], script: str) -> None:
    method = config.distill.method
    if config.data.sampling == "class_balanced" and method in PRIOR:
        raise UserError(
            f"data.sampling=class_balanced: {method} corrects by the class counts what this sampling has evened out already; "
            "use data.sampling=instance, or distill.method=ce or kd"
        )
    if method not in allowed:
        other = "train/distill.py" if method in DISTILLING else "train/teacher.py"
        raise UserError(f"distill.method={method} is not for {script}, which takes {' or '.join(allowed)}; use {other}")
    if method not in DISTILLING:
        for key, given in (("distill.teacher", config.distill.teacher), ("cache.paths", config.cache.paths)):
            if given:
                raise UserError(f"{key}={given}: {method} uses no soft targets; leave {key} out")
        return
    if config.distill.tau is None:
        raise UserError(f"distill.tau is not set: {method} needs a temperature, for example distill.tau=3")
    if not config.cache.paths and config.distill.teacher is None:
        raise UserError(
            f"{method} needs targets: cache.paths=[FOLDER] (from train/cache_logits.py), or distill.teacher=RUN to ask it online"
        )


class Experiment:
    """One training run from settings to result.json.

    allowed: the methods that `script` trains. Raises UserError for whatever the user can mend, before the run directory
    is made wherever possible.
    """

    def __init__(self, config: Config, options: Options, script: str, allowed: tuple[str, ...]):
        _check_method(config, allowed, script)
        self.config, self.options, self.script = config, options, script
        self.name = run_name(config.run, options.config, config.seed)
        self.folder = checkpoint.run_folder(self.name)
        self.accelerator = make_accelerator(config)
        self.say = self.accelerator.print

    def run(self) -> None:
        """Train what is left to train, evaluate, write the result; a finished run only prints its result."""
        if not self.options.dry_run and (self.folder / "result.json").exists():
            with Run.open(self.config, self.name, self.script, self.accelerator) as run:
                self.say(f"run {self.folder} is finished; its result:")
                if self.accelerator.is_main_process:
                    tracking.show_result(run.result() or {})
            return
        self._prepare()
        if self.options.dry_run:
            self._dry_run()
            return
        with Run.open(self.config, self.name, self.script, self.accelerator) as run:
            for line in run.changes:
                self.say(f"since the last session: {line}")
            self._require_same_pixels(run)
            speed = loop.fit(
                self.config,
                run.folder,
                self.accelerator,
                self.model,
                self.optimizer,
                self.objective,
                self.loader,
                self.order,
                self.schedule,
                self._progress_figures if self.eval_loaders else None,
            )
            result = self._result(speed)
            if self.accelerator.is_main_process:
                network = self.accelerator.unwrap_model(self.model)
                checkpoint.save_final(run.folder, network.state_dict(), self._meta())
                tracking.show_result(result)
            run.finish(result)

    def _prepare(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.splits = open_splits(config)
        train = self.splits.train
        cache = None
        backend = None
        if config.distill.method in DISTILLING and config.cache.paths:
            cache, backend, notes = open_cache(config, train, accelerator.device)
            for line in notes:
                self.say(line)
        self.backend = backend or resolve_backend(config.data.backend, train, config.data.recipe, accelerator.device)
        self.say(f"{len(train)} training images of {train.num_classes} classes, backend {self.backend}")
        self.loader = make_loader(config, train, config.data.recipe, self.backend, accelerator)
        recipe = config.data.recipe.evaluation()
        self.eval_loaders = {
            split: make_loader(config, records, recipe, self._evaluation_backend(records, recipe), accelerator)
            for split, records in self.splits.evaluation.items()
        }
        self._make_order()
        self.schedule = Schedule(config.schedule, config.optim.lr, self.order.steps_per_epoch)
        torch.manual_seed(config.seed)
        try:
            network = build_model(config.model.name, train.num_classes).to(accelerator.device)
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        network = channels_last(network)
        optimizer = build_optimizer(network, config.optim)
        if config.compile:
            network.compile(dynamic=False)  # in place, so that no prefix reaches the names of the weights
        self.model: nn.Module
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        self.objective = self._make_objective(cache)

    def _make_order(self) -> None:
        optim, world = self.config.optim, self.accelerator.num_processes
        if optim.batch % (world * optim.accumulate):
            unit = world * optim.accumulate
            below = optim.batch // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise UserError(
                f"optim.batch={optim.batch} does not split into {world} processes x optim.accumulate={optim.accumulate}; "
                f"nearest: optim.batch={near}"
            )
        try:
            self.order = TrainOrder(
                self.splits.train.keys,
                self.config.seed,
                optim.batch,
                views_of(self.config),
                self.accelerator.process_index,
                world,
                labels=self.splits.train.labels,
                sampling=self.config.data.sampling,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _make_objective(self, cache: LogitCache | None) -> Objective:
        config, train, device = self.config, self.splits.train, self.accelerator.device
        counts = train.class_counts
        prior = log_prior(counts) if config.distill.method in PRIOR else torch.zeros(len(counts))
        return Objective(config.distill, prior.to(device), self._targets(cache))

    def _targets(self, cache: LogitCache | None) -> Targets | None:
        config, train = self.config, self.splits.train
        if config.distill.method not in DISTILLING:
            return None
        if cache is None:
            self.say(f"targets: {config.distill.teacher}, online")
            return make_teacher(config, train, self.accelerator)
        check = config.cache
        return CachedTargets(
            cache,
            self.accelerator.device,
            check.check,
            check.pixels,
            self.order.steps_per_epoch * config.optim.accumulate,
            self.say,
        )

    def _evaluation_backend(self, records: Records, recipe: Recipe) -> str:
        """The training's backend where it can serve these records, as it nearly always can."""
        device = self.accelerator.device
        able = self.backend in available_backends(records, recipe, device)
        return self.backend if able else resolve_backend(self.config.data.backend, records, recipe, device)

    def _require_same_pixels(self, run: Run) -> None:
        pixels = pixel_source(self.backend, self.splits.train, self.accelerator.device)
        before = run.facts.get("pixels")
        if before is None:
            run.note(backend=self.backend, pixels=pixels)
        elif before != pixels:
            raise UserError(
                f"run {run.folder} was started on pixels from {before}, here they come from {pixels} and would differ; "
                f"go on where {before} is installed, or give another run=NAME"
            )

    def _progress_figures(self) -> dict[str, Any]:
        split = "val" if "val" in self.eval_loaders else "test"
        return {split: _headline(self._evaluate(split))}

    def _evaluate(self, split: str) -> dict[str, Any]:
        counts: np.ndarray = self.splits.train.class_counts
        loader = self.eval_loaders[split]
        return evaluate(self.model, loader, self.config.eval.batch, counts, self.accelerator).figures

    def _result(self, speed: dict[str, float | None]) -> dict[str, Any]:
        return {
            "method": self.config.distill.method,
            "epochs": self.config.schedule.epochs,
            "steps": self.schedule.total_steps,
            **{split: self._evaluate(split) for split in self.eval_loaders},
            "speed": speed,
        }

    def _meta(self) -> dict[str, Any]:
        config, train = self.config, self.splits.train
        return {
            "architecture": config.model.name,
            "class_names": list(train.class_names),
            "train_counts": train.class_counts.tolist(),
            "mean": list(config.data.mean),
            "std": list(config.data.std),
            "input_size": config.data.recipe.size,
            "recipe": dataclasses.asdict(config.data.recipe),
            "precision": config.precision,
            "method": config.distill.method,
        }

    def _dry_run(self) -> None:
        """One batch through everything, forward and backward, one evaluation; no step, no file."""
        batches = self.loader.stream(self.order.plan(0, 1))
        try:
            batch = next(batches)
            loss, _ = self.objective(self.model(batch.images), batch)
            self.accelerator.backward(loss)
        finally:
            batches.close()
        for split in self.eval_loaders:
            self.say(f"{split}: {self._evaluate(split)['samples']} images evaluated")
        self.say(
            f"dry run: loss {float(loss.detach()):.4f} on one batch; {self.order.steps_per_epoch} steps an epoch, "
            f"{self.schedule.total_steps} in all; would train into {self.folder}"
        )


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("top1", "many", "medium", "few")}
