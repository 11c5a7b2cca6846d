"""Every setting reaches its destination: each key of the tree has an effect on a tiny run that is visible from outside.

A wire is an entry of WIRES: it gives its key another value and looks at what the run did (`Seen`): the images that reached the
network's first layer, the optimizer's groups at every step, files, screen, what was compiled. A key without an entry fails, as
does an entry without a key.
"""

import concurrent.futures
import csv
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import wandb_stand_in
from helpers.launch import run
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch._inductor import config as inductor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pipelines.loader import default_workers
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train import assembly
from train.evaluate import EvaluateConfig
from train.predict import PredictConfig
from train.settings import keys

KEYS = keys(EvaluateConfig) | keys(PredictConfig)  # those of train.config.Config, and the own ones of both programs
NAMES = [f"class_{c}" for c in range(5)]
COUNTS = {"train": (9, 6, 4, 3, 2), "test": (2, 2, 2, 2, 2), "val": (2, 2, 1, 1, 1)}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
BASE = """
data:
  recipe: {crop: pad_crop, size: 16, pad: 2}
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
model: {name: resnet8}
optim: {batch: 8, lr: 0.05}
schedule: {epochs: 2}
eval: {batch: 16}
"""
STEPS = 6  # 24 images in batches of 8, twice
PLAIN = ("data.recipe.pad=0", "data.recipe.flip=false")  # images reach the network as they are stored
WHOLE = ("data.recipe.crop=random_resized_crop", "data.recipe.scale=[1,1]", "data.recipe.ratio=[1,1]", PLAIN[1])
STILL = ("optim.lr=1e-9", "optim.weight_decay=0")  # the weights stay the same: differences have other causes
SHORT = "schedule.epochs=1"
READS = "data.backend=reference"  # reads the file at every step, a few batches ahead; resident reads it once

Check = Callable[["Lab"], None]


@dataclass
class Pass:
    """A batch on its way through the first layer of a network."""

    student: bool
    training: bool
    images: torch.Tensor
    weight: torch.Tensor
    autocast: torch.dtype | None
    deterministic: bool


@dataclass
class Step:
    """The optimizer's numbers for one step; weight: that of the first layer after it."""

    groups: list[dict[str, Any]]
    norm: float
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass
class Seen:
    """What a run did, from outside."""

    folder: Path
    code: int = 0
    out: str = ""
    passes: list[Pass] = field(default_factory=list, repr=False)
    steps: list[Step] = field(default_factory=list, repr=False)
    compiled: list[tuple[str, Any]] = field(default_factory=list)
    timed: set[bool] = field(default_factory=set)  # whether kernels were chosen by timing
    pools: set[int | None] = field(default_factory=set)

    @property
    def training(self) -> list[Pass]:
        return [one for one in self.passes if one.student and one.training]

    @property
    def evaluating(self) -> list[Pass]:
        return [one for one in self.passes if one.student and not one.training]

    @property
    def asking(self) -> list[Pass]:
        """Those of the teacher."""
        return [one for one in self.passes if not one.student]

    @property
    def lrs(self) -> list[float]:
        return [step.groups[0]["lr"] for step in self.steps]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The lines of the training, without those of evaluations."""
        return [line for line in self.metrics if "loss" in line]

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "model.json").read_text())

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step_")) for path in (self.folder / "checkpoints").glob("step_*"))

    def evaluations(self) -> list[int]:
        """Steps after which an evaluation was logged."""
        return [line["step"] for line in self.metrics if "loss" not in line]


class Lab:
    """A working directory with small records, and runs in it; a run of the same settings is made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        self.shown: set[Check] = set()  # wires that were found intact: some belong to several keys
        self._made: dict[tuple[str, ...], Seen] = {}
        self._seen = Seen(folder)
        self._at_step: dict[int, Callable[[], None]] = {}
        rng = np.random.default_rng(0)
        for split, counts in COUNTS.items():
            self.labels[split] = np.repeat(np.arange(5), counts)
            self.images[split] = rng.integers(0, 256, (sum(counts), 16, 16, 3), np.uint8)
            self.write(f"{split}.beton", split)
        (folder / "base.yaml").write_text(BASE)

    def write(self, name: str, split: str, first: int = 0, jpeg: bool = False) -> None:
        """The images of a split, from the `first` on, as a record file."""
        samples = []
        for i in range(first, len(self.labels[split])):
            image: Any = self.images[split][i]
            if jpeg:
                image = self.folder / f"{i}.jpg"
                Image.fromarray(self.images[split][i]).save(image, quality=95)
            samples.append(Sample(f"{split}/{i}", int(self.labels[split][i]), image))
        write_records(self.folder / name, samples, NAMES, kind="test", force=True)

    # ---- running ----

    def teacher(self, *settings: str, **options: Any) -> Seen:
        return self.run("teacher", "distill.method=bsce", *settings, **options)

    def student(self, *settings: str, **options: Any) -> Seen:
        self.cache()
        return self.online("cache.paths=[caches]", *settings, **options)

    def online(self, *settings: str, **options: Any) -> Seen:
        return self.run("distill", "distill.tau=3", "distill.p=0.5", *settings, **options)

    def routed(self, *settings: str, **options: Any) -> Seen:
        """Train the routers of the network with experts `e`."""
        self.teacher("run=e", *EXPERTS, SHORT)
        router = ("distill.method=router", "model.init=e", "model.router=3", *EXPERTS)
        return self.run("router", *router, *settings, **options)

    def cache(self, *settings: str, **options: Any) -> Seen:
        """Run cache_logits; without settings, it makes the cache that all students use, by the teacher `t`."""
        self.t()
        return self.run("cache_logits", "distill.teacher=t", *settings, **options)

    def t(self) -> Seen:
        """Run the baseline: a teacher."""
        return self.teacher("run=t")

    def evaluate(self, name: str, *settings: str) -> Seen:
        return self.run("evaluate", name, *settings)

    def run(
        self, script: str, *settings: str, fails: bool = False, at_step: dict[int, Callable[[], None]] | None = None
    ) -> Seen:
        """Run a script. at_step: what happens before a step of the optimizer, counted from 0."""
        command = (script, *settings)
        if command in self._made and not at_step:
            return self._made[command]
        name = next((s.removeprefix("run=") for s in settings if s.startswith("run=")), f"r{len(self._made)}")
        seen = self._seen = Seen(self.folder / "runs" / name)
        self._at_step = at_step or {}
        if script in ("evaluate", "predict"):
            seen.folder, arguments = self.folder / "runs" / settings[0], list(settings)
        else:
            arguments = ["base.yaml", "data.train=train.beton", "data.test=test.beton", f"run={name}", *settings]
        AcceleratorState._reset_state(True)
        try:
            done = run(script, *arguments, cwd=self.folder, check=False)
        finally:
            AcceleratorState._reset_state(True)
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore
            inductor.deterministic = False
        seen.code, seen.out = done.returncode, done.stdout + done.stderr
        assert bool(seen.code) == fails, f"{command} ended with {seen.code}:\n{seen.out}"
        self._made[command] = seen
        return seen

    # ---- spies ----

    def watch(self, patch: pytest.MonkeyPatch) -> list[Any]:
        """Look at every run from now on; returns the handles to be removed."""

        def compile_module(module: nn.Module, *_: Any, **options: Any) -> None:
            whose = "student" if next(module.parameters()).requires_grad else "teacher"
            self._seen.compiled.append((whose, options.get("mode")))  # and continue without compiling
            self._seen.timed.add(not inductor.deterministic)

        def compile_function(function: Any, *_: Any, **options: Any) -> Any:
            self._seen.compiled.append(("function", options.get("mode")))
            return function

        make_pool = concurrent.futures.ThreadPoolExecutor.__init__

        def pool(executor: Any, max_workers: int | None = None, *rest: Any, **options: Any) -> None:
            self._seen.pools.add(max_workers)
            make_pool(executor, max_workers, *rest, **options)

        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(nn.Module, "compile", compile_module)
        patch.setattr(torch, "compile", compile_function)
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "__init__", pool)
        return [
            register_module_forward_pre_hook(self._forward),
            register_optimizer_step_pre_hook(self._step),
            register_optimizer_step_post_hook(self._stepped),
        ]

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():  # also while a program is made, which must not depend on its images
            return
        if not isinstance(module, nn.Conv2d) or inputs[0].shape[1] != 3 or not inputs[0].any():
            return  # blank: only the operations are counted
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        weight, deterministic = module.weight, torch.are_deterministic_algorithms_enabled()
        images = inputs[0].detach().clone()
        one = Pass(weight.requires_grad, module.training, images, weight.detach().clone(), autocast, deterministic)
        self._seen.passes.append(one)

    def _step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if happens := self._at_step.pop(len(self._seen.steps), None):
            happens()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        gradients = [
            p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        self._seen.steps.append(Step(groups, float(torch.cat(gradients).norm())))

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._seen.steps[-1].weight = optimizer.param_groups[0]["params"][0].detach().clone()

    # ---- looking ----

    def stored(self, images: torch.Tensor, split: str = "train", mean: Any = MEAN, std: Any = STD) -> list[int | None]:
        """Which image of the split each one is, pixel for pixel; None where it is not in the split."""
        shift, scale = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
        values = (images.double() * scale + shift) * 255
        if (values - values.round()).abs().max() > 0.01:
            return [None] * len(images)
        known = {image.tobytes(): i for i, image in enumerate(self.images[split])}
        pixels = values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        return [known.get(one.tobytes()) for one in pixels]

    def order(self, seen: Seen) -> list[int | None]:
        """The training images of a PLAIN run, in order."""
        return [i for one in seen.training for i in self.stored(one.images)]

    def damage(self, name: str) -> None:
        """Invert every pixel of a record file of training images, in place."""
        content = (self.folder / name).read_bytes()
        with open(self.folder / name, "r+b") as file:
            for image in self.images["train"]:
                file.seek(content.index(image.tobytes()))
                file.write((255 - image).tobytes())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("wiring"))
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        handles = made.watch(patch)
        yield made
        for handle in handles:
            handle.remove()
    for name in set(os.environ) - set(before):
        del os.environ[name]


