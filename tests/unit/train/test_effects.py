"""Settings that were typed for nothing: refused where another setting leaves them without effect, told where a program does."""

from pathlib import Path

import pytest
from helpers.launch import refused, run

from pipelines.errors import UserError
from train import effects
from train.config import Config
from train.effects import of_cache_writer, of_training, require_evaluations
from train.evaluate import EvaluateConfig
from train.objectives.methods import METHODS
from train.settings import Options, keys, load


@pytest.fixture
def typed(tmp_path: Path):
    """A function from settings to (config, options), as if typed behind an empty file."""
    (tmp_path / "empty.yaml").touch()

    def give(*overrides: str) -> tuple[Config, Options]:
        path = tmp_path / "empty.yaml"
        return load(Config, path, overrides), Options(path, list(overrides), False)

    return give


REFUSED = [
    ("distill.method=bsce distill.tau=7", "distill.tau=7.0 goes with distill.method=dive, kd, dkd or bkd"),
    ("distill.method=ce distill.alpha=0.1", "distill.alpha=0.1 goes with distill.method=dive, kd, dkd or bkd"),
    ("distill.method=bsce distill.p=0.5", "distill.p=0.5 goes with distill.method=dive"),
    ("distill={method: bsce, tau: 7}", "distill.tau=7.0 goes with"),
    ("distill.method=bsce distill.hard=ce", "distill.hard=ce goes with distill.method=dive, kd, dkd or bkd"),
    ("distill.margin=0.4", "distill.margin=0.4 goes with distill.method=ldam, or distill.hard=ldam"),
    ("distill.method=kd distill.margin=0.4", "distill.margin=0.4 goes with distill.method=ldam, or distill.hard=ldam"),
    (
        "distill.method=bsce distill.drw_from=3",
        "distill.drw_from=3 goes with distill.method=ce, ldam, kd, dkd or bkd, or distill.hard=ce or ldam",
    ),
    ("distill.drw_from=3", "distill.drw_from=3 goes with"),  # dive's own hard term has the prior
    ("distill.method=ldam distill.drw_beta=0.9", "distill.drw_beta=0.9 goes with distill.drw_from"),
    ("distill.diversity_from=3", "distill.diversity_from=3 goes with distill.diversity"),
    ("distill.diversity=-0.2 distill.diversity_eta=0.1", "goes with distill.diversity and distill.diversity_from"),
    ("data.recipe.pad=2", "data.recipe.pad=2 goes with data.recipe.crop=pad_crop"),
    ("data.recipe.crop=center data.recipe.scale=[0.5,1]", "goes with data.recipe.crop=random_resized_crop"),
    ("data.recipe.policy_ops=3", "data.recipe.policy_ops=3 goes with data.recipe.policy=randaugment"),
    ("data.recipe.policy=trivialaugment data.recipe.policy_magnitude=3", "goes with data.recipe.policy=randaugment"),
    ("data.recipe.cutout_holes=2", "data.recipe.cutout_holes=2 goes with data.recipe.cutout"),
    ("data.recipe.cutout_fill=black", "data.recipe.cutout_fill=black goes with data.recipe.cutout or"),
    ("data.recipe.erasing_area=[0.1,0.2]", "data.recipe.erasing_area=[0.1, 0.2] goes with data.recipe.erasing"),
    ("data.recipe.mix_alpha=0.4", "data.recipe.mix_alpha=0.4 goes with data.recipe.mix"),
    ("data.recipe.mix_share=0.5", "data.recipe.mix_share=0.5 goes with data.recipe.mix"),
    ("distill.mixed_targets=parts", "distill.mixed_targets=parts goes with data.recipe.mix and a teacher"),
    ("data.recipe.mix=mixup distill.method=ce distill.mixed_targets=parts", "goes with data.recipe.mix and a teacher"),
    ("data.backend=ffcv data.hw_decoder_load=0.5", "goes with data.backend=dali"),
    ("optim.name=adamw optim.momentum=0.8", "optim.momentum=0.8 goes with optim.name=sgd"),
    ("optim.betas=[0.8,0.9]", "optim.betas=[0.8, 0.9] goes with optim.name=adamw"),
    ("optim.lr_base_batch=64", "goes with optim.lr_scale=linear or sqrt"),
    ("schedule.gamma=0.5", "goes with schedule.kind=multistep"),
    ("ema.warmup=false", "goes with ema.decay"),
    ("compile_mode=max-autotune", "goes with compile=true"),
    ("track.project=mine", "goes with track.trackers=[wandb]"),
    ("profile.start=3", "goes with profile.steps"),
]


@pytest.mark.parametrize("settings, words", REFUSED)
def test_settings_that_others_leave_without_an_effect(typed, settings: str, words: str) -> None:
    overrides = [settings] if settings.startswith("distill={") else settings.split()
    with pytest.raises(UserError) as caught:
        of_training(*typed(*overrides))
    assert words in str(caught.value) and str(caught.value).startswith("without effect: ")


