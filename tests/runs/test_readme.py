"""The recipes of README.md run as written: on small made-up data laid out as it says, with configs/debug.txt appended.

Every line of every bash block is either run or named below. `accelerate launch` is replaced by this process, except where
several processes are the point: there the real one starts two processes on this machine.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cifar_archives import COARSE, FORMS, member, pack
from helpers.launch import ROOT
from helpers.ports import free_port
from helpers.recipes import DEBUG, SMALL, launch, run_here, words_of, write_jpegs

from models.registry import build_model
from pipelines.records.reader import Records
from train.config import Config
from train.evaluate import EvaluateConfig
from train.settings import load

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LARGE = [
    *DEBUG,
    f"data.recipe.size={SMALL}",
    "model.name=resnet10",
]  # tests/runs/test_configs.py runs the real networks
CLASSES, TRAIN, EVALUATION = 3, 12, 5  # sizes of the ImageNet-like sets


def sections() -> dict[str, str]:
    """{heading: text below it}"""
    parts = re.split(r"^## (.*)\n", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def block(heading: str, number: int = 0) -> list[str]:
    """The commands of a section's bash block."""
    return BLOCK.findall(sections()[heading])[number].replace("\\\n", "").splitlines()


TESTED = {  # heading: number of bash blocks
    "Try it": 1,
    "CIFAR-100-LT": 1,
    "ImageNet-LT and iNaturalist 2018": 2,
    "Your own images": 1,
    "A teacher of your own": 1,
    "Several GPUs and several machines": 2,
    "Backends and speed": 1,
}


