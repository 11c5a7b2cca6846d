"""The long forms of what the suite shows in short: python tests/drills.py --full [--archive CIFAR_ARCHIVE] [--folder DIR].

Each prints its figures. Needs CIFAR-100 (the official archive); works in a temporary folder unless --folder keeps it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch

from models.registry import build_model
from pipelines.backends import resolve_backend
from pipelines.logits import LogitCache
from pipelines.records import Records
from train import losses
from train.config import Config, load
from train.experiment import make_loader, make_teacher, views_of
from train.optim import build_optimizer
from train.run import make_accelerator


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
    order = TrainOrder(records.keys, config.seed, config.optim.batch, views_of(config))
    prior = losses.log_prior(records.class_counts)
    torch.manual_seed(config.seed)
    student = build_model(config.model.name, records.num_classes).train()
    optimizer = build_optimizer(student, config.optim)
    d = config.distill
    assert d.tau is not None
    worst = dict.fromkeys(caches, 0.0)
    batches = loader.stream(order.plan(0, steps))
    for batch in batches:
        logits = student(batch.images)
        loss, _ = losses.dive(logits, batch.labels, teacher(batch), prior, d.tau, d.p, d.alpha)
        for codec, cache in opened.items():
            soft = cache.gather(batch.keys, batch.views)
            cached, _ = losses.dive(logits.detach(), batch.labels, soft, prior, d.tau, d.p, d.alpha)
            worst[codec] = max(worst[codec], abs(float(cached) - float(loss.detach())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return worst


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, mean loss) lines of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], round(line["loss"], 5)) for line in lines if "loss" in line]


def cifar_cached_equals_online(archive: Path, folder: Path) -> None:
    """Issue 2, check 4: 170 steps on CIFAR-100-LT, ResNet-32, fp32, not compiled."""
    import subprocess

    from launch import run

    data = folder / "data"
    if not (data / "train.beton").exists():
        convert = [ROOT / "tools/convert.py", "cifar100-lt", "--archive", archive, "--imbalance", "100", "--out", data]
        subprocess.run([sys.executable, *map(str, convert)], check=True, stdout=subprocess.DEVNULL)
    places = [f"data.train={data}/train.beton", f"data.test={data}/test.beton", "eval.every_epochs=0"]
    # Three epochs hold 170 steps of 84 to an epoch; the schedule's boundaries are the paper's no longer.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", required=True, help="run the long drills")
    parser.add_argument("--archive", type=Path, default=ROOT.parent / "shared/data/cifar-100-python.tar.xz")
    parser.add_argument("--folder", type=Path, default=None, help="work here and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        cifar_cached_equals_online(options.archive.resolve(), folder)


if __name__ == "__main__":
    main()