WIRES: dict[str, Check] = {}
WITHOUT: dict[str, str] = {}  # key: why a run here cannot show its effect; currently empty


def wire(*names: str) -> Callable[[Check], Check]:
    def note(check: Check) -> Check:
        assert not set(names) & set(WIRES)
        WIRES.update(dict.fromkeys(names, check))
        return check

    return note


def unchecked(known: set[str], wires: set[str], without: set[str]) -> list[str]:
    """What is wrong with the list of wires, one line for each key."""
    lines = [f"{key}: no wire shows its effect" for key in sorted(known - wires - without)]
    lines += [f"{key}: is no setting" for key in sorted((wires | without) - known)]
    return lines + [f"{key}: has a wire and a reason for none" for key in sorted(wires & without)]


def test_every_key_has_a_wire() -> None:
    assert len(unchecked({"a", "b", "c"}, {"a", "x", "c"}, {"c"})) == 3
    assert unchecked(set(KEYS), set(WIRES), set(WITHOUT)) == []
    assert all(WITHOUT.values())


@pytest.mark.parametrize("key", [key for key in KEYS if key not in WITHOUT])
def test_it_has_its_effect(lab: Lab, key: str) -> None:
    assert key in WIRES, f"{key}: no wire shows its effect"
    if WIRES[key] not in lab.shown:
        WIRES[key](lab)
        lab.shown.add(WIRES[key])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


# ---- data ----


@wire("data.train")
def _(lab: Lab) -> None:
    lab.write("few.beton", "train", first=8)
    seen = lab.teacher("data.train=few.beton", SHORT)
    assert "16 training images" in seen.out and len(seen.steps) == 2
    assert "24 training images" in lab.t().out


@wire("data.val")
def _(lab: Lab) -> None:
    seen = lab.teacher("data.val=val.beton", *STILL, SHORT)
    assert seen.result["val"]["samples"] == 7 and seen.result["test"]["samples"] == 10
    assert "val" not in lab.t().result


@wire("data.test")
def _(lab: Lab) -> None:
    seen = lab.teacher("data.test=val.beton", SHORT)
    assert seen.result["test"]["samples"] == 7
    assert set(lab.stored(seen.evaluating[-1].images, "val")) == set(range(7))
    assert "test.samples: 7" in lab.evaluate("t", "data.test=val.beton").out


@wire("data.backend")
def _(lab: Lab) -> None:
    seen = by_reference(lab)
    assert "backend reference" in seen.out and seen.result["test"]["backend"] == "reference"
    assert lab.t().result["test"]["backend"] != "reference"


def by_reference(lab: Lab) -> Seen:
    return lab.teacher("data.backend=reference", f"data.workers={threads()}", SHORT)


def threads() -> int:
    """A number above any default."""
    return default_workers() + 3


@wire("data.workers")
def _(lab: Lab) -> None:
    assert threads() in by_reference(lab).pools and threads() not in lab.t().pools
    decoding = lab.cache("data.backend=reference", f"data.workers={threads()}", "cache.dir=workers")
    assert threads() in decoding.pools and threads() not in lab.cache().pools


def plain(lab: Lab) -> Seen:
    return lab.teacher(*PLAIN, *STILL)


@wire("data.recipe.crop")
def _(lab: Lab) -> None:
    cut = lab.teacher("data.recipe.crop=center", "data.recipe.short_side=16", PLAIN[1], *STILL, SHORT)
    assert None not in lab.order(cut) and None in lab.stored(lab.t().training[0].images)


@wire("data.recipe.size")
def _(lab: Lab) -> None:
    seen = lab.teacher("data.recipe.crop=random_resized_crop", "data.recipe.size=12", SHORT)
    assert {one.images.shape[1:] for one in seen.passes} == {(3, 12, 12)} and seen.meta["input_size"] == 12


@wire("data.recipe.pad", "data.recipe.flip")
def _(lab: Lab) -> None:
    assert sorted(lab.order(plain(lab))[:24]) == list(range(24))  # pyright: ignore
    moved = lab.teacher(PLAIN[1], *STILL, SHORT)
    assert None in lab.order(moved)
    turned = lab.teacher(PLAIN[0], *STILL, SHORT)
    found = [lab.stored(one.images) for one in turned.training]
    mirrored = [lab.stored(one.images.flip(3)) for one in turned.training]
    either = [(a is None) != (b is None) for a, b in zip(sum(found, []), sum(mirrored, []), strict=True)]
    assert all(either) and None in sum(found, []) and None in sum(mirrored, [])


def first_batch(lab: Lab, scale: str, ratio: str) -> torch.Tensor:
    cut = (f"data.recipe.scale={scale}", f"data.recipe.ratio={ratio}")
    return lab.teacher(*WHOLE, *cut, *STILL, SHORT).training[0].images


@wire("data.recipe.scale")
def _(lab: Lab) -> None:
    assert None not in lab.order(lab.teacher(*WHOLE, *STILL, SHORT))
    base = first_batch(lab, "[0.3,0.5]", "[1,1]")
    assert set(lab.stored(base)) == {None}
    assert not same(base, first_batch(lab, "[0.1,0.5]", "[1,1]")) and not same(
        base, first_batch(lab, "[0.3,0.8]", "[1,1]")
    )


@wire("data.recipe.ratio")
def _(lab: Lab) -> None:
    base = first_batch(lab, "[0.3,0.5]", "[1,1]")
    for ratio in ("[0.5,1]", "[1,2]"):
        assert not same(base, first_batch(lab, "[0.3,0.5]", ratio)), ratio


@wire("data.recipe.short_side")
def _(lab: Lab) -> None:
    small, large = (
        lab.teacher("data.recipe.crop=resize_crop", f"data.recipe.short_side={n}", *STILL, SHORT) for n in (16, 20)
    )
    assert None not in lab.stored(small.evaluating[-1].images, "test")
    assert set(lab.stored(large.evaluating[-1].images, "test")) == {None}
    assert not same(small.training[0].images, large.training[0].images)


