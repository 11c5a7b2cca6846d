"""One training run: it is assembled, trained and evaluated, and its result is written; or it is only tried, or only shown."""

import math
from contextlib import AbstractContextManager
from typing import Any

from accelerate import Accelerator

from models import outputs_of, set_training
from pipelines.errors import UserError
from pipelines.files import check_folder_place
from train import loop
from train.assembly import Assembled, assemble, check_method
from train.config import Config
from train.effects import of_training
from train.evaluation.cost import operations
from train.evaluation.counting import evaluate
from train.evaluation.subject import evaluate_only
from train.finite import FiniteLogits
from train.networks.final import save_final
from train.networks.probe import explained
from train.objectives.methods import METHODS
from train.run.agreement import require_alike
from train.run.environment import device_name, make_accelerator
from train.run.folder import Run, moved
from train.run.place import note_on_place, run_folder, run_name
from train.run.stops import Stopped, Stops
from train.settings import Options, flatten, parse_args
from train.watch import tracking
from train.watch.dashboards import Dashboards

_SHOWN = 80  # characters of a run's name in a message


class Experiment:
    """One training run of an entry script, from settings to result.json.

    Raises UserError for everything that the user can correct, before the run directory is made wherever possible.
    """

    def __init__(self, config: Config, options: Options, script: str):
        check_method(config, script)
        self.config, self.options, self.script = config, options, script
        self.name = run_name(config.run, options.config, config.seed, config.distill.method)
        self.folder = run_folder(self.name)
        # A run that exists goes on by the command that began it, whatever that said.
        idle = None if (self.folder / "config.yaml").exists() else of_training(config, options)
        self.accelerator: Accelerator = make_accelerator(config)
        self.say = self.accelerator.print
        if idle:
            self.say(idle)
        if note := note_on_place(config.run, self.folder):
            self.say(note)

    def run(self) -> None:
        """Train the remaining steps, evaluate, write the result; a finished run only prints its result."""
        finished = not self.options.dry_run and (self.folder / "result.json").exists()
        require_alike(
            {"--dry-run": self.options.dry_run, "whether it is finished": finished},
            f"the processes differ about run {self.folder}",
            "its folder must be the same on all machines: give run=FOLDER on a file system that they share",
        )
        if finished and not moved(self.config, self.folder):
            self._show()
            return
        if not self.options.dry_run and self.accelerator.is_main_process:
            check_folder_place(self.folder, f"run={self.name}"[:_SHOWN])
        assembled = assemble(self.config, self.folder, self.accelerator)
        if self.options.dry_run:
            with self._explained(assembled):
                self._dry_run(assembled)
            return
        require_alike(
            assembled.facts.to_json(),
            "the processes would train on different things",
            "all machines need the same records, teachers, caches and kind of GPU",
        )
        assembled.facts.require_same(self.folder)
        self.accelerator.wait_for_everyone()  # before rank 0 writes there what the others have not compared yet
        if finished:
            self._show()
            return
        with (
            # First, because the others leave at once when all have stopped: the launcher then sends SIGTERM to the one that
            # still writes why it has ended.
            Stops(self.folder, self.accelerator.num_processes) as stops,
            self._dashboards() as dashboards,  # outside the run, as W&B may take its time to close
            Run.open(self.config, self.name, self.script, self.accelerator) as run,
        ):
            if run.note_on_last:
                self.say(run.note_on_last)
            for line in run.changes:
                self.say(f"since the last session: {line}")
            run.note(assembled.facts)
            between = (lambda: progress(assembled, stops)) if assembled.evaluation else None
            with self._explained(assembled):
                fitted = loop.fit(assembled.training, run.folder, between, stops, dashboards)
            self._end(assembled, fitted, run, stops, dashboards)

    def _show(self) -> None:
        """Print the result of a finished run."""
        with Run.open(self.config, self.name, self.script, self.accelerator) as run:
            self.say(f"run {self.folder} is finished; its result:")
            if self.accelerator.is_main_process:
                tracking.show_result(run.result() or {})

    def _end(self, assembled: Assembled, fitted: loop.Fitted, run: Run, stops: Stops, dashboards: Dashboards) -> None:
        """The last evaluation, the final weights, the result."""
        training = assembled.training
        try:
            evaluated: dict[str, dict[str, Any]] = {}
            for split in assembled.evaluation:
                evaluated |= evaluations(assembled, split, stops)
        except Stopped as request:
            raise stops.obeyed(str(request), "in the last evaluation; all steps are done and saved") from request
        evaluated = _with_cost(assembled, evaluated)
        result = self._result(assembled, evaluated, fitted)
        figures = {name: headline(found) for name, found in evaluated.items()}
        dashboards.log(fitted.steps, tracking.numbers(figures))
        if self.accelerator.is_main_process:
            ema_state = training.ema.state_dict() if training.ema else None
            save_final(run.folder, training.network.state_dict(), assembled.model_info(), ema_state)
            tracking.show_result(result)
        run.finish(result)

    def _explained(self, assembled: Assembled) -> AbstractContextManager[None]:
        """Around the training: a network that does not take the images, or too few of them, is told by the settings."""
        config = self.config
        # Of one forward pass of this process; sync_bn counts those of all processes together.
        images = config.optim.batch // config.optim.accumulate
        images = images if config.model.sync_bn else images // self.accelerator.num_processes
        spec = config.model.spec(assembled.splits.train.num_classes)
        return explained(spec, config.data.recipe.size, f"model.name={config.model.name}", images)

    def _dashboards(self) -> Dashboards:
        track, is_main = self.config.track, self.accelerator.is_main_process
        return Dashboards(list(track.trackers), track.project, self.folder, flatten(self.config), is_main)

    def _result(
        self, assembled: Assembled, evaluated: dict[str, dict[str, Any]], fitted: loop.Fitted
    ) -> dict[str, Any]:
        method, early = self.config.distill.method, fitted.stopped_early
        epochs = None if early else self.config.schedule.epochs
        return {
            "run": str(self.folder),
            "seed": self.config.seed,
            "device": device_name(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "method": method,
            **({"tau": assembled.facts.tau} if "tau" in METHODS[method].settings else {}),
            "epochs": epochs or fitted.steps / assembled.training.order.steps_per_epoch,
            "steps": fitted.steps,
            **({"stopped_early": {"best_step": early.step, "best_top1": early.score}} if early else {}),
            **evaluated,
            "speed": fitted.speed,
        }

    def _dry_run(self, assembled: Assembled) -> None:
        """Run one micro-batch forward and backward, and evaluate one batch of each split; takes no step, writes no file."""
        training = assembled.training
        batches = training.loader.stream(training.order.plan(0, 1))
        try:
            batch = next(batches)
            batch = batch.rows(0, len(batch.keys) // self.config.optim.accumulate)
            outputs = outputs_of(training.model(batch.images))
            loss, _ = training.objective(outputs, batch, 0)
            self.accelerator.backward(loss)
            value = float(loss.detach())  # the evaluation below may overwrite it: it runs the same CUDA graphs
            training.objective.require_finite(training.loader, self.accelerator)
            finite = FiniteLogits()
            finite.see(outputs.logits, batch.keys)
            init = f" (model.init={self.config.model.init})" if self.config.model.init else ""
            what = f"the network at its start{init}"
            finite.require(training.loader.records, what, "use other weights, or precision=fp32", self.accelerator)
            if not math.isfinite(value):
                raise UserError(
                    f"the loss of the first batch is {value}, of finite logits: check the "
                    "settings of distill, or use precision=fp32"
                )
        finally:
            batches.close()
        for split, (loader, _) in assembled.evaluation.items():
            done = evaluations(assembled, split, batches=1)[split]["samples"]
            self.say(f"{split}: {done} of {len(loader.records)} images evaluated")
        memory = tracking.peak_memory(self.accelerator.device) / 1e9
        self.say(
            f"dry run: loss {value:.4f} on one batch, peak memory {memory:.1f} GB; "
            f"{training.order.steps_per_epoch} steps an epoch, {training.schedule.total_steps} in all; would train into "
            f"{self.folder}"
        )


def train_or_evaluate(script: str, argv: list[str], description: str) -> None:
    """What the entry script `script` (e.g. train/distill.py) does with its command line."""
    config, options = parse_args(argv, description, Config)
    experiment = Experiment(config, options, script)
    if config.eval_only:
        evaluate_only(config, options, experiment.folder, experiment.accelerator)
    else:
        experiment.run()


def progress(assembled: Assembled, stops: Stops) -> loop.Evaluated:
    """Figures of an evaluation during training: on val if there is one, else on test; only save.keep_best selects by them."""
    keep_best = assembled.training.config.save.keep_best
    split = {"no": "val", "val": "val", "test_split_knowingly": "test"}[keep_best]
    split = split if split in assembled.evaluation else "test"
    figures = {name: headline(found) for name, found in evaluations(assembled, split, stops).items()}
    return loop.Evaluated(figures, list(figures.values())[-1]["top1"] if keep_best != "no" else None)


def evaluations(
    assembled: Assembled, split: str, stops: Stops | None = None, batches: int | None = None
) -> dict[str, dict[str, Any]]:
    """{SPLIT: figures} of the weights, and {SPLIT_ema: figures} of their average, if there is one; batches: as in `evaluate`."""
    found, ema = {split: _evaluated(assembled, split, stops, batches)}, assembled.training.ema
    if ema:
        with ema.applied():
            found[f"{split}_ema"] = _evaluated(assembled, split, stops, batches)
    return found


def _evaluated(assembled: Assembled, split: str, stops: Stops | None, batches: int | None) -> dict[str, Any]:
    training, counts = assembled.training, assembled.splits.train.class_counts
    loader, backend = assembled.evaluation[split]
    batch, accelerator = training.config.eval.batch, training.accelerator
    done = evaluate(training.model, loader, batch, counts, accelerator, stops=stops, batches=batches)
    return done.figures | {"backend": backend}


def headline(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that a line of metrics.jsonl holds, and a dashboard shows; experts_used where there are routers."""
    names = ["top1", "top5", "balanced_accuracy", "many", "medium", "few", "nll", "ece"]
    return {name: figures[name] for name in names + ["experts_used"] * ("experts_used" in figures)}


def _with_cost(assembled: Assembled, evaluated: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures, each with the operations for an image, which are the same for all splits and weights, and counted once."""
    if not evaluated:
        return {}
    training = assembled.training
    size, device = training.config.data.recipe.evaluation().size, training.accelerator.device
    network = training.network
    network.eval()
    try:
        counted = operations(network, size, device)
    finally:
        set_training(network)
    return {name: found | counted.figures(found.get("expert_shares")) for name, found in evaluated.items()}
