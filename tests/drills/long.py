"""Long forms of the suite's short drills: python tests/drills/long.py --full [--archive CIFAR_ARCHIVE] [--folder DIR].

Each drill prints its figures. Needs CIFAR-100 (the official archive) and a folder of ImageNet JPEGs named WNID_NAME.JPEG
(--samples); works in a temporary folder unless --folder keeps it.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch

from models import outputs_of
from models.registry import build_model
from pipelines.backends.choice import resolve_backend
from pipelines.logits import LogitCache
from pipelines.logits.blocks import BLOCK_ROWS
from pipelines.records.reader import Records
from train.config import Config
from train.data import make_loader, views_of
from train.objectives.objective import Objective
from train.objectives.sources import make_teacher
from train.objectives.targets import Targets
from train.optim import build_optimizer
from train.run.environment import make_accelerator
from train.run.stops import EXIT_CODE
from train.settings import load


def cached_against_online(
    config_file: Path, overrides: list[str], caches: dict[str, Path], steps: int
) -> dict[str, float]:
    """Largest |cached loss - online loss| over one ONLINE run of `steps` steps, on the same weights and batches.

    config_file, overrides: the student's, with distill.teacher; caches: {codec: folder}, of the same teacher and views.
    """
    from pipelines.order import TrainOrder

    config = load(Config, config_file, overrides)
    accelerator = make_accelerator(config)
    records = Records(str(config.data.train))
    opened = {codec: LogitCache(folder) for codec, folder in caches.items()}
    loader = make_loader(
        config,
        records,
        config.data.recipe,
        resolve_backend("auto", records, config.data.recipe, accelerator.device),
        accelerator,
    )
    teacher = make_teacher(config, records, accelerator)
    order = TrainOrder(records.keys, config.seed, config.optim.batch, views_of(config, len(records)))
    counts = torch.from_numpy(records.class_counts)

    def objective(targets: Targets) -> Objective:
        return Objective(config.distill, counts, targets, config.model.logit_scale, order.steps_per_epoch)

    online = objective(teacher)
    cached = {
        codec: objective(lambda batch, cache=cache: cache.gather(batch.keys, batch.views))
        for codec, cache in opened.items()
    }
    torch.manual_seed(config.seed)
    student = config.model.spec(records.num_classes).build().train()
    optimizer = build_optimizer(student, config.optim)
    worst = dict.fromkeys(caches, 0.0)
    for step, batch in enumerate(loader.stream(order.plan(0, steps))):
        outputs = outputs_of(student(batch.images))
        loss, _ = online(outputs, batch, step)
        with torch.no_grad():
            for codec, of_cache in cached.items():
                worst[codec] = max(worst[codec], abs(float(of_cache(outputs, batch, step)[0]) - float(loss.detach())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return worst


def curve(run: Path) -> list[tuple[int, float]]:
    """The (step, mean loss) pairs logged by a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], round(line["loss"], 5)) for line in lines if "loss" in line]


