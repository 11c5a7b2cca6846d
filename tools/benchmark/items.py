"""What tools/bench.py measures of ours: loaders, the training step, and training and distillation as the two together.

Everything is built from the parts that training uses, with the same settings, before the first measurement.
Invariant: all steps of a bench are the same step (one network, one optimizer) with every source of batches.
"""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from models import set_training
from models.outputs import freeze_all_but
from pipelines.backends import PixelSource, available_backends, pixel_source, refusal, resolve_backend
from pipelines.batch import Batch, Plan
from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.logits import CacheWriter, Ensemble, LogitCache
from pipelines.logits.fingerprint import Fingerprints
from pipelines.logits.identity import cache_identity, view_identity
from pipelines.records.layout import rows_digest
from pipelines.records.reader import Records
from tools.benchmark.clock import Source, Stream, Timing, endless
from train.config import Config
from train.data import make_loader, views_of
from train.graph import WARM_UP, require_one_gpu
from train.meters import Meters
from train.networks.final import save_final
from train.networks.info import ModelInfo
from train.networks.layout import channels_last, compile_in_place, input_dtype
from train.objectives.methods import METHODS, hard_part
from train.objectives.objective import Objective
from train.objectives.sources import asked_recipe, make_teacher, open_cache
from train.objectives.targets import Targets
from train.optim import build_optimizer
from train.run.environment import precision_of
from train.step import TrainStep

_COPIES = 10  # host-to-device copies between two looks at the clock


@dataclass
class Row:
    """One line of the table: a source and its timings, one a round; or why it is absent.

    id: letter and name, such as "a.ffcv"; images: at least so many in each measurement.
    """

    id: str
    title: str
    note: str = ""
    source: Source | None = None
    images: int = 0
    absent: str | None = None
    timings: list[Timing] = field(default_factory=list)

    def give_up(self, reason: str) -> None:
        """Mark the row as absent, because of `reason`."""
        self.source, self.absent, self.timings = None, reason, []

    def median(self, figure: str) -> float:
        """The median over the rounds of one property of Timing."""
        return float(np.median([getattr(timing, figure) for timing in self.timings]))


class Steps:
    """Training steps (train/step.py) of one network and one optimizer, for any objective.

    The rate is 0: that costs as much as any other, and weights that stay cannot run off to infinity.
    """

    def __init__(self, config: Config, records: Records, accelerator: Accelerator):
        torch.manual_seed(config.seed)
        try:
            network = config.model.spec(records.num_classes).build().to(accelerator.device)
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        network = channels_last(network)
        if (part := METHODS[config.distill.method].part) is not None:
            freeze_all_but(network, part)
        optimizer = build_optimizer(network, config.optim, scaled=accelerator.scaler is not None)
        compile_in_place(network, config.compile, config.compile_mode)
        self._model, self._optimizer = accelerator.prepare(network, optimizer)
        set_training(self._model)
        self._accelerator, self._config, self._graph = accelerator, config.optim, config.cuda_graph

    def of(self, objective: Objective) -> Callable[[Batch], int]:
        """A function that takes one step and returns the number of images."""
        accelerator = self._accelerator
        meters = Meters(accelerator.device)
        step = TrainStep(
            self._model,
            self._optimizer.optimizer,
            objective,
            self._config,
            accelerator.scaler,
            meters=meters,
            graph=self._graph,
        )

        def take(batch: Batch) -> int:
            step(batch, 0, 0.0)
            return len(batch.keys)

        return take


class _Gathered:
    """Targets of a cache, without the comparison of pixels, which training makes once an epoch."""

    def __init__(self, cache: Ensemble, device: torch.device):
        self._cache, self._device = cache, device

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self._cache.gather(batch.keys, batch.views, self._device)


def temporary_cache(
    folder: Path, config: Config, records: Records, pool: np.ndarray, source: PixelSource
) -> LogitCache:
    """One view of the samples of `pool`, written by the real writer; its logits are noise, which costs the same to read."""
    rows = records.rows()
    recipe = asked_recipe(config)
    if recipe == config.data.recipe:  # otherwise partners are asked for too, which are drawn from all samples
        rows = rows[np.isin(rows["key"], records.keys[pool])]
    view = view_identity(records, recipe, config.data.seed, source)
    view["dataset"]["digest"] = rows_digest(rows)
    identity = cache_identity(view, {"weights": "", "architecture": "noise"}, config.cache.codec, config.cache.batch)
    writer = CacheWriter(folder, "bench", identity, rows)
    rng = np.random.default_rng(0)
    for view_number, block in writer.missing(1):
        count = writer.block_size(block)
        logits = 3 * rng.standard_normal((count, records.num_classes), np.float32)
        prints = Fingerprints(np.zeros(count, np.uint32), np.zeros((count, 16), np.uint8))
        writer.write((view_number, block), logits, prints)
    writer.finish(1, None)
    return LogitCache(writer.folder)


