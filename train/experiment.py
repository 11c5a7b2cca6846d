"""Putting an experiment together: records, loaders, network and targets of a configuration, checked before anything runs.

Everything that can be refused is refused here, before a run directory exists. Owns no training and no formula.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from models.registry import build_model
from pipelines.backends.choice import pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits import Ensemble
from pipelines.logits.identity import identity_hash
from pipelines.order import TrainOrder
from train import loop
from train.config import Config
from train.data import evaluation_backend, make_loader, open_splits, reuse_of_views, stored_digest, views_of
from train.ema import Ema
from train.evaluation.counting import evaluate
from train.networks.final import save_final
from train.networks.initial import initialise
from train.networks.layout import channels_last
from train.objectives.losses import log_prior
from train.objectives.objective import DISTILLING, PRIOR, Objective
from train.objectives.sources import make_teacher, open_cache
from train.objectives.targets import CachedTargets, Teacher
from train.optim import build_optimizer, describe_scaling, scaled_lr
from train.run import checkpoint
from train.run.environment import device_name, make_accelerator, precision_of
from train.run.folder import Run, stored_facts
from train.run.place import run_folder, run_name
from train.run.stops import Stopped, Stops
from train.schedule import Schedule
from train.settings import Options, flatten
from train.watch import tracking
from train.watch.dashboards import Dashboards, require_packages


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
    if config.distill.tau is None and not config.cache.paths:
        raise UserError(
            f"distill.tau=null takes the temperature from a cache, and {method} has none here: type distill.tau=3, for "
            "example, or cache.paths=[FOLDER]"
        )
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
        self.folder = run_folder(self.name)
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
        facts = self._facts()
        with (
            self._dashboards() as dashboards,  # first, as W&B may take its time to close
            Run.open(self.config, self.name, self.script, self.accelerator) as run,
            Stops(run.folder, self.accelerator.num_processes) as stops,
        ):
            for line in run.changes:
                self.say(f"since the last session: {line}")
            if run.facts != run.facts | facts:
                run.note(**facts)
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
                self.ema,
                (lambda: self._progress(stops)) if self.eval_loaders else None,
                stops,
                dashboards,
            )
            try:
                result = self._result(speed, stops)
            except Stopped as request:
                stops.obeyed()
                raise Stopped(f"stopped by {request} in the last evaluation; all steps are done and saved") from request
            figures = {
                name: _headline(found)
                for name, found in result.items()
                if name.removesuffix("_ema") in self.eval_loaders
            }
            dashboards.log(self.schedule.total_steps, tracking.numbers(figures))
            if self.accelerator.is_main_process:
                network = self.accelerator.unwrap_model(self.model)
                ema_state = self.ema.state_dict() if self.ema else None
                save_final(run.folder, network.state_dict(), self._meta(), ema_state)
                tracking.show_result(result)
            run.finish(result)

    def _dashboards(self) -> Dashboards:
        track, is_main = self.config.track, self.accelerator.is_main_process
        return Dashboards(list(track.trackers), track.project, self.folder, flatten(self.config), is_main)

    def _prepare(self) -> None:
        config, accelerator = self.config, self.accelerator
        require_packages(list(config.track.trackers))
        before = stored_facts(self.folder).get("backend")
        if config.data.backend == "auto" and before:  # the rule is asked once in a run's life
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, backend=before))
        self.splits = open_splits(config)
        train = self.splits.train
        caches, backend, self.distill = None, None, config.distill
        if config.distill.method in DISTILLING and config.cache.paths:
            caches, backend, self.distill, notes = open_cache(config, train, accelerator.device)
            for line in notes:
                self.say(line)
        self.backend = backend or resolve_backend(config.data.backend, train, config.data.recipe, accelerator.device)
        self.say(f"{len(train)} training images of {train.num_classes} classes, backend {self.backend}")
        self.loader = make_loader(config, train, config.data.recipe, self.backend, accelerator)
        recipe = config.data.recipe.evaluation()
        self.eval_loaders: dict[str, Loader] = {}
        self.eval_backends: dict[str, str] = {}
        for split, records in self.splits.evaluation.items():
            backend = evaluation_backend(self.backend, records, recipe, accelerator.device)
            if backend != self.backend:
                self.say(f"data.{split} is loaded by backend {backend}: {self.backend} cannot serve it")
            self.eval_backends[split] = backend
            self.eval_loaders[split] = make_loader(config, records, recipe, backend, accelerator)
        self._check_choices()
        self._make_order()
        for line in (reuse_of_views(config, len(train)), describe_scaling(config.optim)):
            if line:
                self.say(line)
        self.schedule = Schedule(
            config.schedule, scaled_lr(config.optim), self.order.steps_per_epoch, config.optim.batch
        )
        torch.manual_seed(config.seed)
        try:
            network = build_model(config.model.name, train.num_classes).to(accelerator.device)
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        self.init = self._initialise(network)
        if config.model.sync_bn:
            if accelerator.device.type != "cuda":
                raise UserError("model.sync_bn=true needs GPUs (torch has it for them alone); leave it out")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = channels_last(network)
        self.ema = Ema(network, config.ema) if config.ema.decay is not None else None
        optimizer = build_optimizer(network, config.optim)
        if config.compile:
            # In place, so that no prefix reaches the names of the weights.
            network.compile(dynamic=False, mode=config.compile_mode)
        self.model: nn.Module
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        self.objective = self._make_objective(caches)

    def _check_choices(self) -> None:
        config = self.config
        if config.save.keep_best != "no":
            split = "val" if config.save.keep_best == "val" else "test"
            if split not in self.eval_loaders or not config.eval.period(1):
                raise UserError(
                    f"save.keep_best={config.save.keep_best}: needs data.{split}, and eval.every_epochs or every_steps above 0"
                )
        if config.resume not in ("auto", "never") and not checkpoint.has_checkpoint(self.folder):
            checkpoint.load_from(config.resume)  # refused now rather than in the run's folder

    def _initialise(self, network: nn.Module) -> str | None:
        """Fill the network as model.init says, unless a checkpoint will; the hash of what the run's first session took."""
        model = self.config.model
        if model.init is None:
            return None
        if checkpoint.has_checkpoint(self.folder):
            return stored_facts(self.folder).get("init")
        initial = initialise(network, model.init, model.name, list(self.splits.train.class_names))
        for line in initial.report:
            self.say(line)
        return initial.weights

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
                views_of(self.config, len(self.splits.train)),
                self.accelerator.process_index,
                world,
                labels=self.splits.train.labels,
                sampling=self.config.data.sampling,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _make_objective(self, caches: Ensemble | None) -> Objective:
        config, train, device = self.config, self.splits.train, self.accelerator.device
        counts = train.class_counts
        prior = log_prior(counts) if config.distill.method in PRIOR else torch.zeros(len(counts))
        self.targets = self._targets(caches)
        return Objective(self.distill, prior.to(device), self.targets)

    def _targets(self, caches: Ensemble | None) -> Teacher | CachedTargets | None:
        config, train = self.config, self.splits.train
        self.target_facts: dict[str, Any] = {"teachers": [], "caches": []}  # no caches: the teacher is asked online
        if config.distill.method not in DISTILLING:
            return None
        if caches is None:
            self.say(f"targets: {config.distill.teacher}, online")
            teacher = make_teacher(config, train, self.accelerator)
            self.target_facts["teachers"] = [teacher.identity["weights"]]
            return teacher
        self.target_facts["teachers"] = sorted(cache.identity["teacher"]["weights"] for cache in caches.caches)
        self.target_facts["caches"] = sorted(identity_hash(cache.identity).hex() for cache in caches.caches)
        check = config.cache
        return CachedTargets(
            caches,
            self.accelerator.device,
            check.check,
            check.pixels,
            self.order.steps_per_epoch * config.optim.accumulate,
            self.say,
        )

    def _facts(self) -> dict[str, Any]:
        """What settings leave to be found out; refused if it is not what the run's earlier sessions found."""
        pixels = pixel_source(self.backend, self.splits.train, self.accelerator.device)
        found: dict[str, Any] = {"backend": self.backend, "pixels": pixels, "tau": self.distill.tau, "init": self.init}
        found |= {"precision": precision_of(self.accelerator)} | self.target_facts
        for split, records in {"train": self.splits.train, **self.splits.evaluation}.items():
            found[split] = records.digest
            found[f"{split}_stored"] = stored_digest(records)
        told = {
            "pixels": "was started on pixels from {}, here they come from {} and would differ",
            "tau": "was started with distill.tau={}, chosen from its cache; this cache gives {}",
            "precision": "was started in {}, here precision=auto means {}",
            "teachers": "was started with other teachers: their weights had the hashes {}, they have {} now",
            "caches": "was started with other caches, or none: their identities had the hashes {}, they have {} now",
            **{
                f"{split}_stored": f"was started on data.{split} stored otherwise (another size or encoding of the same "
                "images): the digest was {}, it is {} now"
                for split in ("train", "val", "test")
            },
            "init": "was started from weights with the hash {}; model.init holds others now, {}",
        }
        stored = stored_facts(self.folder)
        for name, value in found.items():
            before = stored.get(name, value)
            if before != value:
                what = told.get(name, f"was started on other records: data.{name} had the digest {{}}, it has {{}} now")
                raise UserError(
                    f"run {self.folder} {what.format(before, value)}; go on where it was started, or give another run=NAME "
                    "(repaired or reconverted records start a new run)"
                )
        return found

    def _progress(self, stops: Stops) -> loop.Evaluated:
        """Figures of an evaluation in between: on val if there is one, else on test; nothing but save.keep_best selects by it."""
        split = {"no": "val", "val": "val", "test_split_knowingly": "test"}[self.config.save.keep_best]
        split = split if split in self.eval_loaders else "test"
        figures = {name: _headline(found) for name, found in self._evaluate(split, stops).items()}
        return loop.Evaluated(
            figures, list(figures.values())[-1]["top1"] if self.config.save.keep_best != "no" else None
        )

    def _evaluate(self, split: str, stops: Stops | None = None) -> dict[str, dict[str, Any]]:
        """{SPLIT: figures} of the weights, and {SPLIT_ema: figures} of their average, if there is one."""
        found = {split: self._evaluate_once(split, stops)}
        if self.ema:
            with self.ema.applied():
                found[f"{split}_ema"] = self._evaluate_once(split, stops)
        return found

    def _evaluate_once(self, split: str, stops: Stops | None) -> dict[str, Any]:
        counts: np.ndarray = self.splits.train.class_counts
        loader = self.eval_loaders[split]
        done = evaluate(self.model, loader, self.config.eval.batch, counts, self.accelerator, stops=stops)
        return done.figures | {"backend": self.eval_backends[split]}

    def _result(self, speed: dict[str, float | None], stops: Stops) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            "seed": self.config.seed,
            "device": device_name(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "method": self.config.distill.method,
            **({"tau": self.distill.tau} if self.config.distill.method in DISTILLING else {}),
            "epochs": self.config.schedule.epochs or self.schedule.total_steps / self.order.steps_per_epoch,
            "steps": self.schedule.total_steps,
            **{name: found for split in self.eval_loaders for name, found in self._evaluate(split, stops).items()},
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
            "precision": precision_of(self.accelerator),
            "ema_decay": config.ema.decay,
            "method": config.distill.method,
            "teachers": self.targets.teachers if self.targets else [],
            "init": {"source": config.model.init, "weights": self.init} if config.model.init else None,
        }

    def _dry_run(self) -> None:
        """One batch through everything, forward and backward, one evaluation; no step, no file."""
        batches = self.loader.stream(self.order.plan(0, 1))
        try:
            batch = next(batches)
            batch = batch.rows(0, len(batch.keys) // self.config.optim.accumulate)
            loss, _ = self.objective(self.model(batch.images), batch)
            self.accelerator.backward(loss)
        finally:
            batches.close()
        for split in self.eval_loaders:
            self.say(f"{split}: {self._evaluate(split)[split]['samples']} images evaluated")
        memory = tracking.peak_memory(self.accelerator.device) / 1e9
        self.say(
            f"dry run: loss {float(loss.detach()):.4f} on one batch, peak memory {memory:.1f} GB; "
            f"{self.order.steps_per_epoch} steps an epoch, {self.schedule.total_steps} in all; would train into {self.folder}"
        )


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("top1", "many", "medium", "few")}