def test_every_command_of_the_readme_is_accounted_for() -> None:
    """A new recipe needs a test here; everything in the text that looks like a setting is one."""
    found = {heading: len(BLOCK.findall(text)) for heading, text in sections().items()}
    assert {heading: count for heading, count in found.items() if count} == TESTED
    assert README.count("```") == 2 * sum(TESTED.values())
    for script in re.findall(r"bash (\S+\.sh)", README):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_settings_in_the_text_exist() -> None:
    """Settings that stand together between two backticks also work together."""
    given = 0
    for span in re.findall(r"`([^`\n]+)`", BLOCK.sub("", README)):
        settings = [word for word in shlex.split(span) if re.fullmatch(r"[a-z_.]+=\S+", word) and word != "a.b=c"]
        load(
            EvaluateConfig if "train/evaluate.py" in span else Config,
            ROOT / "configs/imagenet_lt/dive_x50.yaml",
            settings,
        )
        given += len(settings)
    assert given > 10


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory laid out like a clone; emptied afterwards, because pytest keeps the last session."""
    for name in ("configs", "tools", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield tmp_path
    shutil.rmtree(tmp_path)


def run_block(lines: list[str], place: Path, extra: list[str]) -> list[str]:
    """Run all lines, with settings appended where a configuration is trained; returns what each printed."""
    trains = ("train/teacher.py", "train/cache_logits.py", "train/distill.py")
    return [run_here(line, place, extra if words_of(line)[1] in trains else []) for line in lines]


def result(place: Path, run: str) -> dict:
    return json.loads((place / "runs" / run / "result.json").read_text())


def write_list(place: Path, root: str, name: str, count: int) -> None:
    """Write `count` JPEGs below `root`, and the list that names them as the published lists do."""
    paths = [f"{Path(name).stem}/n{i % CLASSES:08}/{i}.JPEG" for i in range(count)]
    write_jpegs(place / root, paths)
    (place / name).write_text("".join(f"{path} {i % CLASSES}\n" for i, path in enumerate(paths)))


def test_cifar100_lt(place: Path) -> None:
    """Class 0 has 100 images, the others 2: the draw wants 100 x 0.01 ** (label / 99) of each."""
    train = member(298, 100, 1) | {"fine_labels": [0] * 98 + [*range(100), *range(100)]}
    meta = {"fine_label_names": [f"kind_{label}" for label in range(100)], "coarse_label_names": COARSE}
    files = {"meta": meta, "train": train, "test": member(100, 100, 2)}
    archive = {name: FORMS["python 2"](content) for name, content in files.items()}
    pack(place / "cifar-100-python.tar.gz", archive, "w:gz")
    *_, cached, evaluated, reported = run_block(block("CIFAR-100-LT"), place, DEBUG)
    assert "the pixels are those the teacher saw" in cached and "test.top1" in evaluated
    assert "report.html: " in reported and "without shifted" in reported  # which needs two test images of each class
    page = (place / "report.html").read_text()
    assert "Settings that differ" in page and "virtual examples, T = 6" in page
    assert result(place, "dive_if100-s0")["test"]["samples"] == 100
    assert np.load(place / "predictions.npz")["logits"].shape == (100, 100)
    # What the text says about other students.
    (matched,) = re.findall(r"`([^`]+ run=matched [^`]+)`", sections()["CIFAR-100-LT"])
    assert "`distill.teacher=bsce_if100-s0` in place of `cache.paths`" in sections()["CIFAR-100-LT"]
    student = block("CIFAR-100-LT")[3].removesuffix(" cache.paths=[caches]")
    for settings in (matched, "distill.teacher=bsce_if100-s0 run=online"):
        run_block([f"{student} {settings}"], place, DEBUG)
    assert result(place, "matched")["tau"] == 6 and result(place, "online")["tau"] == 3


@pytest.mark.parametrize(
    ("number", "root", "lists", "student", "split"),
    [
        (0, "IMAGENET", ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"), "dive_x50-s0", "test"),
        (1, "INATURALIST", ("iNaturalist18_train.txt", "iNaturalist18_val.txt"), "dive_r50_90-s0", "val"),
    ],
)
def test_imagenet_lt_and_inaturalist(
    place: Path, number: int, root: str, lists: tuple[str, str], student: str, split: str
) -> None:
    for name, count in zip(lists, (TRAIN, EVALUATION), strict=True):
        write_list(place, root, name, count)
    run_block(block("ImageNet-LT and iNaturalist 2018", number), place, LARGE)
    assert result(place, student)[split]["samples"] == EVALUATION and result(place, student)["steps"] == 2


def test_your_own_images(place: Path) -> None:
    write_jpegs(place, [f"MY_IMAGES/{kind}/{i}.jpg" for kind in ("ant", "bee") for i in range(10)])
    torch.save(build_model("resnet10", 1000).state_dict(), place / "WEIGHTS.pth")
    write_jpegs(place, [f"NEW_IMAGES/{i}.jpg" for i in range(3)])
    _, info, trained, best, _ = run_block(block("Your own images"), place, LARGE)
    assert "ant" in info and "the classifier stays as drawn" in trained and "of its best evaluation" in best
    assert len((place / "predictions.csv").read_text().splitlines()) == 1 + 3
    found = result(place, "mine")
    assert (found["val"]["samples"], found["test"]["samples"]) == (2, 4) and "test_ema" in found
    assert len(Records(place / "data/mine/train.beton")) == 14


def imagenet_records(place: Path) -> Records:
    """Make the files that the conversion of the ImageNet-LT recipe leaves."""
    for name, count in (("ImageNet_LT_train.txt", TRAIN), ("ImageNet_LT_test.txt", EVALUATION)):
        write_list(place, "IMAGENET", name, count)
    run_block(block("ImageNet-LT and iNaturalist 2018")[:2], place, [])
    return Records(place / "data/imagenet_lt/train.beton")


def test_a_teacher_of_your_own(place: Path) -> None:
    names = imagenet_records(place).class_names
    (place / "CLASSES.txt").write_text("\n".join(names))
    torch.manual_seed(0)
    torch.save(build_model("resnext50_32x4d", len(names)).state_dict(), place / "WEIGHTS.pth")
    _, trained = run_block(block("A teacher of your own"), place, LARGE)
    assert "1 views of resnext50_32x4d" in trained and "the pixels are those the teacher saw" in trained
    assert result(place, "dive_x50-s0")["steps"] == 2


def test_a_loop_of_your_own() -> None:
    """The code is in docs/logit_cache.md, and tests/runs/test_docs.py runs it."""
    assert "docs/logit_cache.md" in sections()["A training loop of your own"]
    assert "```python" in (ROOT / "docs/logit_cache.md").read_text()


def here(line: str, port: str = "") -> str:
    """A command for several GPUs, changed to two processes on this machine."""
    line = re.sub(r"--num_processes \d+", "--num_processes 2", line)
    address = rf"--main_process_ip 127.0.0.1 --main_process_port {port}"
    return re.sub(r"--main_process_ip \S+ --main_process_port \d+", address, line)


@pytest.mark.slow
def test_several_gpus_and_machines(place: Path) -> None:
    """A student on two processes of one machine, and one on two machines with a process each: the same losses."""
    imagenet_records(place)
    teacher = block("ImageNet-LT and iNaturalist 2018")[2]
    run_block([teacher], place, LARGE)
    one_machine, machines = (block("Several GPUs and several machines", number) for number in (0, 1))
    for line, as_typed in zip(one_machine, (True, False), strict=True):
        process = launch(here(line), place, LARGE, as_typed)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    port = free_port()
    started = [launch(here(line, port), place, [*LARGE, "run=two-machines"]) for line in machines]
    ended = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    losses = []
    for name in ("dive_x50-s0", "two-machines"):
        session = json.loads((place / "runs" / name / "run.json").read_text())["sessions"][-1]
        assert session["environment"]["world_size"] == 2 and result(place, name)["test"]["samples"] == EVALUATION
        lines = map(json.loads, (place / "runs" / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0]


def test_the_bench(place: Path) -> None:
    imagenet_records(place)
    (line,) = block("Backends and speed")
    # --only b: tests/unit/tools/test_bench.py tests the rest
    short = ["--only", "b", "--images", "8", "--rounds", "1", "--seconds", "0.01"]
    assert "training step" in run_here(line, place, [*LARGE, *short])