def cifar_cached_equals_online(archive: Path, folder: Path) -> None:
    """Cached targets against the teacher online: 170 steps on CIFAR-100-LT, ResNet-32, fp32, not compiled."""
    from helpers.launch import run

    folder.mkdir(exist_ok=True)
    data = folder / "data"
    if not (data / "train.beton").exists():
        convert = [ROOT / "tools/convert.py", "cifar100-lt", "--archive", archive, "--imbalance", "100", "--out", data]
        subprocess.run([sys.executable, *map(str, convert)], check=True, stdout=subprocess.DEVNULL)
    places = [f"data.train={data}/train.beton", f"data.test={data}/test.beton", "eval.every_epochs=0"]
    # 170 steps at 84 per epoch need three epochs; the schedule's milestones are no longer the paper's.
    short = ["schedule.kind=constant", "schedule.milestones=[]", "schedule.warmup_epochs=0", "schedule.epochs=3"]
    bsce, dive = (ROOT / f"configs/cifar100_lt/{name}_if100.yaml" for name in ("bsce", "dive"))
    print(run("teacher", bsce, *places, *short, "run=teacher", "optim.lr=0.05", cwd=folder).stdout, flush=True)
    student = [*places, *short, "optim.lr=0.05"]
    caches: dict[str, Path] = {}
    for codec in ("f32", "u8"):
        arguments: list[Any] = [dive, *student, "distill.teacher=teacher", f"cache.codec={codec}", f"cache.dir={codec}"]
        print(run("cache_logits", *arguments, cwd=folder).stdout.splitlines()[-2], flush=True)
        caches[codec] = folder / codec
    teacher = f"distill.teacher={folder}/runs/teacher"
    print(
        "largest loss difference in 170 steps:",
        cached_against_online(dive, [*student, teacher], caches, 170),
        flush=True,
    )
    run("distill", dive, *student, "distill.teacher=teacher", "run=online", cwd=folder)
    run("distill", dive, *student, "cache.paths=[u8]", "run=cached_u8", cwd=folder)
    run("distill", dive, *student, "cache.paths=[f32]", "run=cached_f32", cwd=folder)
    for name in ("online", "cached_f32", "cached_u8"):
        print(name, curve(folder / "runs" / name), flush=True)


def imagenet_list(samples: Path, path: Path) -> None:
    """A list of ImageNet files named WNID_NAME.JPEG: labels follow the sorted WordNet ids."""
    files = sorted(file.name for file in samples.glob("*.JPEG"))
    wnids = sorted({name.split("_")[0] for name in files})
    path.write_text("".join(f"{name} {wnids.index(name.split('_')[0])}\n" for name in files))


def imagenet_full_pass(samples: Path, folder: Path) -> None:
    """The ImageNet-LT configurations at 64 pixels on real JPEGs, 2 epochs, killed and resumed, evaluated."""
    from helpers.launch import finish, run, start

    folder.mkdir(parents=True, exist_ok=True)
    imagenet_list(samples, folder / "list.txt")
    records = folder / "samples.beton"
    if not records.exists():
        convert = [
            ROOT / "tools/convert.py",
            "list",
            "--root",
            samples,
            "--list",
            folder / "list.txt",
            "--out",
            records,
        ]
        subprocess.run([sys.executable, *map(str, convert)], check=True, stdout=subprocess.DEVNULL)
    small = [f"data.train={records}", f"data.test={records}", "data.recipe.size=64", "data.recipe.short_side=73"]
    small += ["optim.batch=32", "optim.lr=0.01", "schedule.epochs=2", "compile=false"]
    bsce, dive = (ROOT / f"configs/imagenet_lt/{name}_x50.yaml" for name in ("bsce", "dive"))
    for backend in ("ffcv", "dali"):
        options = [*small, f"data.backend={backend}"]
        teacher = [bsce, *options, f"run=teacher-{backend}"]
        process = start("teacher", *teacher, cwd=folder)
        while process.poll() is None and not (folder / f"runs/teacher-{backend}/checkpoints/latest").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        finish(process)
        print(run("teacher", *teacher, cwd=folder, apart=True).stdout, flush=True)
        cache = [dive, *options, f"distill.teacher=teacher-{backend}", f"cache.dir=cache-{backend}"]
        print(run("cache_logits", *cache, cwd=folder, apart=True).stdout, flush=True)
        for name, target in (
            ("cached", f"cache.paths=[cache-{backend}]"),
            ("online", f"distill.teacher=teacher-{backend}"),
        ):
            student = [dive, *options, target, f"run={name}-{backend}"]
            print(run("distill", *student, cwd=folder, apart=True).stdout, flush=True)
        print(run("evaluate", f"cached-{backend}", cwd=folder, apart=True).stdout, flush=True)
        for name in ("teacher", "cached", "online"):
            print(backend, name, curve(folder / "runs" / f"{name}-{backend}"), flush=True)