@wire("data.recipe.jitter")
def _(lab: Lab) -> None:
    for jitter in ("[0.4,0,0]", "[0,0.4,0]", "[0,0,0.4]"):
        seen = lab.teacher(*PLAIN, f"data.recipe.jitter={jitter}", *STILL, SHORT)
        assert None in lab.order(seen) and None not in lab.stored(seen.evaluating[-1].images, "test"), jitter
    cells = lab.cache("data.recipe.jitter=[0.4,0.4,0.4]", "cache.dir=jittered")
    assert not same(cells.asking[0].images, lab.cache().asking[0].images)


@wire("data.recipe.rotation")
def _(lab: Lab) -> None:
    seen, base = strong(lab, "rotation=40"), plain(lab)
    assert None in lab.order(seen) and None not in lab.stored(seen.evaluating[-1].images, "test")
    centre = (
        slice(None),
        slice(None),
        slice(7, 9),
        slice(7, 9),
    )  # a turn of 40 degrees leaves the four middle pixels there
    assert same(seen.training[0].images[centre].mean((2, 3)), base.training[0].images[centre].mean((2, 3)))


def strong(lab: Lab, *settings: str) -> Seen:
    return lab.teacher(*PLAIN, *(f"data.recipe.{setting}" for setting in settings), *STILL, SHORT)


@wire("data.recipe.policy", "data.recipe.policy_ops", "data.recipe.policy_magnitude")
def _(lab: Lab) -> None:
    names = ("autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment")
    rand = "policy=randaugment"
    runs = [strong(lab, f"policy={name}") for name in names]
    runs += [strong(lab, rand, "policy_ops=3"), strong(lab, rand, "policy_magnitude=30")]
    first = [one.training[0].images for one in runs]
    for i, images in enumerate(first):
        assert None in lab.stored(images) and None not in lab.stored(runs[i].evaluating[-1].images, "test")
        assert not any(same(images, other) for other in first[:i])
    assert "goes with data.recipe.policy=randaugment" in lab.teacher("data.recipe.policy_ops=3", fails=True).out


@wire("data.recipe.grayscale")
def _(lab: Lab) -> None:
    def grey(seen: Seen) -> float:
        images = torch.cat([one.images for one in seen.training])
        return float((images - images.mean(dim=1, keepdim=True)).abs().flatten(1).amax(dim=1).lt(1e-5).float().mean())

    seen = strong(lab, "grayscale=0.5")
    assert 0.2 < grey(seen) < 0.8 and grey(plain(lab)) == 0
    assert None not in lab.stored(seen.evaluating[-1].images, "test")


def test_augmented_images_are_the_same_in_micro_batches_and_after_a_stop(lab: Lab) -> None:
    recipe = ("rotation=15", "policy=randaugment", "cutout=6", "mix=mixup", "mix_share=0.7")
    augmented = (*(f"data.recipe.{setting}" for setting in recipe), *STILL)

    def images(*seen: Seen) -> torch.Tensor:
        return torch.cat([one.images for run in seen for one in run.training])

    whole = lab.teacher(*augmented, "run=whole")
    assert same(images(lab.teacher(*augmented, "optim.accumulate=2", "run=in_parts")), images(whole))
    stop = functools.partial(signal.raise_signal, signal.SIGUSR1)
    stopped = lab.teacher(*augmented, "run=stopped", at_step={2: stop}, fails=True)
    resumed = lab.teacher(*augmented, "run=stopped", "resume=auto")
    assert len(stopped.steps) == 3 and same(images(stopped, resumed), images(whole))


@wire("data.recipe.cutout", "data.recipe.cutout_holes", "data.recipe.cutout_fill")
def _(lab: Lab) -> None:
    shares = []
    for level, settings in (
        (128, ("cutout=6",)),
        (128, ("cutout=6", "cutout_holes=3")),
        (0, ("cutout=6", "cutout_fill=black")),
    ):
        seen = strong(lab, *settings)
        assert None in lab.order(seen) and None not in lab.stored(seen.evaluating[-1].images, "test")
        images = torch.cat([one.images for one in seen.training])
        erased = ((images - (level / 255 - 0.5) / 0.25).abs() < 1e-5).all(dim=1)
        shares.append(float(erased.float().mean()))
    assert 0.05 < shares[0] <= 36 / 256 and 1.5 * shares[0] < shares[1] <= 3 * 36 / 256
    assert shares[2] == pytest.approx(shares[0], abs=0.01)


@wire("data.recipe.erasing", "data.recipe.erasing_area", "data.recipe.erasing_ratio")
def _(lab: Lab) -> None:
    """The share of the pixels that are grey, and the height of that part: half of all views, all, large or flat rectangles."""
    found = {}
    for name, more in (("half", "0.5"), ("large", "1 erasing_area=[0.5,0.6]"), ("flat", "1 erasing_ratio=[0.1,0.2]")):
        seen = strong(lab, *f"erasing={more}".split())
        grey = ((torch.cat([one.images for one in seen.training]) - (128 / 255 - 0.5) / 0.25).abs() < 1e-5).all(dim=1)
        found[name] = grey.float().mean((1, 2)), grey.any(dim=2).sum(1).max(), grey.any(dim=1).sum(1).max()
    assert 0.2 < (found["half"][0] > 0.01).float().mean() < 0.8 and found["large"][0].min() > 0.4
    assert found["flat"][1] < 8 <= found["flat"][2]
    assert None not in lab.stored(seen.evaluating[-1].images, "test")


@wire("data.recipe.mix", "data.recipe.mix_alpha", "data.recipe.mix_share")
def _(lab: Lab) -> None:
    """Of images that reach the network as they are stored."""
    stored = (torch.from_numpy(lab.images["train"]).permute(0, 3, 1, 2) / 255 - MEAN[0]) / STD[0]
    whole, half = strong(lab, "mix=cutmix"), strong(lab, "mix=cutmix", "mix_share=0.5")
    for image in whole.training[0].images:  # every pixel is the one of some stored image, and those are at most two
        found = ((stored - image).abs() < 1e-5).all(dim=1)
        assert max(int((a | b).sum()) for a in found for b in found) == image[0].numel()
    assert lab.order(half).count(None) < lab.order(whole).count(None)
    seen = strong(lab, "mix=mixup", "mix_alpha=100")  # the mean of two images, of independent pixels
    varies = torch.cat([one.images for one in seen.training]).std() / stored.std()
    assert float(varies) == pytest.approx(0.5**0.5, abs=0.03)  # 0.82 with ratios that are uniform
    assert None not in lab.stored(seen.evaluating[-1].images, "test")
    told = lab.student("data.recipe.mix=mixup", "distill.method=dkd", "distill.p=1", fails=True).out
    assert "distill.method=dkd takes one label" in told


@wire("distill.mixed_targets")
def _(lab: Lab) -> None:
    """Cached or online: the answer to the mixture needs a cache of mixtures, those to its parts the cache of all students."""
    mixed = ("data.recipe.mix=mixup", *STILL, SHORT)
    teacher, parts = "distill.teacher=t", "distill.mixed_targets=parts"
    cached = lab.student(*mixed, parts).logged[0]
    online, whole = lab.online(*mixed, parts, teacher).logged[0], lab.online(*mixed, teacher).logged[0]
    assert cached["kl"] == pytest.approx(online["kl"], rel=1e-3)  # 8 bits
    assert whole["kl"] != pytest.approx(online["kl"], rel=0.02) and whole["hard"] == pytest.approx(
        online["hard"], rel=1e-5
    )
    assert "recipe.mix: cache nothing, here 'mixup'" in lab.student(*mixed, fails=True).out


@wire("data.mean", "data.std")
def _(lab: Lab) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    seen = lab.teacher(*PLAIN, f"data.mean={mean}", f"data.std={std}", *STILL, SHORT)
    assert None not in lab.stored(seen.training[0].images, "train", mean, std)
    assert None not in lab.stored(seen.evaluating[-1].images, "test", mean, std)
    assert seen.meta["mean"] == mean and seen.meta["std"] == std


