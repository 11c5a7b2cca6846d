"""Settings that cannot have an effect: one that is typed for nothing is refused, or told where another program would read it.

Owns what each setting needs of the others, as far as it needs anything, and what an evaluation and the writer of a cache read.
Only what was typed behind the configuration file counts: a file may serve several methods and programs. Invariant: nothing
that was typed differs from its default and is passed over in silence.
"""

from collections.abc import Callable
from typing import NamedTuple

from pipelines.errors import UserError
from train.config import Config
from train.objectives.methods import METHODS, names_where, reads, settings_of
from train.settings import Options, flatten, keys, keys_of, value_text

# What evaluations and predictions take besides the run's own settings; the network and its training are those of the run.
_ASKING = (
    *("data.backend", "data.mean", "data.std", "data.verify", "data.workers", "data.hw_decoder_load"),
    *("data.recipe.crop", "data.recipe.size", "data.recipe.short_side", "eval.batch", "precision", "deterministic"),
)
EVALUATION = (
    *("data.val", "data.test"),
    *_ASKING,
    *("weights", "split", "predictions", "features", "export", "format", "program_input"),
)
PREDICTION = (*_ASKING, *("weights", "out", "top", "prior"))
# What the reports of tools/ take: of the evaluation of runs without kept predictions, and where caches and training records are.
REPORT = ("data.train", "data.val", "data.test", *_ASKING, "cache.paths")
# What train/cache_logits.py reads of a student's settings; of `data` all but the sampling, as it asks about every view once.
CACHE_WRITER = (
    *("data", "schedule", "optim.batch", "cache.codec", "cache.batch", "cache.dir", "precision", "deterministic"),
    *("compile", "compile_mode", *(f"distill.teacher{of}" for of in ("", "_arch", "_classes", "_mean", "_std"))),
    "distill.mixed_targets",
)


class Needs(NamedTuple):
    """When settings have an effect, and that in words: "goes with ..."."""

    settings: tuple[str, ...]
    words: str
    met: Callable[[Config], bool]


_NEEDS = (
    Needs(("data.recipe.pad",), "data.recipe.crop=pad_crop", lambda c: c.data.recipe.crop == "pad_crop"),
    Needs(
        ("data.recipe.scale", "data.recipe.ratio"),
        "data.recipe.crop=random_resized_crop",
        lambda c: c.data.recipe.crop == "random_resized_crop",
    ),
    Needs(
        ("data.recipe.policy_ops", "data.recipe.policy_magnitude"),
        "data.recipe.policy=randaugment",
        lambda c: c.data.recipe.policy == "randaugment",
    ),
    Needs(("data.recipe.cutout_holes",), "data.recipe.cutout", lambda c: c.data.recipe.cutout != 0),
    Needs(
        ("data.recipe.cutout_fill",),
        "data.recipe.cutout or data.recipe.erasing",
        lambda c: c.data.recipe.cutout != 0 or c.data.recipe.erasing != 0,
    ),
    Needs(
        ("data.recipe.erasing_area", "data.recipe.erasing_ratio"),
        "data.recipe.erasing",
        lambda c: c.data.recipe.erasing != 0,
    ),
    Needs(
        ("data.recipe.mix_alpha", "data.recipe.mix_share"),
        "data.recipe.mix",
        lambda c: c.data.recipe.mix is not None,
    ),
    Needs(
        ("distill.mixed_targets",),
        "data.recipe.mix and a teacher",
        lambda c: c.data.recipe.mix is not None and METHODS[c.distill.method].targets,
    ),
    Needs(("model.head_scale",), "model.head=cosine", lambda c: c.model.head == "cosine"),
    Needs(("model.expert_width",), "model.experts", lambda c: c.model.experts is not None),
    Needs(
        ("model.sync_bn",),
        f"distill.method={names_where(lambda row: row.part is None)}",
        lambda c: METHODS[c.distill.method].part is None,
    ),
    Needs(("data.hw_decoder_load",), "data.backend=dali", lambda c: c.data.backend in ("auto", "dali")),
    Needs(("optim.momentum", "optim.nesterov"), "optim.name=sgd", lambda c: c.optim.name == "sgd"),
    Needs(("optim.betas",), "optim.name=adamw", lambda c: c.optim.name == "adamw"),
    Needs(("optim.lr_base_batch",), "optim.lr_scale=linear or sqrt", lambda c: c.optim.lr_scale != "none"),
    Needs(("distill.kl_of",), "model.experts", lambda c: c.model.experts is not None),
    Needs(("distill.drw_beta",), "distill.drw_from", lambda c: c.distill.drw_from is not None),
    Needs(("distill.diversity_from",), "distill.diversity", lambda c: c.distill.diversity != 0),
    Needs(
        ("distill.diversity_eta",),
        "distill.diversity and distill.diversity_from",
        lambda c: c.distill.diversity != 0 and c.distill.diversity_from is not None,
    ),
    Needs(("schedule.gamma",), "schedule.kind=multistep", lambda c: c.schedule.kind == "multistep"),
    Needs(("ema.warmup",), "ema.decay", lambda c: c.ema.decay is not None),
    Needs(("compile_mode",), "compile=true", lambda c: c.compile),
    Needs(("track.project",), "track.trackers=[wandb]", lambda c: "wandb" in c.track.trackers),
    Needs(("profile.start",), "profile.steps", lambda c: c.profile.steps > 0),
)
# Of other programs and runs; one line of settings may serve a teacher, its cache and a student.
_ELSEWHERE = (
    Needs(("cache.codec", "cache.batch", "cache.dir"), "train/cache_logits.py", lambda c: False),
    Needs(("cache.check", "cache.pixels"), "cache.paths", lambda c: bool(c.cache.paths)),
    Needs(("cache.average",), "several cache.paths", lambda c: len(c.cache.paths) > 1),
)


