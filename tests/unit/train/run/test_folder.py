import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import textwrap
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.launch import finish, start_program

from pipelines.errors import UserError
from pipelines.files import write_json_atomic
from train.config import Config
from train.networks.final import why_not_final
from train.optim import OptimConfig
from train.run.agreement import PLACES
from train.run.checkpoint import SaveConfig
from train.run.facts import Facts
from train.run.folder import FREE_KEYS, PATIENCE_KEYS, Run, moved
from train.run.lock import Lock
from train.settings import load

ROOT = Path(__file__).parents[4]
SCRIPT = "train/distill.py"

pytestmark = pytest.mark.usefixtures("bare_environment")


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# ---- one run, several sessions ----


def test_a_run_from_start_to_result(accelerator):
    config = Config(optim=OptimConfig(lr=0.3))
    with Run.open(config, "first", SCRIPT, accelerator) as run:
        assert (run.folder, run.is_main, run.resumed, run.changes) == (Path("runs/first"), True, False, [])
        assert run.result() is None
        assert load(Config, run.folder / "config.yaml") == config
        during = record(run.folder)
        assert during["status"] == during["sessions"][0]["status"] == "running"
        run.finish({"top1": 0.5})
        assert run.result() == {"top1": 0.5}
    written = record(run.folder)
    assert (written["script"], written["status"]) == (SCRIPT, "finished")
    (session,) = written["sessions"]
    assert session["status"] == "finished" and session["started"] <= session["ended"]
    environment = session["environment"]
    assert environment["torch"] == torch.__version__ and environment["world_size"] == 1
    assert environment["host"] == platform.node() and environment["device"].startswith("cpu: ")
    assert {"accelerate", "numpy", "numba", "python"} <= environment.keys()
    assert written["command"].startswith("python ")

    before = sorted((path.name, path.read_bytes()) for path in run.folder.iterdir() if path.name != Lock.NAME)
    with Run.open(config, "first", SCRIPT, accelerator) as again:
        assert again.result() == {"top1": 0.5}
    after = sorted((path.name, path.read_bytes()) for path in run.folder.iterdir() if path.name != Lock.NAME)
    assert after == before  # reading a finished run leaves no trace


def test_how_a_session_ended_is_written(accelerator):
    def end(error: BaseException | None) -> dict:
        expected = pytest.raises(type(error)) if error is not None else contextlib.nullcontext()
        with expected, Run.open(Config(), "a", SCRIPT, accelerator):
            if error is not None:
                raise error
        written = record(Path("runs/a"))
        assert written["status"] == written["sessions"][-1]["status"] and written["sessions"][-1]["ended"]
        return {name: written["sessions"][-1][name] for name in ("status", "message")}

    assert end(None) == {"status": "stopped", "message": ""}
    assert end(KeyboardInterrupt()) == {"status": "stopped", "message": "KeyboardInterrupt"}
    assert end(UserError("bad record")) == {"status": "error", "message": "bad record"}
    assert end(RuntimeError("out of memory")) == {
        "status": "error",
        "message": "RuntimeError('out of memory')",
    }
    assert len(record(Path("runs/a"))["sessions"]) == 4


