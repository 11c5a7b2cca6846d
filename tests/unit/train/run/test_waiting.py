"""How OpenMP's threads wait: the rule, and that it comes before torch."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from train.run import waiting
from train.run.waiting import choose_waiting, cores_in_use

ROOT = Path(__file__).resolve().parents[4]
ENTRY_SCRIPTS = ("distill", "teacher", "router", "cache_logits", "evaluate", "predict")


@pytest.mark.parametrize(
    ("others", "given", "expected"),
    [
        (0.0, {}, {"GOMP_SPINCOUNT": "1000"}),
        (1.9, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (1.9, {"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}),
        (1.9, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}),
        (1.9, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (0.0, {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_the_rule(others: float, given: dict, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "cores_in_use", lambda: others)
    environment = dict(given)
    choose_waiting(environment)
    assert environment == expected


@pytest.mark.parametrize(("priority", "expected"), [(0, 1.2), (19, 1.6)])
def test_processes_that_give_way_do_not_count(priority: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        psutil, "cpu_times_percent", lambda interval: SimpleNamespace(user=25.0, nice=10.0, system=5.0, idle=60.0)
    )
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(waiting.os, "getpriority", lambda *_: priority)
    assert cores_in_use() == pytest.approx(expected)


def test_a_busy_process_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert max(cores_in_use(0.3) for _ in range(5)) > 0
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.parametrize("name", ENTRY_SCRIPTS)
def test_a_program_chooses_before_it_imports_torch(name: str) -> None:
    """Only as a program: a test that imports it keeps its environment."""
    body = ast.parse((ROOT / "train" / f"{name}.py").read_text()).body
    chosen = next(place for place, line in enumerate(body) if "choose_waiting()" in ast.unparse(line))
    assert ast.unparse(body[chosen]).startswith("if __name__ == '__main__':")
    imports = [
        (place, ast.unparse(line)) for place, line in enumerate(body) if isinstance(line, ast.ImportFrom | ast.Import)
    ]
    before = {line for place, line in imports if place < chosen}
    assert {line.split()[1].split(".")[0] for line in before} <= {"sys", "pathlib", "dataclasses", "typing", "train"}
    assert [line for line in before if "train" in line] == ["from train.run.waiting import choose_waiting"]
    program = "import sys, train.run.waiting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