@wire("data.seed")
def _(lab: Lab) -> None:
    seen, base = lab.teacher("data.seed=3", *STILL, SHORT), lab.t()
    assert same(seen.passes[0].weight, base.passes[0].weight)
    assert not same(seen.training[0].images, base.training[0].images)
    assert lab.order(lab.teacher("data.seed=3", *PLAIN, *STILL, SHORT)) == lab.order(plain(lab))[:24]
    assert "data_seed" in lab.student("data.seed=3", fails=True).out


@wire("data.views")
def _(lab: Lab) -> None:
    seen, base = lab.teacher("data.views=1", *STILL), lab.t()
    repeated = [len(epoch(one, 0) & epoch(one, 1)) for one in (seen, base)]
    assert repeated[0] == 24 and repeated[1] < 24 and "1 views for 2 epochs" in seen.out
    assert "writing" in lab.cache("data.views=1", "cache.dir=one_view").out
    assert len(lab.cache("data.views=1", "cache.dir=one_view").asking) == len(lab.cache().asking) / 2


def epoch(seen: Seen, number: int) -> set[bytes]:
    """The images that it was trained on, as bytes."""
    return {image.numpy().tobytes() for one in seen.training[3 * number : 3 * number + 3] for image in one.images}


@wire("data.sampling")
def _(lab: Lab) -> None:
    method = ("distill.method=ce", *PLAIN, *STILL)
    balanced = lab.teacher(*method, "data.sampling=class_balanced")
    labels = lab.labels["train"][np.array(lab.order(balanced)[:24], np.int64)]
    assert set(np.bincount(labels).tolist()) == {4, 5}
    by_root, plain_by_root = (
        lab.teacher(f"distill.method={name}", *PLAIN, *STILL, "data.sampling=square_root") for name in ("bsce", "ce")
    )
    assert lab.order(by_root) == lab.order(plain_by_root) != lab.order(balanced)
    assert by_root.logged[0]["loss"] != pytest.approx(plain_by_root.logged[0]["loss"], rel=1e-3)
    assert tuple(np.bincount(lab.labels["train"][np.array(lab.order(plain(lab))[:24], np.int64)])) == COUNTS["train"]


@wire("data.verify")
def _(lab: Lab) -> None:
    def trained(name: str, verify: str, damaged_at: int | None, fails: bool) -> Seen:
        shutil.copy(lab.folder / "train.beton", lab.folder / name)
        if damaged_at is None:
            lab.damage(name)
        happens = {damaged_at: lambda: lab.damage(name)} if damaged_at is not None else {}
        settings = (f"data.train={name}", f"data.verify={verify}", "schedule.epochs=4", f"run={verify}-{damaged_at}")
        return lab.teacher(*settings, READS, *STILL, fails=fails, at_step=happens)

    assert len(trained("off.beton", "off", None, fails=False).steps) == 12
    assert "CRC" in trained("at_once.beton", "first", None, fails=True).out
    # The first epoch has touched every image once; only `always` sees what happens to them later.
    assert len(trained("later.beton", "first", 4, fails=False).steps) == 12
    assert "CRC" in trained("always.beton", "always", 4, fails=True).out


@wire("data.hw_decoder_load")
def _(lab: Lab) -> None:
    """No decoder on a CPU uses it: only the argument that the backend is made with can be seen."""
    dali = pytest.importorskip("pipelines.backends.dali", reason="NVIDIA DALI is not installed")
    lab.write("jpeg.beton", "train", jpeg=True)
    made, given = dali.DaliBackend.__init__, []

    @functools.wraps(made)
    def spy(*arguments: Any, **options: Any) -> None:
        given.append([*arguments, *options.values()])
        made(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dali.DaliBackend, "__init__", spy)
        lab.teacher("data.train=jpeg.beton", "data.backend=dali", "data.hw_decoder_load=0.125", *STILL, SHORT)
    assert given and all(0.125 in one for one in given)


# ---- network and optimizer ----


@wire("model.name")
def _(lab: Lab) -> None:
    seen = lab.teacher("model.name=resnet32", SHORT)
    count = [sum(t.numel() for t in load_file(one.folder / "model.safetensors").values()) for one in (seen, lab.t())]
    assert seen.meta["architecture"] == "resnet32" and count[0] > 1.5 * count[1]


@wire("model.head", "model.head_scale")
def _(lab: Lab) -> None:
    scaled = []
    for scale in (30, 15):
        lab.teacher("model.head=cosine", f"model.head_scale={scale}", *STILL, SHORT, f"run=cosine{scale}")
        lab.evaluate(f"cosine{scale}", f"predictions=p{scale}.npz")
        with np.load(lab.folder / f"p{scale}.npz") as predictions:
            scaled.append(predictions["logits"].astype(np.float64))
    assert np.allclose(scaled[0], 2 * scaled[1], atol=0.05) and 1 < abs(scaled[0]).max() <= 30


@wire("model.experts", "model.expert_width")
def _(lab: Lab) -> None:
    for experts, width, channels in ((2, 0.75, 48), (3, 0.5, 32)):
        seen = lab.teacher(f"model.experts={experts}", f"model.expert_width={width}", SHORT)
        state = load_file(seen.folder / "model.safetensors")
        heads = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("fc.weight")}
        assert heads == {f"experts.{i}.fc.weight": (5, channels) for i in range(experts)}


@wire("model.router")
def _(lab: Lab) -> None:
    for choices in (3, 2):
        seen = lab.routed(f"model.router={choices}", SHORT)
        state = load_file(seen.folder / "model.safetensors")
        assert state["router.unit.weight"].shape == (1, choices + 16) and state["router.codes.0.weight"].shape == (
            16,
            48,
        )
    assert "bsce does not train routers" in lab.teacher("model.router=3", *EXPERTS, fails=True).out


@wire("model.init")
def _(lab: Lab) -> None:
    seen = lab.teacher("model.init=t", *STILL, SHORT)
    lab.t()
    assert same(seen.passes[0].weight, lab.t().steps[-1].weight) and "model.init=t" in seen.out
    assert seen.meta["init"]["source"] == "t"


@wire("model.sync_bn")
def _(lab: Lab) -> None:
    assert "model.sync_bn=true needs GPUs" in lab.teacher("model.sync_bn=true", fails=True).out


@wire("optim.name", "optim.betas")
def _(lab: Lab) -> None:
    group = lab.teacher("optim.name=adamw", "optim.nesterov=false", "optim.betas=[0.8,0.95]", SHORT).steps[0].groups[0]
    assert tuple(group["betas"]) == (0.8, 0.95) and "momentum" not in group
    assert "momentum" in lab.t().steps[0].groups[0]
    assert "optim.name" in lab.teacher("optim.name=adam", fails=True).out


def other_optimizer(lab: Lab) -> Seen:
    """All of the optimizer's numbers at once; each is in its groups."""
    settings = ["lr=0.08", "lr_scale=linear", "lr_base_batch=16", "momentum=0.5", "nesterov=true", "weight_decay=0.01"]
    return lab.teacher(*(f"optim.{one}" for one in settings), "optim.no_decay=[bn]", SHORT)


@wire("optim.lr", "optim.lr_scale", "optim.lr_base_batch")
def _(lab: Lab) -> None:
    seen = other_optimizer(lab)
    assert seen.lrs == pytest.approx([0.08 * 8 / 16] * 3) and seen.logged[0]["lr"] == pytest.approx(0.04)
    assert "0.04 = optim.lr 0.08 x 8 / 16" in seen.out
    assert lab.t().lrs == pytest.approx([0.05] * 3 + [0.025] * 3)


@wire("optim.momentum")
def _(lab: Lab) -> None:
    assert [group["momentum"] for group in other_optimizer(lab).steps[0].groups] == [0.5, 0.5]
    assert lab.t().steps[0].groups[0]["momentum"] == 0.9


@wire("optim.nesterov")
def _(lab: Lab) -> None:
    assert other_optimizer(lab).steps[0].groups[0]["nesterov"] and not lab.t().steps[0].groups[0]["nesterov"]