def test_a_killed_session_is_recognised(accelerator):
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from train.config import Config
        from train.run.environment import make_accelerator
        from train.run.facts import Facts
        from train.run.folder import Run
        config = Config()
        Run.open(config, "a", {SCRIPT!r}, make_accelerator(config)).note(Facts(backend="ffcv"))
        os.kill(os.getpid(), 9)
    """
    process = subprocess.run([warm.python(), "-c", textwrap.dedent(code)])
    assert process.returncode == -signal.SIGKILL
    assert record(Path("runs/a"))["status"] == "running"  # it could not write another
    assert "run runs/a is unfinished (ended without a word: it was killed or it crashed)" in why_not_final(
        Path("runs/a")
    )
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        assert run.resumed and run.changes == [] and run.facts == Facts(backend="ffcv")
        assert re.fullmatch(r"the session of 20\S+ ended without a word: it was killed or it crashed", run.note_on_last)
        assert "run runs/a is unfinished (it is running)" in why_not_final(Path("runs/a"))
        killed, session = record(run.folder)["sessions"]
        assert (killed["status"], session["status"]) == ("killed", "running")
        assert killed["ended"] == killed["started"] and session["ended"] is None


def test_a_killed_session_ends_with_its_last_figures(accelerator):
    """Not before the session began, even if it was killed before it wrote any metrics."""
    run = Run.open(Config(), "a", SCRIPT, accelerator)
    before = record(run.folder)
    started = datetime.fromisoformat(before["sessions"][0]["started"])
    run._let_go()
    metrics = run.folder / "metrics.jsonl"
    for seconds, lasted in ((90, 90), (-90, 0)):
        write_json_atomic(run.folder / "run.json", before)
        metrics.touch()
        written = started.timestamp() + seconds
        os.utime(metrics, (written, written))
        with Run.open(Config(), "a", SCRIPT, accelerator):
            ended = record(run.folder)["sessions"][0]["ended"]
        assert (datetime.fromisoformat(ended) - started).total_seconds() == lasted


def test_facts_outlive_the_session(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run.note(Facts(backend="ffcv", digests={"train": "d"}))
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        assert run.facts == Facts(backend="ffcv", digests={"train": "d"})
        run.note(Facts(backend="ffcv", tau=3.0, stored={"val": "s"}))
    stored = record(Path("runs/a"))["facts"]
    assert (stored["backend"], stored["tau"], stored["train"], stored["val_stored"]) == ("ffcv", 3.0, "d", "s")


def test_killed_between_result_and_status(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        (run.folder / "result.json").write_text('{"top1": 1}')
        later = datetime.fromisoformat(record(run.folder)["sessions"][0]["started"]).timestamp() + 3600
        os.utime(run.folder / "result.json", (later, later))
        run._let_go()  # no end is recorded
    assert record(run.folder)["status"] == "running"
    assert Run.open(Config(), "a", SCRIPT, accelerator).result() == {"top1": 1}
    assert record(run.folder)["status"] == "finished"
    ended = datetime.fromisoformat(record(run.folder)["sessions"][0]["ended"]).timestamp()
    assert ended == pytest.approx(later, abs=1), "not the time at which somebody looked"


def test_other_versions_are_told(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        pass
    written = record(run.folder)
    written["sessions"][0]["environment"] |= {"torch": "2.11", "world_size": 8}
    del written["sessions"][0]["environment"]["numba"]
    (run.folder / "run.json").write_text(json.dumps(written))
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        numba = record(run.folder)["sessions"][1]["environment"]["numba"]
        assert sorted(run.changes) == sorted(
            [f"torch: 2.11 -> {torch.__version__}", "world_size: 8 -> 1", f"numba: None -> {numba}"]
        )


# ---- refusals ----


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        Run.open(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_settings_are_refused_with_the_difference(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        Path("runs/a/metrics.jsonl").write_text('{"step": 50}\n')
    before = (Path("runs/a/config.yaml").read_bytes(), Path("runs/a/run.json").read_bytes())
    message = refusal(Config(seed=1, optim=OptimConfig(lr=0.2)), "a", SCRIPT, accelerator)
    assert "run runs/a was started with other settings" in message
    assert "optim.lr: 0.1 -> 0.2; seed: 0 -> 1. Give the stored ones, or another run=NAME" in message
    for fixed in (Config(compile=True), Config(precision="bf16"), Config(deterministic=True)):
        refusal(fixed, "a", SCRIPT, accelerator)
    assert before == (Path("runs/a/config.yaml").read_bytes(), Path("runs/a/run.json").read_bytes())
    Run.open(Config(), "a", SCRIPT, accelerator).close("stopped")  # a refusal holds no lock


def test_free_settings_may_change_and_are_written_down(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    data = replace(Config().data, workers=3, verify="always")
    changed = Config(data=data, save=SaveConfig(keep_last=5), run="./runs/a")
    with Run.open(changed, "./runs/a", SCRIPT, accelerator) as run:
        assert run.changes == [
            "data.verify: first -> always",
            "data.workers: null -> 3",
            "save.keep_last: 2 -> 5",
            "run: null -> ./runs/a",
        ]
        assert load(Config, run.folder / "config.yaml") == changed
        assert record(run.folder)["sessions"][1]["changes"] == run.changes


def test_free_keys_exist():
    """Every free key is a key or a section: a renamed key would silently lose its freedom."""
    for key in FREE_KEYS + PLACES + PATIENCE_KEYS:
        value = Config()
        for name in key.split("."):
            value = getattr(value, name)


def test_how_often_is_evaluated_is_bound_where_evaluations_end_the_run(accelerator):
    patient = replace(Config().eval, patience=4, every_epochs=2)
    best = SaveConfig(keep_best="val")
    Run.open(Config(eval=patient, save=best), "a", SCRIPT, accelerator).close("stopped")
    Path("runs/a/metrics.jsonl").write_text('{"step": 50}\n')
    said = refusal(Config(eval=replace(patient, every_steps=1), save=best), "a", SCRIPT, accelerator)
    assert "eval.every_steps: 0 -> 1" in said
    other = replace(best, keep_best="test_split_knowingly", keep_last=5)
    said = refusal(Config(eval=patient, save=other), "a", SCRIPT, accelerator)
    assert "save.keep_best: val -> test_split_knowingly" in said and "keep_last" not in said
    Run.open(Config(eval=replace(patient, batch=7), save=best), "a", SCRIPT, accelerator).close("stopped")


def test_a_finished_run_keeps_the_settings_that_made_it(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run.finish({"top1": 0.5})
    data = replace(Config().data, train="elsewhere.beton")
    again = Run.open(Config(data=data, save=SaveConfig(keep_last=5)), "a", SCRIPT, accelerator)
    assert again.result() == {"top1": 0.5} and load(Config, run.folder / "config.yaml") == Config()
    assert moved(Config(data=data), run.folder) and not moved(Config(save=SaveConfig(keep_last=5)), run.folder)


def test_a_finished_run_with_other_settings_is_refused(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run.finish({})
    assert "seed: 0 -> 1" in refusal(Config(seed=1), "a", SCRIPT, accelerator)


def test_another_scripts_run_is_refused(accelerator):
    with Run.open(Config(), "a", "train/teacher.py", accelerator):
        Path("runs/a/metrics.jsonl").write_text('{"step": 50}\n')
    message = refusal(Config(), "a", SCRIPT, accelerator)
    assert message == "runs/a is a run of train/teacher.py; give train/distill.py another run=NAME"


def test_a_folder_that_is_no_run_is_left_alone(accelerator):
    folder = Path("./somewhere/photos")
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    message = refusal(Config(), "./somewhere/photos", SCRIPT, accelerator)
    assert message == "somewhere/photos exists and is no run (it holds a.jpg); give another run=NAME"
    assert os.listdir(folder) == ["a.jpg"]
    (folder / "a.jpg").unlink()
    (folder / ".config.yaml.1-ab.tmp").touch()  # killed while it wrote the first file
    (folder / "lock").touch()
    with Run.open(Config(), "./somewhere/photos", SCRIPT, accelerator) as run:
        assert run.folder == folder and not run.resumed


def test_a_folder_that_cannot_be_made(accelerator):
    Path("runs").touch()
    assert refusal(Config(), "a", SCRIPT, accelerator).startswith("cannot make the run folder runs/a: ")
    Path("b/lock").mkdir(parents=True)  # this cannot be opened for writing, not even by root
    assert refusal(Config(), "./b", SCRIPT, accelerator).startswith("cannot write in b: ")


def test_damaged_record(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    Path("runs/a/run.json").write_text("{")
    assert "runs/a/run.json is damaged" in refusal(Config(), "a", SCRIPT, accelerator)


# ---- two ranks ----

TWO_RANKS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipelines.errors import UserError
from train.config import Config
from train.run.environment import make_accelerator
from train.run.exits import guard
from train.run.facts import Facts
from train.run.folder import Run

def main(argv):
    accelerator = make_accelerator(Config())
    rank = accelerator.process_index
    with Run.open(Config(), "new", {SCRIPT!r}, accelerator) as run:
        assert (run.is_main, run.result()) == (rank == 0, None)
        run.note(Facts(precision="fp32"))
        accelerator.wait_for_everyone()
    with Run.open(Config(), "new", {SCRIPT!r}, accelerator) as run:
        assert run.resumed and run.facts == Facts(precision="fp32")
        run.finish({{"top1": 1}})
    accelerator.wait_for_everyone()
    assert Run.open(Config(), "new", {SCRIPT!r}, accelerator).result() == {{"top1": 1}}
    try:
        Run.open(Config(seed=1), "new", {SCRIPT!r}, accelerator)
    except UserError as error:
        Path(f"settings{{rank}}").write_text(str(error))
    try:
        Run.open(Config(), "held", {SCRIPT!r}, accelerator)
    except UserError as error:
        Path(f"held{{rank}}").write_text(str(error))
        accelerator.wait_for_everyone()
        raise

sys.exit(guard(main))
"""


