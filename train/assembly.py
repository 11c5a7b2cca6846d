"""Builds all parts of a training from its settings: records, loaders, order, schedule, network, optimizer, objective, facts.

Everything that can be refused is refused here, before a run directory exists. It does not train or write anything.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from models import ModelSpec
from models.outputs import freeze_all_but
from pipelines.backends import pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits import Ensemble
from pipelines.order import TrainOrder, drawn
from pipelines.records.reader import Records
from train.config import Config
from train.data import (
    Splits,
    evaluation_backend,
    make_loader,
    open_splits,
    overlaps,
    reuse_of_views,
    stored_digest,
    views_of,
)
from train.ema import Ema
from train.graph import require_one_gpu
from train.loop import Training
from train.networks.info import ModelInfo
from train.networks.initial import Initial, initialise, initialise_all_but
from train.networks.layout import channels_last, compile_in_place, input_dtype, without_broadcasts
from train.objectives.methods import METHODS, DistillConfig, names_where, settings_of
from train.objectives.objective import Objective
from train.objectives.sources import Source, make_source, open_cache
from train.optim import build_optimizer, describe_scaling, scaled_lr
from train.resuming import resumed_from
from train.run import checkpoint
from train.run.environment import precision_of
from train.run.facts import Facts
from train.schedule import Schedule
from train.watch.dashboards import require_packages
from train.watch.text import counted

Say = Callable[[str], None]


class Split(NamedTuple):
    """Records to be evaluated, and their loader."""

    loader: Loader
    backend: str


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """All parts of a training that is ready to begin."""

    training: Training
    distill: DistillConfig
    "with the temperature resolved"
    source: Source
    "where the soft targets come from"
    splits: Splits
    evaluation: dict[str, Split]
    "val and test, as far as the configuration names them"
    facts: Facts

    def model_info(self) -> ModelInfo:
        """What users of the final weights need to know."""
        config, train = self.training.config, self.splits.train
        init = {"source": config.model.init, "weights": self.facts.init or ""} if config.model.init else None
        # A checkpoint replaces what model.init gave.
        init = self.facts.resumed or init
        return ModelInfo(
            architecture=config.model.spec(train.num_classes).architecture,
            class_names=list(train.class_names),
            train_counts=train.class_counts.tolist(),
            mean=list(config.data.mean),
            std=list(config.data.std),
            input_size=config.data.recipe.size,
            grey_bits=train.grey_bits,
            recipe=dataclasses.asdict(config.data.recipe),
            precision=self.facts.precision or "",
            ema_decay=config.ema.decay,
            method=config.distill.method,
            teachers=self.source.teachers,
            init=init,
        )


def check_method(config: Config, script: str) -> None:
    """Refuse a method that `script` does not train, and settings that do not go with it."""
    name = config.distill.method
    method = METHODS[name]
    _check_sampling(config)
    if config.distill.diversity and config.model.experts is None:
        raise UserError(
            f"distill.diversity={config.distill.diversity}: the network has no experts that could differ; give model.experts=3, "
            "for example, or leave it out"
        )
    if method.script != script:
        allowed = names_where(lambda row: row.script == script)
        raise UserError(f"distill.method={name} is not for {script}, which takes {allowed}; use {method.script}")
    _check_part(config)
    if not method.targets:
        for key, given in (("distill.teacher", config.distill.teacher), ("cache.paths", config.cache.paths)):
            if given:
                raise UserError(f"{key}={given}: {name} uses no soft targets; leave {key} out")
        return
    if "tau" in method.settings and config.distill.tau is None and not config.cache.paths:
        raise UserError(
            f"distill.tau=null takes the temperature from a cache, and {name} has none here: type distill.tau=3, for "
            "example, or cache.paths=[FOLDER]"
        )
    if "tau" in method.settings and config.distill.tau is None and config.data.sampling != "instance":
        raise UserError(
            f"distill.tau=null chooses a temperature for the images as they are, and data.sampling={config.data.sampling} draws "
            "them by class: type distill.tau=3, for example"
        )
    if "tau" in method.settings and config.distill.tau is None and config.distill.zscore:
        raise UserError(
            "distill.tau=null chooses a temperature for the teacher's logits as they are, and distill.zscore=true changes them: "
            "type distill.tau=2, for example"
        )
    if "bkd_beta" in method.settings and config.distill.tau is None and config.distill.bkd_beta:
        raise UserError(
            f"distill.tau=null chooses a temperature at which the teacher's own predictions are flat, and {name} weights them "
            "anew: type distill.tau=2, for example"
        )
    if len(config.cache.paths) > 1 and config.cache.average == "probabilities" and config.distill.zscore:
        raise UserError(
            "cache.average=probabilities has no logits that distill.zscore=true could standardise: use cache.average=logits, or "
            "distill.zscore=false"
        )
    if not config.cache.paths and config.distill.teacher is None:
        raise UserError(
            f"{name} needs targets: cache.paths=[FOLDER] (from train/cache_logits.py), or distill.teacher=RUN to ask it online"
        )


def _check_part(config: Config) -> None:
    """Refuse routers with a method that does not train them, and a method for them without a finished network."""
    name, model = config.distill.method, config.model
    part = METHODS[name].part
    if part is None:
        if model.router is not None:
            raise UserError(
                f"model.router={model.router}: {name} does not train routers; leave it out here, and train them afterwards, "
                "from this run: train/router.py CONFIG model.init=RUN"
            )
        return
    if model.init is None:
        raise UserError(
            f"distill.method={name} trains the {part} of a finished network: type model.init=RUN, a finished run or an "
            f"export of this network without its {part}"
        )
    if config.distill.diversity:
        raise UserError(
            f"distill.diversity={config.distill.diversity}: {name} does not train the experts; leave it out"
        )


def _check_sampling(config: Config) -> None:
    """Refuse what would correct a sampling by class once more, or undo a part of it."""
    sampling, distill = config.data.sampling, config.distill
    if sampling == "instance":
        return
    if config.data.recipe.mix is not None:
        raise UserError(
            f"data.sampling={sampling}: data.recipe.mix={config.data.recipe.mix} takes every image's partner from all images, "
            "whatever their classes, so that half of the labels would be drawn otherwise; use data.sampling=instance, or "
            "data.recipe.mix=null"
        )
    row, given = METHODS[distill.method], f"data.sampling={sampling}"
    why = "corrects by the class counts what this sampling has evened out already; use data.sampling=instance, or"
    if row.prior and row.targets and row.hard is None:  # its prior is its teacher's
        raise UserError(f"{given}: {distill.method} {why} another distill.method")
    if distill.drw_from is not None and "drw_from" in settings_of(distill):
        raise UserError(f"{given}: distill.drw_from={distill.drw_from} {why} leave distill.drw_from out")
    if distill.bkd_beta and "bkd_beta" in settings_of(distill):
        raise UserError(f"{given}: {distill.method} {why} distill.bkd_beta=0")


def _check_switches(distill: DistillConfig, schedule: Schedule) -> None:
    """UserError for a switch beyond the end of the training: it would never be reached."""
    for name in ("drw_from", "diversity_from"):
        epoch = getattr(distill, name)
        if epoch is not None and epoch >= schedule.epochs:
            raise UserError(
                f"distill.{name}={epoch}: this training has the epochs 0 to {schedule.epochs - 1} ({schedule.total_steps} steps "
                f"in all, {schedule.steps_per_epoch} an epoch); give one of them, or null"
            )


def assemble(config: Config, folder: Path, accelerator: Accelerator) -> Assembled:
    """All parts of the training of the run in `folder`, which need not exist."""
    say, device = accelerator.print, accelerator.device
    require_packages(list(config.track.trackers))
    require_one_gpu(config, accelerator)
    config = _with_the_runs_backend(config, folder)
    splits = open_splits(config)
    caches, backend, distill = _caches(config, splits.train, device, say)
    backend = backend or resolve_backend(config.data.backend, splits.train, config.data.recipe, device)
    say(f"{len(splits.train)} training images of {splits.train.num_classes} classes, backend {backend}")
    share = config.optim.batch // accelerator.num_processes
    dtype = input_dtype(config.model.name, precision_of(accelerator))
    loader = make_loader(config, splits.train, config.data.recipe, backend, accelerator, batch=share, dtype=dtype)
    evaluation = _evaluation(config, splits, backend, accelerator)
    _check_choices(config, evaluation)
    resumed = resumed_from(config, folder, splits.train)
    _check_overlaps(config, splits, say)
    order = _order(config, splits.train, accelerator)
    notes = (reuse_of_views(config, splits.train.class_counts), describe_scaling(config.optim))
    for line in (*notes, _note_on_rest(order, len(splits.train)), _note_on_norms(config, accelerator.num_processes)):
        if line:
            say(line)
    schedule = Schedule(config.schedule, scaled_lr(config.optim), order.steps_per_epoch, config.optim.batch)
    _check_switches(distill, schedule)
    if note := _note_on_patience(config, schedule):
        say(note)
    if config.compile:
        say("compile=true: the first steps compile the network, which may take minutes")
    network, init = _network(config, splits.train, folder, accelerator)
    ema = Ema(network, config.ema) if config.ema.decay is not None else None
    optimizer = build_optimizer(network, config.optim, scaled=accelerator.scaler is not None)
    compile_in_place(network, config.compile, config.compile_mode)
    model, optimizer = accelerator.prepare(network, optimizer)
    model = without_broadcasts(model)
    source = make_source(config, splits.train, accelerator, caches, order.steps_per_epoch)
    facts = Facts(
        backend=backend,
        pixels=str(pixel_source(backend, splits.train, device, config.data.hw_decoder_load)),
        tau=distill.tau,
        init=init,
        resumed=resumed,
        precision=precision_of(accelerator),
        teachers=source.teacher_hashes,
        caches=source.cache_hashes,
        cache_weights=source.cache_weights,
        digests={split: records.digest for split, records in splits.all().items()},
        stored={split: stored_digest(records) for split, records in splits.all().items()},
    )
    training = Training(
        config=config,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        objective=_objective(config, distill, splits.train, source, device, order.steps_per_epoch),
        loader=loader,
        order=order,
        schedule=schedule,
        ema=ema,
    )
    return Assembled(
        training=training, distill=distill, source=source, splits=splits, evaluation=evaluation, facts=facts
    )


def _with_the_runs_backend(config: Config, folder: Path) -> Config:
    """The settings with the backend that the run began with: `auto` is resolved once per run."""
    before = Facts.of_run(folder).backend
    if config.data.backend != "auto" or not before:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, backend=before))


def _caches(
    config: Config, train: Records, device: torch.device, say: Say
) -> tuple[Ensemble | None, str | None, DistillConfig]:
    """(caches, the backend that they need, settings with a temperature); no caches: (None, None, the settings)."""
    if not METHODS[config.distill.method].targets or not config.cache.paths:
        return None, None, config.distill
    caches, backend, distill, notes = open_cache(config, train, device)
    for line in notes:
        say(line)
    return caches, backend, distill


def _evaluation(config: Config, splits: Splits, trained: str, accelerator: Accelerator) -> dict[str, Split]:
    recipe, found = config.data.recipe.evaluation(), {}
    dtype = input_dtype(config.model.name, precision_of(accelerator))
    for split, records in splits.evaluation.items():
        backend = evaluation_backend(trained, records, recipe, accelerator.device)
        if backend != trained:
            accelerator.print(f"data.{split} is loaded by backend {backend}: {trained} cannot serve it")
        found[split] = Split(
            make_loader(config, records, recipe, backend, accelerator, batch=config.eval.batch, dtype=dtype), backend
        )
    return found


def _check_choices(config: Config, evaluation: dict[str, Split]) -> None:
    if config.eval.patience is not None and config.save.keep_best == "no":
        raise UserError(
            f"eval.patience={config.eval.patience}: early stopping selects the last step by images that are neither "
            "trained on nor tested: type save.keep_best=val, with data.val; to select on the test split, type "
            "save.keep_best=test_split_knowingly"
        )
    if config.save.keep_best != "no":
        split = "val" if config.save.keep_best == "val" else "test"
        if split not in evaluation or not config.eval.period(1):
            raise UserError(
                f"save.keep_best={config.save.keep_best}: needs data.{split}, and eval.every_epochs or every_steps above 0"
            )


def _note_on_patience(config: Config, schedule: Schedule) -> str | None:
    """A line for an eval.patience that cannot end the training, as too few evaluations come after the first."""
    patience, period = config.eval.patience, config.eval.period(schedule.steps_per_epoch)
    if patience is None or not period:
        return None
    evaluations = -(-schedule.total_steps // period)
    if patience < evaluations - 1:
        return None
    return (
        f"warning: eval.patience={patience} cannot end this training, which has {counted(evaluations, 'evaluation')}; type a "
        "smaller one, or eval.every_steps=N for more evaluations"
    )


def _check_overlaps(config: Config, splits: Splits, say: Say) -> None:
    """Say which splits have the same images; UserError where save.keep_best=val would select on others than those of data.val."""
    for split, other, share in overlaps(splits):
        same = f"data.{split} and data.{other} share {share:.0%} of their images"
        if config.save.keep_best == "val" and "val" in (split, other):
            on_test = "test" in (split, other)
            more = "data.test=null, save.keep_best=test_split_knowingly or " if on_test else ""
            what = "the test split" if on_test else "training images"
            raise UserError(
                f"save.keep_best=val would select on {what}: {same}; give data.val images of its own (tools/convert.py folder "
                f"--val SHARE makes them), or type {more}save.keep_best=no"
            )
        say(f"warning: {same}")


def _order(config: Config, train: Records, accelerator: Accelerator) -> TrainOrder:
    optim, world = config.optim, accelerator.num_processes
    if optim.batch % (world * optim.accumulate):
        unit = world * optim.accumulate
        below = optim.batch // unit * unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        raise UserError(
            f"optim.batch={optim.batch} does not split into {world} processes x optim.accumulate={optim.accumulate}; "
            f"nearest: optim.batch={near}"
        )
    _require_full_batch(config, len(train), world)
    try:
        return TrainOrder(
            train.keys,
            config.seed,
            optim.batch,
            views_of(config, len(train)),
            accelerator.process_index,
            world,
            labels=train.labels,
            sampling=config.data.sampling,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_full_batch(config: Config, images: int, world: int) -> None:
    """UserError, naming a batch that fits, where the training images do not fill one."""
    optim, unit = config.optim, world * config.optim.accumulate
    if optim.batch <= images:
        return
    if images < unit:
        raise UserError(
            f"optim.batch={optim.batch} is larger than the {images} training images, which {world} processes x "
            f"optim.accumulate={optim.accumulate} cannot share: use fewer processes, or optim.accumulate=1, and a smaller "
            "optim.batch"
        )
    power = 2 ** (max(1, images // 4).bit_length() - 1)  # at least four steps an epoch
    typed = f"optim.batch={max(unit, power // unit * unit)}"
    if optim.lr_scale == "none":
        typed += f" optim.lr_scale=linear optim.lr_base_batch={optim.batch}"
    raise UserError(f"optim.batch={optim.batch} is larger than the {images} training images; type {typed}")


def _note_on_rest(order: TrainOrder, images: int) -> str | None:
    """A line on the images that full batches leave out, where these are more than a tenth."""
    rest = images - order.steps_per_epoch * order.batch
    if rest * 10 <= images or order.sampling != "instance":  # which leaves out more, of frequent classes
        return None
    return (
        f"an epoch has {counted(order.steps_per_epoch, 'step')} of {order.batch} images: {rest} of {images} are left out of "
        "each, others each time; a smaller optim.batch leaves out fewer"
    )


def _note_on_norms(config: Config, processes: int) -> str | None:
    """A line on synchronised norms of a compiled network: torch 2.13 does not compile their messages."""
    if not (config.model.sync_bn and config.compile and processes > 1):
        return None
    return (
        "warning: model.sync_bn=true cuts the compiled network at every norm, where torch runs plain code; compare the speed "
        "with compile=false"
    )


def _network(config: Config, train: Records, folder: Path, accelerator: Accelerator) -> tuple[nn.Module, str | None]:
    """(the network on the device, drawn from the seed or filled as model.init says; hash of what filled it)."""
    torch.manual_seed(config.seed)
    spec = _spec(config, train)
    try:
        network = spec.build().to(accelerator.device)
    except ValueError as error:
        raise UserError(f"model.name: {error}") from error
    init = _initialised(network, config, train, folder, accelerator.print)
    if (part := METHODS[config.distill.method].part) is not None:
        freeze_all_but(network, part)
    if config.model.sync_bn:
        if accelerator.device.type != "cuda":
            raise UserError("model.sync_bn=true needs GPUs (torch has it for them alone); leave it out")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return channels_last(network), init


def _initialised(network: nn.Module, config: Config, train: Records, folder: Path, say: Say) -> str | None:
    """Fill the network as model.init says, unless a checkpoint will; returns the hash of the first session's weights."""
    if config.model.init is None:
        return None
    if checkpoint.has_checkpoint(folder):
        return Facts.of_run(folder).init
    initial = _initial(network, config, train)
    for line in initial.report:
        say(line)
    return initial.weights


def _initial(network: nn.Module, config: Config, train: Records) -> Initial:
    """What model.init gives: whatever fits, or, where only a part of the network is trained, all the rest of it."""
    source, spec, class_names = config.model.init, _spec(config, train), list(train.class_names)
    assert source is not None
    part, data = METHODS[config.distill.method].part, config.data
    if part is None:
        return initialise(network, source, spec, class_names)
    seen = {"data.mean": list(data.mean), "data.std": list(data.std), "data.recipe.size": data.recipe.size}
    return initialise_all_but(network, part, source, spec, class_names, seen)


def _spec(config: Config, train: Records) -> ModelSpec:
    try:
        return config.model.spec(train.num_classes)
    except ValueError as error:  # it names the key itself
        raise UserError(str(error)) from error


def _objective(
    config: Config, distill: DistillConfig, train: Records, source: Source, device: torch.device, steps_per_epoch: int
) -> Objective:
    """distill: the configuration's, with the temperature resolved."""
    counts, mode = torch.from_numpy(train.class_counts).to(device), config.compile_mode if config.compile else None
    often = drawn(train.class_counts, config.data.sampling)
    return Objective(distill, counts, source.targets, config.model.logit_scale, steps_per_epoch, mode, often)