@wire("optim.weight_decay", "optim.no_decay")
def _(lab: Lab) -> None:
    assert [group["weight_decay"] for group in other_optimizer(lab).steps[0].groups] == [0.01, 0.0]
    assert [group["weight_decay"] for group in lab.t().steps[0].groups] == [5e-4]


@wire("optim.clip")
def _(lab: Lab) -> None:
    seen = lab.teacher("optim.clip=0.25", SHORT)
    assert [step.norm for step in seen.steps] == pytest.approx([0.25] * 3, rel=1e-4)
    assert min(step.norm for step in lab.t().steps) > 0.3


@wire("optim.batch")
def _(lab: Lab) -> None:
    seen = lab.teacher("optim.batch=12", SHORT)
    assert [len(one.images) for one in seen.training] == [12, 12] and len(seen.steps) == 2


@wire("optim.accumulate")
def _(lab: Lab) -> None:
    seen = lab.teacher("optim.accumulate=2", SHORT)
    assert [len(one.images) for one in seen.training] == [4] * 6 and len(seen.steps) == 3
    # parts of a batch are averaged, not added up
    assert seen.steps[0].norm < 1.5 * lab.t().steps[0].norm


# ---- schedule ----


@wire("schedule.kind")
def _(lab: Lab) -> None:
    assert lab.teacher("schedule.kind=constant").lrs == pytest.approx([0.05] * STEPS)
    assert lab.t().lrs == pytest.approx([0.05] * 3 + [0.025] * 3)


@wire("schedule.epochs")
def _(lab: Lab) -> None:
    seen = lab.teacher(*STILL, SHORT)
    assert len(seen.steps) == 3 and seen.result["steps"] == 3 and seen.result["epochs"] == 1


@wire("schedule.steps")
def _(lab: Lab) -> None:
    assert len(lab.teacher("schedule.epochs=null", "schedule.steps=4").steps) == 4


@wire("schedule.samples")
def _(lab: Lab) -> None:
    assert len(lab.teacher("schedule.epochs=null", "schedule.samples=12").steps) == 2


@wire("schedule.warmup_epochs")
def _(lab: Lab) -> None:
    assert lab.teacher("schedule.warmup_epochs=2").lrs == pytest.approx([0.025] * 3 + [0.05] * 3)


@wire("schedule.warmup_steps", "schedule.per")
def _(lab: Lab) -> None:
    seen = lab.teacher("schedule.per=step", "schedule.warmup_steps=2")
    cosine = [0.05 * (1 + np.cos(np.pi * step / STEPS)) / 2 for step in range(2, STEPS)]
    assert seen.lrs == pytest.approx([0.025, 0.05, *cosine])


@wire("schedule.milestones", "schedule.gamma")
def _(lab: Lab) -> None:
    seen = lab.teacher("schedule.kind=multistep", "schedule.milestones=[1]", "schedule.gamma=0.5")
    assert seen.lrs == pytest.approx([0.05] * 3 + [0.025] * 3)
    steeper = lab.teacher("schedule.kind=multistep", "schedule.milestones=[1]", "schedule.gamma=0.2")
    assert steeper.lrs == pytest.approx([0.05] * 3 + [0.01] * 3)


# ---- targets ----


@wire("distill.method")
def _(lab: Lab) -> None:
    dive, kd = (lab.student(f"distill.method={method}", "distill.p=1", *STILL, SHORT) for method in ("dive", "kd"))
    assert (dive.result["method"], kd.result["method"]) == ("dive", "kd")
    assert dive.logged[0]["kl"] == pytest.approx(kd.logged[0]["kl"], rel=1e-5)
    assert dive.logged[0]["hard"] != pytest.approx(kd.logged[0]["hard"], rel=1e-3)
    ce, bsce = lab.teacher("distill.method=ce", *STILL, SHORT), lab.teacher(*STILL, SHORT)
    assert ce.logged[0]["loss"] == pytest.approx(kd.logged[0]["hard"]) and bsce.logged[0]["loss"] != pytest.approx(
        ce.logged[0]["loss"], rel=1e-3
    )
    assert bsce.logged[0]["loss"] == pytest.approx(dive.logged[0]["hard"])


@wire("distill.tau", "distill.alpha")
def _(lab: Lab) -> None:
    base, seen = lab.student(*STILL, SHORT), lab.student("distill.tau=6", "distill.alpha=0.25", *STILL, SHORT)
    for one, tau, alpha in ((base, 3, 0.5), (seen, 6, 0.25)):
        line = one.logged[0]
        assert line["loss"] == pytest.approx((1 - alpha) * line["hard"] + alpha * tau**2 * line["kl"], rel=1e-4)
        assert one.result["tau"] == tau
    assert seen.logged[0]["hard"] == pytest.approx(base.logged[0]["hard"], rel=1e-5)
    assert seen.logged[0]["kl"] != pytest.approx(base.logged[0]["kl"], rel=1e-3)


@wire("distill.p")
def _(lab: Lab) -> None:
    base, seen = lab.student(*STILL, SHORT), lab.student("distill.p=1", *STILL, SHORT)
    assert seen.logged[0]["hard"] == pytest.approx(base.logged[0]["hard"], rel=1e-5)
    assert seen.logged[0]["kl"] != pytest.approx(base.logged[0]["kl"], rel=1e-3)


@wire("distill.hard")
def _(lab: Lab) -> None:
    alone = {name: lab.teacher(f"distill.method={name}", *STILL, SHORT) for name in ("ce", "bsce", "ldam")}
    for name, teacher in alone.items():
        seen = lab.student(f"distill.hard={name}", *STILL, SHORT)
        assert seen.logged[0]["hard"] == pytest.approx(teacher.logged[0]["loss"]) and seen.result["method"] == "dive"
    assert len({round(one.logged[0]["loss"], 4) for one in alone.values()}) == 3


@wire("distill.hard_weight")
def _(lab: Lab) -> None:
    seen = lab.student("distill.hard_weight=1", "distill.alpha=2", *STILL, SHORT).logged[0]
    assert seen["loss"] == pytest.approx(seen["hard"] + 2 * 3**2 * seen["kl"], rel=1e-4)


@wire("distill.zscore")
def _(lab: Lab) -> None:
    """The temperature of the published code is of standardised logits, whose KL is another."""
    base, seen = (lab.student("distill.p=1", *more, *STILL, SHORT) for more in ((), ("distill.zscore=true",)))
    assert seen.logged[0]["hard"] == pytest.approx(base.logged[0]["hard"], rel=1e-5)
    assert seen.logged[0]["kl"] != pytest.approx(base.logged[0]["kl"], rel=1e-2)
    assert "type distill.tau=2" in lab.student("distill.tau=null", "distill.zscore=true", fails=True).out


@wire("distill.dkd_target", "distill.dkd_others")
def _(lab: Lab) -> None:
    parts = ("distill.dkd_target=0.5", "distill.dkd_others=3")
    seen = lab.student("distill.method=dkd", "distill.p=1", *parts, *STILL, SHORT).logged[0]
    soft = 0.5 * seen["tckd"] + 3 * seen["nckd"]
    assert seen["loss"] == pytest.approx(0.5 * seen["hard"] + 0.5 * 3**2 * soft, rel=1e-4)
    assert seen["tckd"] > 0 and seen["nckd"] > 0


@wire("distill.bkd_beta")
def _(lab: Lab) -> None:
    def kl(*more: str) -> float:
        return lab.student("distill.p=1", *more, *STILL, SHORT).logged[0]["kl"]

    plain, none, some = kl("distill.method=kd"), *(kl("distill.method=bkd", f"distill.bkd_beta={b}") for b in (0, 0.99))
    assert none == pytest.approx(plain, rel=1e-4) and some != pytest.approx(plain, rel=1e-2)


