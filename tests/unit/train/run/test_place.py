"""Names of runs: the folder of each name, the default name, and runs of earlier versions."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from train.run.place import note_on_place, run_folder, run_name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(folder: str, method: str = "dive") -> None:
    Path(folder).mkdir(parents=True)
    Path(folder, "config.yaml").write_text(f"distill:\n  method: {method}\n")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a", "runs/a"),
        ("a/b", "runs/a/b"),
        ("runs/a", "runs/a"),
        ("./a/b", "a/b"),
        ("../a", "../a"),
        ("/scratch/a", "/scratch/a"),
        ("~/a", str(Path("~/a").expanduser())),
    ],
)
def test_names_and_paths(name: str, folder: str) -> None:
    assert run_folder(name) == Path(folder)
    assert note_on_place(name, run_folder(name)) is None


def test_a_run_that_lies_beside_the_working_directory_is_found_and_said() -> None:
    """The place where earlier versions put names with a slash."""
    make_run("a/b")
    assert run_folder("a/b") == Path("a/b")
    note = note_on_place("a/b", run_folder("a/b"))
    assert note is not None and "found in a/b" in note and "run=./a/b" in note
    make_run("runs/a/b")
    assert run_folder("a/b") == Path("runs/a/b") and note_on_place("a/b", run_folder("a/b")) is None


def test_any_other_folder_of_that_name_is_not_taken_for_a_run() -> None:
    Path("data/mine").mkdir(parents=True)
    assert run_folder("data/mine") == Path("runs/data/mine")


def test_a_file_of_weights_in_an_export_is_found() -> None:
    Path("exports/t").mkdir(parents=True)
    Path("exports/t/model.safetensors").touch()
    assert run_folder("exports/t/model.safetensors") == Path("exports/t/model.safetensors")


def test_three_methods_of_one_configuration_have_three_names() -> None:
    names = {run_name(None, Path("configs/mine.yaml"), 0, method) for method in ("ce", "bsce", "dive")}
    assert names == {"mine-ce-s0", "mine-bsce-s0", "mine-dive-s0"}
    assert run_name(None, Path("configs/dive_if100.yaml"), 3, "dive") == "dive_if100-s3"
    assert run_name(None, Path("configs/dive_if100.yaml"), 3, "kd") == "dive_if100-kd-s3"


def test_a_run_under_the_name_of_earlier_versions_keeps_it() -> None:
    make_run("runs/mine-s0", "bsce")
    assert run_name(None, Path("mine.yaml"), 0, "bsce") == "mine-s0"
    assert run_name(None, Path("mine.yaml"), 0, "dive") == "mine-dive-s0"


def test_names_that_are_none() -> None:
    assert run_name("007", Path("x.yaml"), 3, "ce") == "007"
    assert run_name("./a/", Path("x.yaml"), 3, "ce") == "./a/"  # as a shell completes it
    for wrong in (".", "..", " ", "a/..", "./a/.", "/"):
        with pytest.raises(UserError, match="a run needs a name"):
            run_name(wrong, Path("x.yaml"), 0, "ce")
