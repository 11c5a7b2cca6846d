"""The training loop: takes batches, makes optimizer steps, saves checkpoints on the way.

Straight-line code without callbacks. Steps are the clock; everything periodic asks `due`. The loop knows neither priors nor
where soft targets come from: the objective owns them. Invariant: a run that is killed and resumed takes the same steps on
the same views as one that is not, ends after the same step, and no checkpoint ever holds a step whose loss was not finite.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from models import set_training
from pipelines.device import Lead
from pipelines.errors import UserError
from pipelines.files import write_json_atomic
from pipelines.loader import Loader
from pipelines.order import TrainOrder
from train.config import Config
from train.ema import Ema
from train.meters import Meters, NotFinite
from train.networks.weights import require_finite
from train.objectives.objective import Objective
from train.run.checkpoint import (
    NOT_FINITE,
    Checkpoint,
    Keep,
    SaveConfig,
    has_figures,
    load_from,
    load_latest,
    pointed_at,
    step_folder,
)
from train.run.optimizer_state import optimizer_tensors, restore_optimizer
from train.run.saver import Saver
from train.run.stops import Stopped, Stops
from train.schedule import Schedule
from train.step import TrainStep
from train.watch.ceiling import measure_ceiling
from train.watch.dashboards import Dashboards
from train.watch.picture import save_picture
from train.watch.profiling import traced
from train.watch.tracking import Tracker

LOG_STEPS = 50  # steps between two lines of metrics within an epoch


def due(done: int, every: int, total: int) -> bool:
    """Whether something periodic is due after `done` of `total` steps; every = 0 means only at the end."""
    return done == total or (every > 0 and done % every == 0)


class Best(NamedTuple):
    """The step after which the selected split scored highest, its score, and the `save.keep_best` that selected it."""

    step: int
    score: float
    chosen_on: str
    since: int = 0
    "evaluations after it, none of which scored higher"

    def outlasts(self, patience: int | None) -> bool:
        """Whether so many evaluations came after it that the training is over."""
        return patience is not None and self.since >= patience


class Fitted(NamedTuple):
    """How a training ended. speed: the session's figures; stopped_early: the best evaluation, where `eval.patience` ended it."""

    steps: int
    speed: dict[str, float | None]
    stopped_early: Best | None


class Evaluated(NamedTuple):
    """figures: for the log; score: what `save.keep_best` selects by, None when nothing is selected."""

    figures: dict[str, Any]
    score: float | None


@torch.no_grad()
def _tensors(
    network: nn.Module, optimizer: Any, ema: Ema | None, sums: dict[str, torch.Tensor], device: torch.device
) -> dict[str, Any]:
    """All tensors of a checkpoint, by group."""
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state()
    return {
        "model": network.state_dict(),
        "optimizer": optimizer_tensors(network, optimizer.optimizer),
        **({"ema": ema.state_dict()} if ema else {}),
        "rng": rng,
        "meters": sums,
    }


@dataclass(frozen=True, kw_only=True)
class Training:
    """All parts of a training, put together and checked (experiment.py)."""

    config: Config
    accelerator: Accelerator
    model: nn.Module
    "as `accelerator.prepare` returned it"
    optimizer: Any
    "likewise"
    objective: Objective
    loader: Loader
    order: TrainOrder
    schedule: Schedule
    ema: Ema | None

    @property
    def network(self) -> nn.Module:
        """The model without its wrapper for several processes."""
        return self.accelerator.unwrap_model(self.model)