@wire("distill.xerm_gamma")
def _(lab: Lab) -> None:
    xerm = ("distill.method=xerm", "distill.p=1", "distill.tau=null")
    even, uneven = (lab.student(*xerm, f"distill.xerm_gamma={g}", *STILL, SHORT) for g in (0, 3))
    assert even.logged[0]["balanced_weight"] == pytest.approx(0.5, abs=1e-6)
    assert uneven.logged[0]["balanced_weight"] != pytest.approx(0.5, abs=1e-3)
    assert even.logged[0]["loss"] != pytest.approx(uneven.logged[0]["loss"], rel=1e-4) and "tau" not in even.result


@wire("distill.margin")
def _(lab: Lab) -> None:
    none, some = (lab.teacher("distill.method=ldam", f"distill.margin={m}", *STILL, SHORT) for m in (0, 3))
    assert none.logged[0]["loss"] == pytest.approx(lab.teacher("distill.method=ce", *STILL, SHORT).logged[0]["loss"])
    assert some.logged[0]["loss"] > none.logged[0]["loss"] + 0.5
    cosine = ("model.head=cosine", "model.head_scale=10", *STILL, SHORT)
    none, some = (lab.teacher("distill.method=ldam", f"distill.margin={m}", *cosine).logged[0] for m in (0, 0.5))
    assert some["loss"] > none["loss"] + 1  # a margin of 0.5 of the logits would add 0.5 at most


@wire("distill.drw_from", "distill.drw_beta")
def _(lab: Lab) -> None:
    """The weights stay as they are, so that the second epoch differs from the first in its class weights alone."""
    views = ("data.views=1", *PLAIN, *STILL)  # each epoch has the same images
    plain, late, less = (
        lab.teacher("distill.method=ldam", *more, *views)
        for more in ((), ("distill.drw_from=1",), ("distill.drw_from=1", "distill.drw_beta=0.5"))
    )
    assert len({round(one.logged[0]["loss"], 6) for one in (plain, late, less)}) == 1
    assert len({round(one.logged[1]["loss"], 2) for one in (plain, late, less)}) == 3
    beyond = lab.teacher("distill.method=ldam", "distill.drw_from=2", fails=True).out
    assert "distill.drw_from=2: this training has the epochs 0 to 1 (6 steps in all, 3 an epoch)" in beyond


EXPERTS = ("model.experts=2", "model.head=cosine")


def by_hand(line: dict[str, Any], tau: float = 3, alpha: float = 0.5, kl: float = 2, diversity: float = 0) -> float:
    """The loss of two experts from its parts, which are means over them; kl: of how many networks its KL is the sum."""
    apart = 2 * diversity * line.get("diversity", 0)
    return 2 * (1 - alpha) * line["hard"] + kl * alpha * tau**2 * line["kl"] + apart


@wire("distill.kl_of")
def _(lab: Lab) -> None:
    each, mean = (lab.student(f"distill.kl_of={of}", *EXPERTS, *STILL, SHORT) for of in ("experts", "ensemble"))
    assert each.logged[0]["loss"] == pytest.approx(by_hand(each.logged[0]), rel=1e-4)
    assert mean.logged[0]["loss"] == pytest.approx(by_hand(mean.logged[0], kl=1), rel=1e-4)
    assert mean.logged[0]["kl"] < each.logged[0]["kl"]
    assert "distill.kl_of=ensemble goes with model.experts" in lab.student("distill.kl_of=ensemble", fails=True).out


@wire("distill.diversity")
def _(lab: Lab) -> None:
    without, seen = (lab.student(*more, *EXPERTS, *STILL, SHORT) for more in ((), ("distill.diversity=-0.4",)))
    assert seen.logged[0]["diversity"] > 0.01 and "diversity" not in without.logged[0]
    assert seen.logged[0]["loss"] == pytest.approx(by_hand(seen.logged[0], diversity=-0.4), rel=1e-4)
    assert seen.logged[0]["loss"] < without.logged[0]["loss"]
    assert "has no experts" in lab.teacher("distill.diversity=-0.4", fails=True).out


@wire("distill.diversity_from", "distill.diversity_eta")
def _(lab: Lab) -> None:
    """The weights stay as they are, so that only the temperatures make an epoch differ from another."""
    views = ("data.views=1", *PLAIN, *STILL, *EXPERTS, "distill.diversity=-0.4")
    late = ("distill.diversity_from=1",)
    runs = [lab.teacher(*more, *views) for more in ((), late, (*late, "distill.diversity_eta=0.5"))]
    first, second = ([round(one.logged[i]["diversity"], 4) for one in runs] for i in (0, 1))
    assert len(set(first)) == 1 and len(set(second)) == 3


@wire("distill.router_weight")
def _(lab: Lab) -> None:
    """The loss is linear in the weight, of the decisions that should be to go on."""
    lines = [lab.routed(f"distill.router_weight={w}", *STILL, SHORT).logged[0] for w in (1, 1001, 2001)]
    assert lines[0]["needs_more"] > 0 and lines[1]["loss"] > lines[0]["loss"]
    assert lines[2]["loss"] - lines[1]["loss"] == pytest.approx(lines[1]["loss"] - lines[0]["loss"], rel=1e-3)
    assert (
        "distill.router_weight=2.0 goes with distill.method=router"
        in lab.teacher("distill.router_weight=2", fails=True).out
    )


@wire("distill.label_smoothing")
def _(lab: Lab) -> None:
    def loss(method: str, *more: str) -> float:
        return lab.teacher(f"distill.method={method}", *more, *STILL, SHORT).logged[0]["loss"]

    for method in ("ce", "bsce", "ldam"):
        assert loss(method, "distill.label_smoothing=0.4") != pytest.approx(loss(method), rel=1e-3)
    student = (lab.student(*more, *STILL, SHORT).logged[0] for more in ((), ("distill.label_smoothing=0.4",)))
    plain, smoothed = student  # the hard term has it too, and the soft one is as it was
    assert smoothed["hard"] != pytest.approx(plain["hard"], rel=1e-3) and smoothed["kl"] == pytest.approx(plain["kl"])


@wire("distill.head_smoothing")
def _(lab: Lab) -> None:
    ce = ("distill.method=ce", *STILL, SHORT)
    base, seen = lab.teacher(*ce), lab.teacher("distill.head_smoothing=0.4", *ce)
    assert same(seen.passes[0].images, base.passes[0].images)
    assert seen.logged[0]["loss"] != pytest.approx(base.logged[0]["loss"], rel=1e-3)
    assert "bsce does not smooth" in lab.teacher("distill.head_smoothing=0.4", fails=True).out


@wire("distill.teacher")
def _(lab: Lab) -> None:
    asked, read = lab.online("distill.teacher=t", *STILL, SHORT), lab.student(*STILL, SHORT)
    assert "targets: t, online" in asked.out and len(asked.asking) == 3 and not read.asking
    assert same(asked.asking[0].weight, lab.t().steps[-1].weight)
    assert same(asked.asking[0].images, asked.training[0].images)
    assert asked.logged[0]["kl"] == pytest.approx(read.logged[0]["kl"], rel=0.05)
    assert "cache.paths" in lab.online(fails=True).out


@wire("distill.teacher_arch", "distill.teacher_classes", "distill.teacher_mean", "distill.teacher_std")
def _(lab: Lab) -> None:
    lab.t()
    shutil.copy(lab.folder / "runs/t/model.safetensors", lab.folder / "weights.safetensors")
    (lab.folder / "classes.txt").write_text("\n".join(NAMES))
    (lab.folder / "reversed.txt").write_text("\n".join(reversed(NAMES)))
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    file = ("distill.teacher=weights.safetensors", "distill.teacher_arch=resnet8")
    scaled = (f"distill.teacher_mean={mean}", f"distill.teacher_std={std}")
    named = (*file, "distill.teacher_classes=classes.txt")
    seen = lab.online(*named, *scaled, *PLAIN, *STILL, SHORT)
    asked, trained = seen.asking[0].images, seen.training[0].images
    assert lab.stored(asked, "train", mean, std) == lab.stored(trained) and not same(asked, trained)
    own = lab.online(*named, *PLAIN, *STILL, SHORT)
    assert same(own.asking[0].images, own.training[0].images)
    refused = lab.online(*file, "distill.teacher_classes=reversed.txt", fails=True)
    assert "other classes: class 0 = 'class_4'" in refused.out
    assert "does not fit resnet32" in lab.online(*named, "distill.teacher_arch=resnet32", fails=True).out