def _of_methods() -> tuple[Needs, ...]:
    """The keys of `distill` that some losses read and others do not."""
    found = dict.fromkeys(name for row in METHODS.values() for name in row.settings)
    return tuple(
        Needs((f"distill.{name}",), _where_read(name), lambda c, name=name: name in settings_of(c.distill))
        for name in found
    )


def _where_read(name: str) -> str:
    """`distill.method=A or B`, and the hard terms that read the key, which other methods may take."""
    hard = names_where(lambda row: row.is_hard_term and name in row.settings)
    return f"distill.method={names_where(lambda row: reads(row, name))}" + (f", or distill.hard={hard}" if hard else "")


def _typed(config: Config, options: Options) -> dict[str, str]:
    """{key: KEY=VALUE} of what was typed and is not the default."""
    values, known = flatten(config), keys(type(config))
    given = dict.fromkeys(keys_of(type(config), options.overrides))
    return {key: f"{key}={value_text(values[key])}" for key in given if values[key] != known[key].default}


def _idle(config: Config, typed: dict[str, str], table: tuple[Needs, ...]) -> list[str]:
    """`KEY=VALUE goes with WORDS` for each setting of the table whose need is not met."""
    unmet = [need for need in table if not need.met(config)]
    return [f"{typed[key]} goes with {need.words}" for need in unmet for key in need.settings if key in typed]


def of_training(config: Config, options: Options) -> str | None:
    """A line on settings of other programs; UserError for those that the others leave without an effect."""
    typed = _typed(config, options)
    if idle := _idle(config, typed, (*_NEEDS, *_of_methods())):
        raise UserError(f"without effect: {'; '.join(idle)}; leave it out, or change the other")
    idle = _idle(config, typed, _ELSEWHERE)
    return f"without effect here: {'; '.join(idle)}" if idle else None


def of_cache_writer(config: Config, options: Options) -> str | None:
    """A line on settings of the student that a cache does not depend on."""
    idle = [
        text for key, text in _typed(config, options).items() if not _among(key, CACHE_WRITER) or key == "data.sampling"
    ]
    return f"without effect on a cache, for students: {', '.join(idle)}" if idle else None


def require_evaluations(changes: list[str], unfinished: bool) -> None:
    """UserError for a line of `diff` (KEY: of the run -> given) about a setting that an evaluation does not read.

    unfinished: the classes are those of data.train, as no model.json names them yet.
    """
    _require_among(EVALUATION, changes, unfinished, "an evaluation", "train/evaluate.py")


def require_predictions(changes: list[str], unfinished: bool) -> None:
    """The same of a prediction."""
    _require_among(PREDICTION, changes, unfinished, "a prediction", "train/predict.py")


def require_reports(changes: list[str]) -> None:
    """The same of a report or a figure."""
    _require_among(REPORT, changes, False, "a report or figure", "A report or figure")


def _require_among(names: tuple[str, ...], changes: list[str], unfinished: bool, what: str, program: str) -> None:
    takes = (*names, "data.train") if unfinished else names
    idle = [line for line in changes if not _among(line.partition(":")[0], takes)]
    if idle:
        raise UserError(
            f"without effect on {what} (of the run -> given): {'; '.join(idle)}; leave it out: the network is the run's. "
            f"{program} takes {', '.join(takes)}"
        )


def _among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