def fit(
    training: Training,
    folder: Path,
    evaluate: Callable[[], Evaluated] | None,
    stops: Stops,
    dashboards: Dashboards,
) -> Fitted:
    """Train from the newest checkpoint in `folder` (or from `resume`, or from the start) to the end of the schedule.

    With eval.patience it may be over before. evaluate: called as often as `eval` says; it may raise Stopped.
    Raises Stopped after everything is saved.
    """
    config, accelerator, ema = training.config, training.accelerator, training.ema
    network, optimizer, objective = training.network, training.optimizer, training.objective
    loader, order, schedule = training.loader, training.order, training.schedule
    total, epoch_steps = schedule.total_steps, order.steps_per_epoch
    meters = Meters(accelerator.device)
    train = TrainStep(
        training.model,
        optimizer.optimizer,
        objective,
        config.optim,
        accelerator.scaler,
        meters=meters,
        ema=ema,
        graph=config.cuda_graph,
    )
    checkpoint = _newest(folder, config.resume, total, accelerator)
    first, best, unevaluated = 0, None, False
    if checkpoint:
        first = checkpoint.step
        best, unevaluated = _restore(checkpoint, network, optimizer, ema, meters, accelerator)
        # A best evaluation of another run (resume=PATH), or on another split, means nothing here.
        if best and (best.chosen_on != config.save.keep_best or not step_folder(folder, best.step).is_dir()):
            best = None
    lost = checkpoint is None and has_figures(folder)  # asked before the tracker begins them anew
    batches = loader.stream(order.plan(first, total))
    saver, lead = Saver(folder), Lead(accelerator.device)
    tracker = Tracker(
        folder,
        is_main=accelerator.is_main_process,
        total_steps=total,
        steps_per_epoch=epoch_steps,
        resumed_at=first if checkpoint else None,
        device=accelerator.device,
        dashboards=dashboards,
    )

    def require_finite_so_far() -> None:
        """What made a loss infinite is told before the loss: soft targets that were not finite."""
        objective.require_finite(loader, accelerator)
        meters.require_finite(accelerator)

    def evaluation(done: int) -> Best | None:
        assert evaluate is not None
        require_finite_so_far()  # before the clock of the training stops: it waits for the steps that a GPU has still to do
        with tracker.evaluating():
            _require_finite_update(done - 1, network, optimizer, accelerator)
            figures, score = evaluate()
            tracker.event(done, **figures)
        if score is None:
            return best
        if best is not None and score <= best.score:
            return best._replace(since=best.since + 1)
        return Best(done, score, config.save.keep_best)

    def over() -> bool:
        """Whether early stopping ends the training now: a function of the evaluations so far, which checkpoints hold."""
        return best is not None and best.outlasts(config.eval.patience)

    def checkpoint_now(done: int, unevaluated: bool) -> None:
        """unevaluated: the evaluation that is due at this step is still to come. The files are written while training goes on."""
        require_finite_so_far()
        with tracker.evaluating():
            _require_finite_update(done - 1, network, optimizer, accelerator)
            sums, count = meters.state(accelerator)
            if accelerator.is_main_process:
                tensors = _tensors(network, optimizer, ema, sums, accelerator.device)
                state = {"meters": count, "best": best, "unevaluated": unevaluated}
                state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                saver.save(done, tensors, state, _keep(config.save, best, epoch_steps), before_writing=tracker.sync)

    def all_saved() -> None:
        """Return, on all processes, when everything is on the disk."""
        saver.wait()
        accelerator.wait_for_everyone()

    set_training(training.model)
    try:
        if checkpoint:
            for line in checkpoint.warnings:
                tracker.say(f"warning: {line}")
            tracker.say(f"resumed after step {first} (epoch {first / epoch_steps:g} of {total / epoch_steps:g})")
        if lost:
            tracker.say("no checkpoint was kept of the steps trained before: the training begins at step 0")
        if unevaluated and evaluate:
            try:
                best = evaluation(first)
            except Stopped as request:
                raise stops.obeyed(str(request), f"after step {first} of {total}, saved") from request
            checkpoint_now(first, unevaluated=False)
        done, end = first, first if over() else total
        for step in traced(range(first, end), config.profile, folder, tracker, accelerator.is_main_process):
            before = loader.waited
            batch = next(batches)
            tracker.data_wait(loader.waited - before)
            if step == first:
                if step == 0 and config.track.show_batch and accelerator.is_main_process:
                    with tracker.evaluating():  # counts neither as training nor as waiting
                        tracker.say(save_picture(folder, batch, config.data, loader.records.class_names))
                # It compiles what the first step would compile otherwise, whose time therefore includes the measurement.
                tracker.ceiling(measure_ceiling(config, accelerator, training.model, optimizer, objective, batch))
            lr = schedule.at(step)
            train(batch, step, lr)
            lead.step()
            done = step + 1
            tracker.step(done, config.optim.batch)
            if due(done % epoch_steps, LOG_STEPS, total=0) or done == total:  # due: also at the end of each epoch
                require_finite_so_far()
                tracker.log(done, lr=lr, **meters.read(accelerator))
            stop = stops.agreed()
            # The result evaluates the last step anyway; it is evaluated here only if the best is to be selected.
            last = total if config.save.keep_best != "no" else total - 1
            unevaluated = bool(evaluate) and done <= last and due(done, config.eval.period(epoch_steps), total)
            if unevaluated and not stop:
                try:
                    best, unevaluated = evaluation(done), False
                except Stopped as request:
                    stop = str(request)
            every_steps, every_epoch = config.save.every_steps, config.save.every_epochs * epoch_steps
            found_best = best is not None and best.step == done
            to_save = due(done, every_epoch, total) or (every_steps and done % every_steps == 0)
            if stop or found_best or over() or to_save:
                checkpoint_now(done, unevaluated)
            if stop:
                all_saved()
                raise stops.obeyed(stop, f"after step {done} of {total}, saved")
            if over():
                break
        early = best if over() and done < total else None
        if early:
            tracker.say(
                f"ended after step {done} of {total} (eval.patience={config.eval.patience}): none of the last {early.since} "
                f"evaluations was better than that after step {early.step}"
            )
        fitted = Fitted(done, tracker.speed(), early)
        all_saved()
        return fitted
    except NotFinite as found:
        saver.close()  # the message names the last checkpoint
        raise _not_finite(found, folder, config, order, loader, accelerator) from found
    finally:
        # Each of them, also where a second Ctrl-C interrupts one.
        with contextlib.closing(batches), contextlib.closing(tracker):
            saver.close()