# ---- logit caches ----


def identity(lab: Lab, folder: str) -> dict[str, Any]:
    (path,) = (lab.folder / folder).glob("*/identity.json")
    return json.loads(path.read_text())


def second_cache(lab: Lab) -> Seen:
    """A cache of another teacher, with all cache settings changed as well."""
    lab.teacher("run=t2", "seed=1", *STILL, SHORT)
    return lab.cache("distill.teacher=t2", "cache.dir=second", "cache.codec=f32", "cache.batch=5")


@wire("cache.dir", "cache.codec", "cache.batch")
def _(lab: Lab) -> None:
    seen, base = second_cache(lab), lab.cache()
    assert (identity(lab, "second")["codec"], identity(lab, "caches")["codec"]) == ("f32", "u8")
    assert (identity(lab, "second")["batch"], identity(lab, "caches")["batch"]) == (5, 256)
    assert {len(one.images) for one in seen.asking} == {5, 4} and {len(one.images) for one in base.asking} == {24}
    sizes = [sum(path.stat().st_size for path in (lab.folder / one).rglob("*.lc")) for one in ("second", "caches")]
    assert sizes[0] != sizes[1] and "second/" in seen.out


@wire("cache.paths")
def _(lab: Lab) -> None:
    second_cache(lab)
    one, other = lab.student(*STILL, SHORT), lab.online("cache.paths=[second]", *STILL, SHORT)
    assert "cache caches/" in one.out and "cache second/" in other.out
    assert one.logged[0]["kl"] != other.logged[0]["kl"] and not one.asking


@wire("cache.weights", "cache.average")
def _(lab: Lab) -> None:
    second_cache(lab)
    lab.cache()
    both = ("cache.paths=[caches,second]", *STILL, SHORT)
    equal, uneven = lab.online(*both), lab.online(*both, "cache.weights=[1,3]")
    assert "weighted [1.0, 3.0]" in uneven.out and "weighted" not in equal.out
    likely = lab.online(*both, "cache.average=probabilities")
    assert "teachers' probabilities" in likely.out and "teachers' logits" in equal.out
    assert len({round(one.logged[0]["kl"], 4) for one in (equal, uneven, likely)}) == 3


@wire("cache.check")
def _(lab: Lab) -> None:
    """Other pixels from the third step of 24 on: found at once, at the next epoch's first batch (the 13th), or never."""

    def steps(check: str) -> int:
        name = f"{check}.beton"
        shutil.copy(lab.folder / "train.beton", lab.folder / name)
        settings = (f"data.train={name}", READS, "data.verify=off", "optim.batch=2", f"cache.check={check}")
        seen = lab.student(
            *settings, *STILL, f"run={check}", at_step={2: lambda: lab.damage(name)}, fails=check != "open"
        )
        assert check == "open" or "fingerprint" in seen.out or "pixels" in seen.out
        return len(seen.steps)

    assert steps("open") == 24 and steps("epoch") == 12 and 2 < steps("always") < 12


@wire("cache.pixels")
def _(lab: Lab) -> None:
    """On JPEG records: a cache by one decoder and a student with another."""
    pytest.importorskip("nvidia.dali", reason="a second decoder is not installed")
    lab.write("jpeg.beton", "train", jpeg=True)
    lab.cache("data.train=jpeg.beton", "data.backend=reference", "cache.dir=decoded")
    other = ("data.train=jpeg.beton", "data.backend=dali", "cache.paths=[decoded]", *STILL, SHORT)
    assert "cache differs in backend" in lab.online(*other).out
    assert "backend" in lab.online(*other, "cache.pixels=same", fails=True).out


# ---- average, evaluation, checkpoints ----


def averaged(lab: Lab, warmup: bool) -> Seen:
    return lab.teacher("ema.decay=0.6", f"ema.warmup={str(warmup).lower()}", f"run=averaged-{warmup}")


@wire("ema.decay", "ema.warmup")
def _(lab: Lab) -> None:
    for warmup in (True, False):
        seen = averaged(lab, warmup)
        mean = seen.passes[0].weight.clone()
        for n, step in enumerate(seen.steps, 1):
            decay = min(0.6, (1 + n) / (10 + n)) if warmup else 0.6
            mean = decay * mean + (1 - decay) * step.weight
        assert torch.allclose(seen.evaluating[-1].weight, mean, atol=1e-6) and "test_ema" in seen.result
        assert torch.allclose(seen.evaluating[-2].weight, seen.steps[-1].weight)
    assert "test_ema" not in lab.t().result


@wire("eval.every_epochs")
def _(lab: Lab) -> None:
    assert best(lab).evaluations() == [3, 6] and lab.t().evaluations() == []


@wire("eval.every_steps")
def _(lab: Lab) -> None:
    assert lab.teacher("eval.every_steps=2", *STILL, "run=often").evaluations() == [2, 4]


@wire("eval.batch")
def _(lab: Lab) -> None:
    seen = lab.teacher("eval.batch=4", *STILL, SHORT, "run=in_fours")
    again, only = (
        lab.evaluate("t", "eval.batch=4"),
        lab.teacher("run=in_fours", "eval.batch=4", *STILL, SHORT, "eval_only=true"),
    )
    for one in (seen, again, only):
        assert [len(batch.images) for batch in one.evaluating] == [4, 4, 4]
    assert [len(batch.images) for batch in lab.t().evaluating] == [16]


@wire("eval.patience")
def _(lab: Lab) -> None:
    judged = ("eval.every_steps=1", "save.keep_best=val", "data.val=val.beton", *STILL)  # the score stays what it is
    seen = lab.teacher("eval.patience=2", *judged)
    assert seen.evaluations() == [1, 2, 3] and len(seen.steps) == seen.result["steps"] == 3


@wire("save.every_epochs")
def _(lab: Lab) -> None:
    assert lab.t().checkpoints == [3, 6] and lab.teacher("save.every_epochs=2", *STILL).checkpoints == [6]


@wire("save.every_steps", "save.keep_last")
def _(lab: Lab) -> None:
    assert lab.teacher("save.every_steps=2", "save.keep_last=3", *STILL).checkpoints == [3, 4, 6]
    assert lab.teacher("save.keep_last=1", *STILL).checkpoints == [6]


@wire("save.keep_every")
def _(lab: Lab) -> None:
    assert lab.teacher("save.keep_last=1", "save.keep_every=1", *STILL).checkpoints == [3, 6]


def best(lab: Lab) -> Seen:
    settings = ("eval.every_epochs=1", "save.keep_best=test_split_knowingly", "data.val=val.beton", "run=best")
    return lab.teacher(*settings, *STILL)


@wire("save.keep_best")
def _(lab: Lab) -> None:
    assert (best(lab).folder / "checkpoints/best").exists() and not (lab.t().folder / "checkpoints/best").exists()
    assert len(best(lab).evaluating[0].images) and set(lab.stored(best(lab).evaluating[0].images[:10], "test")) == set(
        range(10)
    )
    chosen = lab.teacher("eval.every_epochs=1", "save.keep_best=val", "data.val=val.beton", *STILL, SHORT)
    assert set(lab.stored(chosen.evaluating[0].images[:7], "val")) == set(range(7))


# ---- watching ----


@wire("track.trackers", "track.project")
def _(lab: Lab) -> None:
    with wandb_stand_in.stand_in(lab.folder) as wandb:
        lab.teacher("track.trackers=[wandb]", "track.project=mine", SHORT, "run=tracked")
        (given,), (sent,) = wandb.given, wandb.sent
        assert given["project"] == "mine" and given["name"] == "tracked"
        assert sent["track.project"] == "mine" and sent["optim.batch"] == 8
        assert any("loss" in values for _, values in wandb.runs[0].logged)