def test_two_ranks_come_to_the_same_answer(accelerator):
    Path("two.py").write_text(TWO_RANKS)
    with Run.open(Config(), "held", SCRIPT, accelerator):
        done = finish(start_program(Path("two.py"), cwd=Path.cwd(), ranks=2))
    assert done.returncode == 1, done.stderr  # the launcher turns 2 into 1
    assert "AssertionError" not in done.stderr
    settings, held = ([Path(f"{name}{rank}").read_text() for rank in (0, 1)] for name in ("settings", "held"))
    assert settings[0] == settings[1] and "seed: 0 -> 1" in settings[0]
    assert held[0] == held[1] and f"run held is in use by process {os.getpid()}" in held[0]
    printed, _, report = done.stderr.partition("=" * 60)  # the launcher's, which repeats the line for each rank
    assert printed.count("error: run held is in use") == 1 and "error: run held is in use" in report
    assert "exitcode  : 2" in done.stderr
    assert len(record(Path("runs/new"))["sessions"]) == 2  # written by one rank alone


def test_a_full_disk_at_the_end_does_not_cover_the_first_error(accelerator):
    def full():
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"0")

    with pytest.raises(UserError, match="first"), Run.open(Config(), "a", SCRIPT, accelerator) as run:
        run._write_record = full
        raise UserError("first")