def temporary_teacher(folder: Path, config: Config, records: Records) -> Path:
    """A run folder with an untrained network of the configuration's architecture."""
    folder.mkdir()
    spec = config.model.spec(records.num_classes)
    network = spec.build()
    info = ModelInfo(
        architecture=spec.architecture,
        class_names=list(records.class_names),
        mean=list(config.data.mean),
        std=list(config.data.std),
        input_size=config.data.recipe.size,
    )
    save_final(folder, network.state_dict(), info)
    return folder


class Ours:
    """Rows (a) to (e). pool: the int64 positions that every pass walks over; folder: for temporary files.

    Attributes: backend, the one that training uses; notes, what is to be said of a cache that was given.
    """

    def __init__(self, config: Config, records: Records, pool: np.ndarray, accelerator: Accelerator, folder: Path):
        require_one_gpu(config, accelerator)
        # The temperature may not be chosen yet; the speed does not depend on it.
        distill = dataclasses.replace(config.distill, tau=config.distill.tau or 1.0)
        self._config = dataclasses.replace(config, distill=distill)
        self._records, self._pool, self._folder = records, pool, folder
        self._views = views_of(config, len(records))
        self._accelerator, self._device = accelerator, accelerator.device
        # Batches before the clock starts; a graph is recorded in the last.
        self._warm = WARM_UP + 1 if config.cuda_graph else 2
        self._distils = METHODS[distill.method].targets
        self._cache: Ensemble | None = None
        self.notes: list[str] = []
        if self._distils and config.cache.paths:
            self._cache, self.backend, _, self.notes = open_cache(self._config, records, self._device)
        else:
            self.backend = resolve_backend(config.data.backend, records, config.data.recipe, self._device)

    # ---- what rows share ----

    def _make_loader(self, backend: str, finished: bool = True) -> Loader:
        """A loader that has checked and delivered each record of the pool once."""
        config = self._config
        dtype = input_dtype(config.model.name, precision_of(self._accelerator))
        loader = make_loader(
            config, self._records, config.data.recipe, backend, self._accelerator, finished, dtype=dtype
        )
        # Full batches only: one of another size would make compiled code of the finish anew, for any size.
        for _ in loader.stream(itertools.islice(self._plan(1), -(-len(self._pool) // config.optim.batch))):
            pass
        return loader

    def _plan(self, views: int) -> Iterator[Plan]:
        return endless(self._pool, self._config.optim.batch, views)

    @cached_property
    def _loader(self) -> Loader:
        return self._make_loader(self.backend)

    @cached_property
    def _batch(self) -> Batch:
        """A batch that stays on the device."""
        batches = self._loader.stream(self._plan(1))
        try:
            return next(batches)
        finally:
            batches.close()

    @cached_property
    def _steps(self) -> Steps:
        """Compiled and warm."""
        steps = Steps(self._config, self._records, self._accelerator)
        step = steps.of(self._objective(None))
        for _ in range(3):
            step(self._batch)
        return steps

    def _objective(self, targets: Targets | None) -> Objective:
        """The method's; without targets its hard-label part."""
        method = self._config.distill.method if targets else hard_part(self._config.distill)
        distill = dataclasses.replace(self._config.distill, method=method, p=self._config.distill.p if targets else 1.0)
        counts, steps = self._records.class_counts, max(1, len(self._records) // self._config.optim.batch)
        mode = self._config.compile_mode if self._config.compile else None
        return Objective(
            distill, torch.from_numpy(counts).to(self._device), targets, self._config.model.logit_scale, steps, mode
        )

    # ---- (a) ----

    def loaders(self) -> Iterator[Row]:
        """Measure the loader alone: one row for each backend."""
        recipe = self._config.data.recipe
        able = available_backends(self._records, recipe, self._device)
        for backend in ("resident", "dali", "ffcv", "reference"):
            row = Row(f"a.{backend}", f"loader alone, {backend}", images=len(self._pool))
            row.note = "used in (c), (d), (e)" if backend == self.backend else ""
            try:
                row.source = self._loader_alone(backend) if backend in able else None
                row.absent = None if row.source else refusal(backend, self._records, recipe, self._device)
            except UserError as error:  # a backend that was not asked for loses its row; the bench goes on
                if backend == self.backend:
                    raise
                row.give_up(str(error))
            yield row

    def _loader_alone(self, backend: str) -> Stream:
        loader = self._make_loader(backend, finished=False)  # all share the finish, which has a row of its own
        return self._fed_by(loader, self._views, lambda batch: len(batch.keys))

    def _fed_by(self, loader: Loader, views: int, work: Callable[[Batch], int]) -> Stream:
        """A source that does `work` on every batch of a loader."""

        def run() -> Generator[int, None, None]:
            batches = loader.stream(self._plan(views))
            try:
                yield from map(work, batches)
            finally:
                batches.close()

        return Stream(run, self._device, self._warm)

    # ---- (b) ----

    def device_alone(self) -> Iterator[Row]:
        """The ceiling, and what a batch needs before the step: finish and, to a GPU, the transfer."""
        steps, kept, finish = self._steps, self._batch, self._loader.finish
        soft = torch.randn(len(kept.labels), self._records.num_classes, device=self._device)
        objective = self._objective((lambda batch: soft[: len(batch.labels)]) if self._distils else None)
        step = steps.of(objective)
        step_alone = self._repeated(lambda: step(kept))
        method = self._config.distill.method
        yield Row("b.step", "training step, batch stays on the device", note=method, source=step_alone)

        def finish_once() -> int:
            assert finish is not None
            finish.of(kept)
            return len(kept.pixels)

        yield Row("b.finish", "finish: jitter, normalise", source=self._repeated(finish_once))
        transfer = Row("b.transfer", "transfer of the crops to the device")
        if self._device.type == "cpu":
            transfer.absent = "none, the device is the CPU"
        elif self.backend in ("dali", "resident"):
            transfer.absent = f"none, {self.backend} makes the crops there"
        else:
            transfer.source = self._transfer()
        yield transfer

    def _transfer(self) -> Stream:
        pixels = self._batch.pixels.cpu().pin_memory()

        def copy() -> int:
            for _ in range(_COPIES):
                pixels.to(self._device, non_blocking=True)
            return _COPIES * len(pixels)

        return self._repeated(copy)

    def _repeated(self, work: Callable[[], int]) -> Stream:
        def run() -> Generator[int, None, None]:
            while True:
                yield work()

        return Stream(run, self._device, self._warm)

    # ---- (c), (d), (e) ----

    def _trained(self, targets: Targets | None, views: int) -> Stream:
        return self._fed_by(self._loader, views, self._steps.of(self._objective(targets)))

    def training(self) -> Row:
        """Hard labels only."""
        method = hard_part(self._config.distill)
        return Row("c.training", f"training from disk ({method})", source=self._trained(None, self._views))

    def cached(self) -> Row:
        """Soft targets from a cache."""
        row = Row("d.cache", "distillation from a cache")
        if not self._distils:
            row.absent = self._no_targets()
            return row
        if self._cache is None:
            source = pixel_source(self.backend, self._records, self._device, self._config.data.hw_decoder_load)
            temporary = temporary_cache(self._folder, self._config, self._records, self._pool, source)
            cache, kind = Ensemble([temporary]), "temporary"
        else:
            cache, kind = self._cache, "given"
        views = min(cache.views, self._views)
        row.note = f"{kind}: {', '.join(one.identity['codec'] for one in cache.caches)}, views: {views}"
        row.source = self._trained(_Gathered(cache, self._device), views)
        return row

    def online(self) -> Row:
        """Soft targets from the teacher."""
        row = Row("e.online", "distillation with the online teacher")
        if not self._distils:
            row.absent = self._no_targets()
            return row
        config = self._config
        if config.distill.teacher is None:
            path = temporary_teacher(self._folder / "teacher", config, self._records)
            config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, teacher=str(path)))
        teacher = make_teacher(config, self._records, self._accelerator)
        row.note = teacher.identity["architecture"] + ("" if self._config.distill.teacher else ", untrained")
        row.source = self._trained(teacher, self._views)
        return row

    def _no_targets(self) -> str:
        return f"distill.method={self._config.distill.method} has no soft targets"