@wire("track.ceiling")
def _(lab: Lab) -> None:
    seen = compiled(lab)
    assert "ceiling: " in seen.out and seen.result["speed"]["ceiling_images_per_s"] > 0
    assert lab.t().result["speed"]["ceiling_images_per_s"] is None


@wire("track.show_batch")
def _(lab: Lab) -> None:
    seen = lab.teacher("track.show_batch=true", *STILL, SHORT)
    assert (seen.folder / "first_batch.png").exists() and not (lab.t().folder / "first_batch.png").exists()


@wire("profile.start", "profile.steps")
def _(lab: Lab) -> None:
    seen = lab.teacher("profile.start=1", "profile.steps=2", *STILL, SHORT)
    assert [path.name for path in seen.folder.glob("trace*")] == ["trace_1-2.json"]


# ---- the run itself ----


@wire("run")
def _(lab: Lab) -> None:
    assert (lab.t().folder / "config.yaml").exists() and lab.t().result["run"] == "runs/t"
    assert lab.teacher("run=./elsewhere", *STILL, SHORT).code == 0 and (lab.folder / "elsewhere/result.json").exists()


@wire("seed")
def _(lab: Lab) -> None:
    seen, base = lab.teacher("seed=1", *PLAIN, *STILL, SHORT), plain(lab)
    assert lab.order(seen)[:24] != lab.order(base)[:24] and seen.result["seed"] == 1
    assert not same(seen.passes[0].weight, base.passes[0].weight)


@wire("deterministic")
def _(lab: Lab) -> None:
    seen = lab.teacher("deterministic=true", *STILL, SHORT)
    assert {one.deterministic for one in seen.passes} == {True}
    assert {one.deterministic for one in lab.t().passes} == {False}


@wire("resume")
def _(lab: Lab) -> None:
    assert "is finished" in lab.teacher("run=t", "resume=auto").out
    lab.teacher("run=again", *STILL, SHORT)
    (lab.folder / "runs/again/result.json").unlink()
    assert "resume" in lab.teacher("run=again", *STILL, SHORT, "resume=never", fails=True).out
    lab.t()
    further = lab.teacher("resume=runs/t", "schedule.epochs=3")
    assert "resumed after step 6" in further.out and len(further.steps) == 3
    assert same(further.passes[0].weight, lab.t().steps[-1].weight)


@wire("precision")
def _(lab: Lab) -> None:
    seen, base = lab.online("distill.teacher=t", "precision=bf16", *STILL, SHORT), lab.t()
    assert {one.autocast for one in seen.passes} == {torch.bfloat16} and seen.asking and seen.evaluating
    assert {one.autocast for one in base.passes} == {None} and seen.meta["precision"] == "bf16"
    cells = lab.cache("precision=bf16", "cache.dir=rounded")
    assert identity(lab, "rounded")["teacher"]["dtype"] == "bfloat16"
    assert {one.autocast for one in cells.asking} == {torch.bfloat16}


MODE = "max-autotune-no-cudagraphs"


def compiled(lab: Lab) -> Seen:
    lab.t()
    return lab.online("distill.teacher=t", "compile=true", f"compile_mode={MODE}", "track.ceiling=on", *STILL, SHORT)


@wire("compile", "compile_mode")
def _(lab: Lab) -> None:
    """Compiled are the student, once though its ceiling is measured, the loss, the teacher, and the finish of both's images."""
    seen = compiled(lab)
    networks = sorted(one for one in seen.compiled if one[0] != "function")
    assert networks == [("student", MODE), ("teacher", MODE)]
    assert seen.compiled.count(("function", MODE)) == 1  # the loss
    assert seen.compiled.count(("function", None)) == 3  # the finish of training, evaluation, teacher
    assert "the first steps compile the network" in seen.out
    cells = lab.cache("compile=true", f"compile_mode={MODE}", "cache.dir=compiled")
    assert [one for one in cells.compiled if one[0] != "function"] == [("teacher", MODE)]
    assert (seen.timed, cells.timed) == ({True}, {False})  # a block's bytes do not depend on the time
    assert lab.t().compiled == [] and lab.cache().compiled == []


@wire("cuda_graph")
def _(lab: Lab) -> None:
    """It needs a GPU. Where that is not asked, the optimizer has its rate as a tensor of the device, as a graph needs it."""
    assert "cuda_graph=true needs a GPU" in lab.teacher("cuda_graph=true", *STILL, SHORT, fails=True).out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "require_one_gpu", lambda *_: None)
        seen = lab.teacher("run=recorded", "cuda_graph=true", SHORT)
    assert {type(lr) for lr in seen.lrs} == {torch.Tensor} and {type(lr) for lr in lab.t().lrs} == {float}


@wire("eval_only")
def _(lab: Lab) -> None:
    seen = lab.teacher("run=t", "eval_only=true")
    assert not seen.training and not seen.steps and len(seen.evaluating) == 1
    assert json.loads((lab.t().folder / "evaluation_test.json").read_text())["samples"] == 10


# ---- evaluate.py's own ----


@wire("split")
def _(lab: Lab) -> None:
    best(lab)
    seen = lab.evaluate("best", "split=val")
    assert "val.samples: 7" in seen.out and (seen.folder / "evaluation_val.json").exists()
    assert "test.samples: 10" in lab.evaluate("t").out


@wire("weights")
def _(lab: Lab) -> None:
    trained = averaged(lab, True)
    seen, raw = (lab.evaluate("averaged-True", f"weights={kind}") for kind in ("ema", "raw"))
    assert same(seen.passes[0].weight, trained.evaluating[-1].weight)
    assert same(raw.passes[0].weight, trained.steps[-1].weight)
    best(lab)
    assert "best evaluation" in lab.evaluate("best", "weights=best").out


@wire("predictions")
def _(lab: Lab) -> None:
    lab.t()
    lab.evaluate("t", "predictions=p.npz")
    assert np.load(lab.folder / "p.npz")["logits"].shape == (10, 5)


@wire("features")
def _(lab: Lab) -> None:
    lab.t()
    lab.evaluate("t", "features=f.npz", "predictions=without.npz")
    assert np.load(lab.folder / "f.npz")["features"].shape == (10, 64)
    assert "features" not in np.load(lab.folder / "without.npz")


@wire("export")
def _(lab: Lab) -> None:
    lab.t()
    assert "exported to out" in lab.evaluate("t", "export=out").out
    assert (lab.folder / "out/model.safetensors").exists()


@wire("format", "program_input")
def _(lab: Lab) -> None:
    """Programs take the images that they are asked to take."""
    lab.t()
    for takes in ("uint8", "normalised"):
        lab.evaluate("t", f"export={takes}", "format=[torch_export]", f"program_input={takes}")
    pixels = torch.from_numpy(lab.images["test"]).permute(0, 3, 1, 2)
    images = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    programs = [torch.export.load(lab.folder / takes / "model.pt2").module() for takes in ("uint8", "normalised")]
    with torch.no_grad():
        one, other = programs[0](pixels), programs[1](images)
    assert one.shape == (10, 5) and torch.allclose(one, other, atol=1e-4)


# ---- predict.py's own ----


def predicted(lab: Lab, *settings: str) -> list[dict[str, str]]:
    """The table of the test images by the baseline."""
    lab.t()
    lab.run("predict", "t", "test.beton", "out=p.csv", *settings)
    with open(lab.folder / "p.csv") as file:
        return list(csv.DictReader(file))


@wire("out")
def _(lab: Lab) -> None:
    assert [row["file"] for row in predicted(lab)] == [f"test/{i}" for i in range(10)]


@wire("top")
def _(lab: Lab) -> None:
    assert [len(predicted(lab, f"top={top}")[0]) for top in (1, 2, 9)] == [4, 6, 12]


@wire("prior")
def _(lab: Lab) -> None:
    (lab.folder / "rare.txt").write_text("1\n1\n1\n1\n1000000000000000\n")
    assert {row["class"] for row in predicted(lab, "prior=rare.txt")} == {"class_4"}
    assert {row["class"] for row in predicted(lab, "prior=uniform")} != {"class_4"}