# ---- a start that trained nothing ----


def test_a_run_that_kept_nothing_begins_anew_with_other_settings(accelerator):
    with pytest.raises(UserError), Run.open(Config(), "a", "train/teacher.py", accelerator) as run:
        run.note(Facts(backend="ffcv", digests={"train": "d"}))
        (run.folder / "metrics.jsonl").touch()
        raise UserError("refused late")
    with Run.open(Config(seed=1, resume="never"), "a", SCRIPT, accelerator) as run:
        assert run.facts == Facts() and any("begins anew" in line for line in run.changes)
        assert load(Config, run.folder / "config.yaml").seed == 1 and record(run.folder)["script"] == SCRIPT
        assert "is in use by" in refusal(Config(seed=2), "a", SCRIPT, accelerator)
        (run.folder / "metrics.jsonl").write_text('{"step": 50}\n')
    assert "other settings" in refusal(Config(seed=2), "a", SCRIPT, accelerator)
    (run.folder / "not_finite.json").write_text("{}")  # those figures led nowhere
    with Run.open(Config(seed=2), "a", SCRIPT, accelerator):
        assert not (run.folder / "not_finite.json").exists()
        (run.folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert "other settings" in refusal(Config(seed=3), "a", SCRIPT, accelerator)


def test_killed_while_it_begins_anew_it_begins_anew_again(accelerator, monkeypatch):
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(UserError), Run.open(Config(), "a", SCRIPT, accelerator) as run:
        (run.folder / "metrics.jsonl").write_text('{"step": 50}\n')
        (run.folder / "not_finite.json").write_text("{}")
        raise UserError("the loss was not finite")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("train.run.folder.describe_environment", killed)
        Run.open(Config(seed=1), "a", SCRIPT, accelerator)
    with Run.open(Config(seed=2), "a", SCRIPT, accelerator):
        assert load(Config, run.folder / "config.yaml").seed == 2


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", "3", "null", "\udcff\0", '{"script": 3}', '{"script": "train/distill.py", "status": "running"}'),
        '{"script": "train/distill.py", "status": "running", "facts": {}, "sessions": [3]}',
        '{"script": "train/distill.py", "status": "running", "facts": [], "sessions": []}',
        '{"script": "train/distill.py", "status": "running", "facts": {}, "sessions": [{"status": "running"}]}',
    ],
)
def test_a_record_of_another_form_is_damaged(accelerator, text):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
    Path("runs/a/run.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "runs/a/run.json is damaged" in refusal(Config(), "a", SCRIPT, accelerator)
    Path("runs/a/metrics.jsonl").write_text("{}\n")
    if '"facts": {}' not in text:
        with pytest.raises(UserError, match=r"run.json is damaged"):
            Facts.of_run(Path("runs/a"))