@pytest.mark.parametrize(
    "settings",
    [
        "distill.tau=7 distill.p=0.5 distill.alpha=0.1",
        "distill.method=kd distill.p=1 distill.tau=4",
        "distill.method=bsce distill.alpha=0.5",  # the default
        "distill.method=ldam distill.margin=0.4 distill.drw_from=3 distill.drw_beta=0.9",
        "distill.hard=ldam distill.margin=0.4 distill.drw_from=3",
        "distill.method=kd distill.drw_from=0 distill.head_smoothing=0.1",
        "data.recipe.crop=pad_crop data.recipe.pad=2",
        "data.recipe.policy=randaugment data.recipe.policy_ops=3 data.recipe.policy_magnitude=15",
        "data.recipe.cutout=16 data.recipe.cutout_holes=2 data.recipe.cutout_fill=black",
        "data.recipe.erasing=0.5 data.recipe.erasing_ratio=[0.5,2] data.recipe.cutout_fill=black",
        "data.recipe.mix=mixup data.recipe.mix_alpha=0.4 data.recipe.mix_share=0.5 distill.mixed_targets=parts",
        "optim.name=adamw optim.betas=[0.8,0.9]",
        "profile.steps=1 profile.start=3",
        "optim.lr=3 seed=4",
    ],
)
def test_what_has_an_effect_is_not_mentioned(typed, settings: str) -> None:
    assert of_training(*typed(*settings.split())) is None


def test_a_file_may_serve_several_methods(tmp_path: Path) -> None:
    (tmp_path / "dive.yaml").write_text("distill: {tau: 3, p: 0.5}")
    given = ["distill.method=bsce"]
    assert (
        of_training(load(Config, tmp_path / "dive.yaml", given), Options(tmp_path / "dive.yaml", given, False)) is None
    )


def test_what_another_program_reads_is_told(typed) -> None:
    told = of_training(*typed("cache.codec=f32", "cache.check=always", "cache.average=probabilities"))
    assert told == (
        "without effect here: cache.codec=f32 goes with train/cache_logits.py; cache.check=always goes with cache.paths; "
        "cache.average=probabilities goes with several cache.paths"
    )
    assert of_training(*typed("cache.check=always", "cache.paths=[a]")) is None
    sampling = "data.sampling=class_balanced"
    told = of_cache_writer(
        *typed("optim.lr=3", "distill.teacher=t", "data.views=3", "distill.tau=9", "schedule.epochs=5", sampling)
    )
    assert told == f"without effect on a cache, for students: optim.lr=3.0, distill.tau=9.0, {sampling}"
    mixed = ("data.recipe.mix=mixup", "distill.mixed_targets=parts")
    assert of_cache_writer(*typed("distill.teacher=t", *mixed)) is None
    assert of_cache_writer(*typed("distill.teacher=t", "cache.codec=f32", "optim.batch=4", "compile=true")) is None


def test_the_tables_name_settings_that_exist() -> None:
    known = keys(EvaluateConfig)
    sections = {".".join(key.split(".")[:n]) for key in known for n in (1, 2)}
    tables = (*effects._NEEDS, *effects._ELSEWHERE, *effects._of_methods())
    assert {key for need in tables for key in need.settings} <= set(known)
    assert {*effects.EVALUATION, *effects.CACHE_WRITER} <= set(known) | sections
    assert {f"distill.{name}" for row in METHODS.values() for name in row.settings} <= set(known)


def test_what_an_evaluation_takes() -> None:
    lines = ["data.test: a -> b", "data.recipe.size: 32 -> 40", "precision: fp32 -> bf16", "weights: raw -> ema"]
    require_evaluations(lines, unfinished=False)
    require_evaluations(["data.train: a -> b"], unfinished=True)
    for line in (
        "data.train: a -> b",
        "data.recipe.flip: true -> false",
        "data.recipe.cutout: 0 -> 8",
        "model.name: a -> b",
        "optim.lr: 1 -> 2",
    ):
        with pytest.raises(UserError) as caught:
            require_evaluations([*lines, line], unfinished=False)
        assert f"(of the run -> given): {line}; leave it out" in str(caught.value)
        assert "takes data.val, data.test, data.backend" in str(caught.value)


def test_the_entry_scripts_say_it(taught: Path) -> None:
    work = taught
    assert "model.name: resnet8 -> resnet18; leave it out" in refused(work, "evaluate", "t", "model.name=resnet18")
    assert "test.samples: 37" in run("evaluate", "t", "model.name=resnet8", "eval.batch=9", cwd=work).stdout
    line = refused(work, "teacher", work / "bsce.yaml", "run=typed", "distill.tau=7")
    assert "distill.tau=7.0 goes with distill.method=dive, kd, dkd or bkd" in line
    done = run("teacher", work / "bsce.yaml", "run=typed", "cache.codec=f16", "--dry-run", cwd=work)
    assert "without effect here: cache.codec=f16 goes with train/cache_logits.py" in done.stdout
    done = run("cache_logits", work / "dive.yaml", "distill.teacher=t", "optim.lr=3", "--dry-run", cwd=work)
    assert "without effect on a cache, for students: optim.lr=3.0" in done.stdout


def test_a_run_goes_on_by_the_command_that_began_it(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions took settings without an effect."""
    command = ("teacher", taught / "bsce.yaml", "run=before", "distill.tau=7", "schedule.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("train.experiment.of_training", lambda config, options: None)
        run(*command, cwd=taught)
    assert "is finished; its result" in run(*command, cwd=taught).stdout