@torch.no_grad()
def _require_finite_update(step: int, network: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
    """NotFinite where the loss of `step` was finite but the updated weights are not: a gradient may overflow."""
    tensors = [*network.state_dict().values(), *optimizer_tensors(network, optimizer.optimizer).values()]
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors if tensor.is_floating_point()]
    fine = torch.isfinite(torch.stack([one.to(accelerator.device) for one in sums])).all()
    if not bool(accelerator.gather(fine.reshape(1)).all()):  # type: ignore[union-attr]
        raise NotFinite(step, loss=False)


def _keep(config: SaveConfig, best: Best | None, epoch_steps: int) -> Keep:
    return Keep(config.keep_last, config.keep_every * epoch_steps, best.step if best else None)


def _newest(folder: Path, resume: str, total: int, accelerator: Accelerator) -> Checkpoint | None:
    """The checkpoint to continue from: the run's own; if it has none, the one that `resume` names."""
    found = load_latest(folder)
    if found is None and resume not in ("auto", "never"):
        found = load_from(resume)
        if found.step > total:
            raise UserError(
                f"resume={resume} is after step {found.step}, this run ends after {total}: lengthen schedule"
            )
    step = found.step if found else None
    (mains,) = broadcast_object_list([step])
    if mains != step:
        raise UserError(
            f"rank {accelerator.process_index} sees another newest checkpoint in {folder} (step {step}) than rank 0 (step "
            f"{mains}): the run's folder must be the same on all machines; give run=FOLDER on a shared file system"
        )
    return found


def _restore(
    checkpoint: Checkpoint,
    network: nn.Module,
    optimizer: Any,
    ema: Ema | None,
    meters: Meters,
    accelerator: Accelerator,
) -> tuple[Best | None, bool]:
    """Everything that `checkpoint_now` saved; returns the best evaluation, and whether this step's is still to come."""
    tensors, state = checkpoint.tensors, checkpoint.state
    for group in ("model", "ema", "optimizer"):
        require_finite(tensors.get(group, {}), f"the checkpoint of step {checkpoint.step}")
    try:
        network.load_state_dict(tensors["model"])
    except RuntimeError as error:  # only from `resume=`: a run's own settings are checked
        raise UserError(f"the checkpoint does not fit model.name: {' '.join(str(error).split())[:300]}") from error
    restore_optimizer(network, optimizer.optimizer, tensors["optimizer"])
    if ema:
        ema.load_state_dict(tensors.get("ema", tensors["model"]))
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    meters.restore(tensors["meters"], state["meters"], accelerator)
    torch.set_rng_state(tensors["rng"]["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in tensors["rng"]:
        torch.cuda.set_rng_state(tensors["rng"]["cuda"])
    return Best(*state["best"]) if state["best"] else None, state["unevaluated"]


def _not_finite(
    found: NotFinite, folder: Path, config: Config, order: TrainOrder, loader: Loader, accelerator: Accelerator
) -> UserError:
    """The error for the user; writes the images of that step, recomputed from the order, to a file."""
    step = found.step
    (plan,) = order.whole().plan(step, step + 1)
    records, path, images = loader.records, folder / NOT_FINITE, len(plan.positions)
    if accelerator.is_main_process:
        listed = [
            {"key": int(records.keys[i]), "name": records.name(i), "view": int(view)}
            for i, view in zip(plan.positions, plan.views, strict=True)
        ]
        write_json_atomic(path, {"step": step, "images": listed})
    keys = ", ".join(str(key) for key in records.keys[plan.positions[:3]])
    good = pointed_at(folder, "latest")
    kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    if step == 0 and found.loss:  # nothing has been learnt yet, so that no learning rate can be to blame
        init = f"model.init={config.model.init}" if config.model.init else f"model.name={config.model.name}, as drawn,"
        return UserError(
            f"the loss of step 0 is not finite, before any update of the weights (images with the keys {keys} ...: all "
            f"{images} are in {path}): {init} gives logits that overflow, or a setting of distill, data.mean or data.std is out "
            "of range. The same command with --dry-run names the first image; use other weights or settings, or precision=fp32"
        )
    where = f", in a new run=NAME (with resume={folder} it begins where this one was good)"
    again = where if good else ": with other settings the same command begins anew"
    return UserError(
        f"the loss of step {step} is not finite, or the weights after it (images with the keys {keys} ...: all {images} "
        f"are in {path}); {kept}. "
        f"Lower optim.lr, lengthen schedule.warmup_epochs, set optim.clip, or use precision=fp32{again}"
    )
