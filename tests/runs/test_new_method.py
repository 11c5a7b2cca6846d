"""A method is one function and one row: a method added to a copy of the table works in every program without other changes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import warm
from helpers.launch import ROOT, run, tiny_config

TABLE = "METHODS: dict[str, Method] = {\n"
FUNCTION = """def _mine(outputs: Outputs, given: Given) -> tuple[Tensor, Parts]:
    kl = losses.kd_kl(outputs.logits, losses.soften(given.targets, given.tau, 1.0), given.tau)
    return given.tau**2 * kl, {"kl": kl.detach()}


"""
ROW = """    "mine": Method(
        _mine, "KL to the teacher alone", "the divergence to a teacher, without labels", targets=True, settings=("tau",)
    ),
"""
PROGRAMS = """
import importlib, json, sys
from accelerate.state import AcceleratorState
from pipelines.errors import UserError
for name in [name for name in sys.modules if name.partition(".")[0] in ("train", "tools")]:
    del sys.modules[name]  # imported from the repository by helpers.warm
for name, arguments in json.loads(sys.argv[1]):
    AcceleratorState._reset_state(True)
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[2]), module.__file__
    sys.argv[0] = name
    print("==", name, *arguments, flush=True)
    try:
        assert not module.main(arguments)
    except SystemExit as end:
        assert not end.code
    except UserError as error:
        print("refused:", error)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the programs with one more method; data, networks and compiled code are the repository's."""
    folder = tmp_path / "copy"
    for package in ("train", "tools"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "train" / "objectives" / "methods.py"
    text = path.read_text()
    assert text.count(TABLE) == 1
    path.write_text(text.replace(TABLE, FUNCTION + TABLE + ROW))
    return folder


@pytest.mark.slow
def test_a_method_that_is_added_goes_through_every_program(copy: Path, tiny: Path, tmp_path: Path) -> None:
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", "data.seed=1", cwd=tmp_path)
    tiny_config(tmp_path, tiny, "mine", "  tau: 2\n")
    common = ["mine.yaml", "schedule.epochs=1"]
    programs = [
        ("train.distill", ["--help"]),
        ("train.teacher", [*common, "run=none"]),
        ("train.distill", [*common, "run=none", "distill.teacher=t", "distill.p=0.5"]),
        ("train.distill", [*common, "run=online", "distill.teacher=t"]),
        ("train.cache_logits", [*common, "distill.teacher=t"]),
        ("train.distill", [*common, "cache.paths=[caches]"]),
        ("train.evaluate", ["mine-s0", "export=exports/mine"]),
        (
            "tools.bench",
            [*common, "optim.batch=8", "--only", "b,c,d,e", "--images", "16", "--rounds", "1", "--seconds", "0"],
        ),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [warm.python(), "-c", PROGRAMS, json.dumps(programs), str(copy)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split("== ")
    assert "distill.method: mine|ce|bsce|ldam|dive|kd|router = dive" in said[1]
    assert "mine: KL to the teacher alone" in said[1]
    assert "refused: distill.method=mine is not for train/teacher.py" in said[2] and "use train/distill.py" in said[2]
    assert "refused: distill.p=0.5: mine has no power" in said[3]
    results = [json.loads((tmp_path / f"runs/{name}/result.json").read_text()) for name in ("online", "mine-s0")]
    assert [(one["method"], one["tau"]) for one in results] == [("mine", 2.0)] * 2
    lines = (tmp_path / "runs/mine-s0/metrics.jsonl").read_text().splitlines()
    assert "kl" in json.loads(lines[0])
    card = (tmp_path / "exports/mine/README.md").read_text()
    assert (
        "the divergence to a teacher, without labels (`mine`)" in card and "| settings of the loss | tau 2.0 |" in card
    )
    assert json.loads((tmp_path / "exports/mine/model.json").read_text())["method"] == "mine"
    assert "training from disk (ce)" in said[-1] and "distillation from a cache" in said[-1]