def cache_kills_and_damages(folder: Path) -> None:
    """200 kills over two writers while this process reads; 540 random damages."""
    from drills.cache_drills import HARMS, accepted_damage, kill_writers
    from helpers.launch import run, tiny_config, write_tiny
    from helpers.small_caches import make_cache, make_records, some_samples

    folder.mkdir(parents=True, exist_ok=True)
    write_tiny(folder)
    run("teacher", tiny_config(folder, folder), "run=t", "data.seed=1", "schedule.epochs=1", cwd=folder)
    dive = tiny_config(folder, folder, "dive", "  tau: 3\n  p: 0.5\n")
    seen = kill_writers(folder, dive, views=1500, kills=200, seed=1)
    print(f"200 kills: {seen.blocks} blocks seen whole, none torn; the bytes are those of a calm writer", flush=True)
    records = make_records(folder / "damage.beton", some_samples(60))
    for codec in ("u8", "f16", "f32"):
        cache = make_cache(folder / codec, records, views=3, codec=codec)
        done, wrong = accepted_damage(cache, folder / "copies", count=20 * len(HARMS), seed=2)
        print(
            f"{done} damages of a cache of {codec}: {len(wrong)} accepted or not named", *wrong, sep="\n  ", flush=True
        )
        if wrong:
            raise SystemExit(1)


def require_equal(what: str, wrong: list[str]) -> None:
    """Print the outcome of a drill, and end the program if it differs from that of the undisturbed run."""
    print(f"{what}; different: {', '.join(wrong) or 'nothing'}", flush=True)
    if wrong:
        raise SystemExit(1)


def tiny_records(folder: Path) -> Path:
    """The suite's tiny records, in a folder of their own."""
    from helpers.launch import write_tiny

    tiny = folder / "tiny"
    tiny.mkdir(parents=True, exist_ok=True)
    write_tiny(tiny)
    return tiny


def runs_killed(folder: Path) -> None:
    """Each kind of run killed 20 times at random moments, many of them while it saves, against an undisturbed one."""
    from drills.run_drills import VARIANTS, different, killed_until_done, outcome, prepare
    from helpers.launch import run

    tiny = tiny_records(folder)
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        place = folder / name
        place.mkdir(exist_ok=True)
        script, arguments = prepare(variant, tiny, place)
        arguments += ["schedule.epochs=100", "save.every_steps=1", "eval.every_epochs=10"]
        run(script, *arguments, f"run={place}/calm", cwd=place, apart=True)
        torn = killed_until_done(script, arguments, place / "killed", kills=20, seed=seed, pause=0.3)
        wrong = different(outcome(place / "calm"), outcome(place / "killed"))
        require_equal(f"{name}: 20 kills, {torn} while a checkpoint was written", wrong)


