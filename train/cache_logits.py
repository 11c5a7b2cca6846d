"""Compute a teacher's logits once, for every view that students of a configuration will see.

CONFIG is the STUDENT's: recipe, data.seed and number of views agree by construction. Kill it whenever you like and run the
same command again: finished blocks are kept. The printed folder goes into the students' cache.paths.

    accelerate launch train/cache_logits.py configs/cifar100_lt/dive_if100.yaml distill.teacher=NAME

Any number of such commands may fill one cache at the same time, on machines that share the folder: the same kind of GPU and
the same versions give the same bytes.
"""

import sys
from pathlib import Path

# `accelerate launch` puts this script's folder first; a foreign `models` or `train` must not hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from train.run.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()  # read when torch is imported

import torch

from pipelines.backends import pixel_source, resolve_backend
from pipelines.errors import UserError
from pipelines.logits import CacheWriter
from pipelines.logits.identity import cache_identity, fields_of, view_identity
from pipelines.logits.writer import cache_folder, cache_size
from pipelines.records.reader import Records
from train.config import Config
from train.data import make_loader, views_of
from train.effects import of_cache_writer
from train.objectives.caching import require_space, write_cache
from train.objectives.sources import asked_recipe, make_teacher
from train.run.agreement import require_alike
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.settings import parse_args
from train.watch.text import size_text


def main(argv: list[str]) -> None:
    config, options = parse_args(argv, __doc__ or "", Config)
    if config.data.train is None:
        raise UserError("data.train is not set; type data.train=FILE.beton (tools/convert.py makes it)")
    if config.distill.teacher is None:
        raise UserError(
            "distill.teacher is not set; type distill.teacher=RUN, the finished teacher's, or distill.teacher=WEIGHTS.pth "
            "distill.teacher_arch=NAME distill.teacher_classes=FILE"
        )
    accelerator = make_accelerator(config)
    if idle := of_cache_writer(config, options):
        accelerator.print(idle)
    # A block's bytes must not depend on which kernels were faster when they were timed.
    torch.backends.cudnn.benchmark = False
    if config.compile:
        from torch._inductor import config as inductor  # here, because it takes long to import

        inductor.deterministic = True  # no size of a reduction, no padding is chosen by timing
    records = Records(config.data.train)
    teacher = make_teacher(config, records, accelerator)
    recipe, device = asked_recipe(config), accelerator.device
    backend = resolve_backend(config.data.backend, records, recipe, device)
    # Crops are not finished: the teacher normalises them itself.
    loader = make_loader(config, records, recipe, backend, accelerator, finished=False, batch=config.cache.batch)
    view = view_identity(
        records, recipe, config.data.seed, pixel_source(backend, records, device, config.data.hw_decoder_load)
    )
    identity = cache_identity(view, teacher.identity, config.cache.codec, config.cache.batch)
    require_alike(
        dict(fields_of(identity)),
        "the processes would write different caches",
        "all machines need the same records, the same teacher and the same kind of GPU",
    )
    views = views_of(config, len(records))
    size = cache_size(identity, len(records), views)
    require_space(cache_folder(config.cache.dir, teacher.name, identity), size)
    if options.dry_run:
        accelerator.print(f"dry run: would write {views} views of {len(records)} samples into {config.cache.dir}")
        return
    writer = CacheWriter(config.cache.dir, teacher.name, identity, records.rows())
    accelerator.print(
        f"writing {writer.folder}: {len(writer.missing(views))} of {size.blocks} blocks missing, "
        f"{size_text(size.bytes)} in the end"
    )
    figures = write_cache(writer, loader, teacher, views, config.cache.batch, accelerator)
    accelerator.print("  ".join(f"{name} {value}" for name, value in figures.items()))
    if figures["teacher_top1"] < (usual := records.class_counts.max() / len(records)):
        accelerator.print(
            f"warning: the teacher is right on {figures['teacher_top1']:.1%} of these views, always naming the most frequent "
            f"class would be on {usual:.1%}: wrong mean and std, or another order of classes?"
        )
    accelerator.print(f"complete: cache.paths=[{writer.folder}]")


if __name__ == "__main__":
    sys.exit(guard(main))
