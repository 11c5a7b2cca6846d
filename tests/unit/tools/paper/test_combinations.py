"""The runs of a sweep: combinations, their names, and what is refused before any starts."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from tools.paper.combinations import planned, values_of

CONFIG = Path(__file__).resolve().parents[4] / "configs" / "cifar100_lt" / "dive_if100.yaml"


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("seed=0,1,2", ["0", "1", "2"]),
        ("optim.lr=0.1", ["0.1"]),
        ("cache.paths=[a,b]", ["[a,b]"]),
        ("cache.paths=[a,b],[c]", ["[a,b]", "[c]"]),
        ("run=a=b", ["a=b"]),
        ("data.val=", [""]),
    ],
)
def test_values_are_separated_by_commas_outside_of_brackets(setting: str, values: list[str]) -> None:
    assert values_of(setting) == (setting.partition("=")[0], values)


def test_every_combination_is_a_run() -> None:
    runs = planned(CONFIG, ["seed=0,1", "distill.method=ce,dive", "optim.lr=0.05"], "s")
    assert [run.name for run in runs] == [f"seed-{s}_method-{m}" for s in (0, 1) for m in ("ce", "dive")]
    script, config, *words = runs[1].command
    assert script.endswith("train/distill.py") and config == str(CONFIG)
    assert words == ["seed=0", "distill.method=dive", "optim.lr=0.05", "run=s/seed-0_method-dive"]
    assert runs[0].command[0].endswith("train/teacher.py")


def test_keys_of_the_same_last_name_are_told_apart() -> None:
    (first, *_) = planned(CONFIG, ["seed=0,1", "data.seed=0,1"], "s")
    assert first.name == "seed-0_data.seed-0"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=0"], "nothing is swept"),
        (["seed=0,0"], "a value is given twice"),
        (["seed=0,1", "seed=2"], "seed is given twice"),
        (["seed=0,1", "run=x"], "run is set for each run of a sweep"),
        (["sed=0,1"], "unknown key 'sed'"),
        (["optim.lr=0.1,fast"], "optim.lr=fast"),
        (["data.train=a/b,a-b"], "two runs would be named train-a-b"),
    ],
)
def test_what_no_sweep_can_be(settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(CONFIG, settings, "s")