def runs_stopped_compiled(folder: Path) -> None:
    """SIGTERM at several moments after the start, mostly during compilation; and five kills of a compiled run."""
    from drills.run_drills import VARIANTS, different, killed_until_done, outcome, prepare
    from helpers.launch import finish, run, start

    tiny = tiny_records(folder)
    script, arguments = prepare(VARIANTS["ffcv"], tiny, folder)
    arguments += ["compile=true", "schedule.epochs=20", "save.every_steps=1"]
    place = folder / "compiled"
    run(script, *arguments, f"run={place}/calm", cwd=folder, apart=True)
    for number, seconds in enumerate((0.2, 1, 2, 4)):  # after the run has begun: run.json is there
        stopped = place / f"stopped{number}"
        process = start(script, *arguments, f"run={stopped}", cwd=folder)
        while not (stopped / "run.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        done = finish(process)
        took = time.monotonic() - sent
        if done.returncode != EXIT_CODE or took > 30:
            raise SystemExit(
                f"SIGTERM after {seconds} s: exit code {done.returncode} {took:.1f} s later: {done.stderr}"
            )
        run(script, *arguments, f"run={stopped}", cwd=folder, apart=True)
        require_equal(
            f"SIGTERM after {seconds} s: left {took:.1f} s later", different(outcome(place / "calm"), outcome(stopped))
        )
    killed_until_done(script, arguments, place / "killed", kills=5, seed=9, pause=0.1)
    wrong = different(outcome(place / "calm"), outcome(place / "killed"))
    require_equal("compiled: 5 kills", wrong)


def launchers_killed(folder: Path) -> None:
    """Launchers of one process and of two, ended by each signal."""
    from drills.launchers import killed_launcher

    for processes in (1, 2):
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
            work = folder / f"{processes}-{number.name}"
            work.mkdir(parents=True)
            killed_launcher(processes, number, tiny_records(work), work)
            print(f"launchers: {processes} processes, {number.name}: nothing went on, the same weights", flush=True)


def memory_stays_flat(folder: Path) -> None:
    """Resident memory over 2,000 steps on each backend, after the end of the first epoch."""
    from drills.run_drills import VARIANTS, prepare, resident_memory, slope

    tiny = tiny_records(folder)
    for name in ("ffcv", "resident", "reference", "dali", "cache"):
        place = folder / f"memory-{name}"
        place.mkdir(exist_ok=True)
        script, arguments = prepare(VARIANTS[name], tiny, place)
        seen = resident_memory(script, [*arguments, "eval.every_epochs=50"], place / "run", epochs=290)
        print(
            f"{name}: {seen[0][1]:.0f} MB after step {seen[0][0]}, {seen[-1][1]:.0f} MB after step {seen[-1][0]}, "
            f"{slope(seen):+.2f} MB per 100 steps",
            flush=True,
        )


def new_views_beside_activations() -> None:
    """A step of ResNet-32 and a view of a cache never read before, in turns: a run does this once an epoch; here 150 times.

    Memory that opening a view leaves between activations shows here, not in a small network: 3.3 MB a view before maps.py.
    """
    from helpers.small_caches import CLASSES, make_cache, make_records, some_samples

    def resident() -> float:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) / 1024

    torch.set_num_threads(1)
    views, warm = 150, 50
    with tempfile.TemporaryDirectory() as folder:
        records = make_records(Path(folder) / "a.beton", some_samples(2 * BLOCK_ROWS + 128))
        cache = LogitCache(make_cache(Path(folder), records, views=views))
        network = build_model("resnet32", len(CLASSES)).to(memory_format=torch.channels_last)
        images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
        before = 0.0
        for view in range(views):
            keys = np.random.default_rng(view).choice(records.keys, 128, replace=False)
            targets = cache.gather(keys, np.full(128, view))
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(images)
            torch.nn.functional.mse_loss(outputs.float(), targets).backward()
            network.zero_grad()
            before = resident() if view == warm else before
        grown = (resident() - before) / (views - warm)
        print(f"new views beside activations: {before:.0f} MB after {warm}, {grown:+.2f} MB a view from there")


ALL = ("cifar", "imagenet", "startup", "cache", "runs", "compiled", "launchers", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", required=True, help="run the long drills")
    parser.add_argument("--archive", type=Path, default=ROOT.parent / "shared/data/cifar-100-python.tar.xz")
    parser.add_argument("--samples", type=Path, default=ROOT.parent / "shared/data/imagenet-samples")
    parser.add_argument("--only", choices=ALL, help="run one drill")
    parser.add_argument("--folder", type=Path, default=None, help="work here and keep it")
    options = parser.parse_args()
    from drills.startup import startup

    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if options.only in (None, "startup"):
            (folder / "startup").mkdir(exist_ok=True)
            startup(folder / "startup")
        if options.only in (None, "cache"):
            cache_kills_and_damages(folder / "cache")
        if options.only in (None, "runs"):
            runs_killed(folder / "runs-killed")
        if options.only in (None, "compiled"):
            runs_stopped_compiled(folder / "runs-compiled")
        if options.only in (None, "launchers"):
            launchers_killed(folder / "launchers")
        if options.only in (None, "memory"):
            memory_stays_flat(folder / "memory")
            new_views_beside_activations()
        if options.only in (None, "imagenet"):
            imagenet_full_pass(options.samples.resolve(), folder / "imagenet")
        if options.only in (None, "cifar"):
            cifar_cached_equals_online(options.archive.resolve(), folder / "cifar")


if __name__ == "__main__":
    main()
