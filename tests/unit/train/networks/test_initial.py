"""model.init: what is taken from a run, an export or a file, what is reported about the rest, when weights are read again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.launch import run, tiny_config

from models import ModelSpec, build_model
from pipelines.errors import UserError
from train.networks.final import save_final
from train.networks.info import ModelInfo
from train.networks.initial import initialise
from train.networks.weights import weights_hash

NAMES = ["ant", "bee", "cat"]


def drawn(seed: int, architecture: str = "resnet20", classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(architecture, classes)


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(network: torch.nn.Module, state: dict[str, torch.Tensor], names: set[str] | None = None) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[name], state[name]) for name in names or own)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of a resnet20 with three classes, and its content."""
    state = state_of(drawn(1))
    torch.save(state, tmp_path / "a.pth")
    return tmp_path / "a.pth", state


def test_all_of_a_file(source: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = source
    network = drawn(2)
    torch.manual_seed(5)
    done = initialise(network, str(path), ModelSpec("resnet20", 3), NAMES)
    assert equal(network, state) and done.weights == weights_hash(state)
    assert done.report == [f"model.init={path}: 97 of 97 tensors taken, weights {done.weights[:12]}"]
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)  # a training continues with the random numbers it would have had


def test_a_classifier_of_another_number_of_classes_stays_as_drawn(source: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = source
    network, fresh = drawn(2, classes=7), state_of(drawn(2, classes=7))
    report = initialise(network, str(path), ModelSpec("resnet20", 7), [str(i) for i in range(7)]).report
    head = {"fc.weight", "fc.bias"}
    assert equal(network, fresh, head) and equal(network, state, set(state) - head)
    assert report[0].endswith(f"95 of 97 tensors taken, weights {weights_hash(state)[:12]}")
    assert report[1:] == [
        "the classifier stays as drawn from the seed",
        "other shape: fc.weight [3, 64] there, [7, 64] here, fc.bias [3] there, [7] here",
    ]


@pytest.mark.parametrize("names", [NAMES, ["ant", "cat", "bee"]])
def test_a_classifier_of_other_classes_stays_as_drawn(tmp_path: Path, names: list[str]) -> None:
    """A run names its classes: the same number in another order does not match its outputs."""
    teacher = drawn(1)
    info = ModelInfo(architecture="resnet20", class_names=NAMES, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    save_final(tmp_path, teacher.state_dict(), info)
    network = drawn(2)
    report = initialise(network, str(tmp_path), ModelSpec("resnet20", 3), names).report
    same = names == NAMES
    assert equal(network, state_of(teacher if same else drawn(2)), {"fc.weight", "fc.bias"})
    assert equal(network, state_of(teacher), {"layer3.2.bn2.running_var", "conv1.weight"})
    assert ("of other classes: fc.weight, fc.bias" in report) is not same


@pytest.mark.parametrize("there, here", [("cosine", "linear"), ("linear", "cosine")])
def test_a_classifier_of_another_head_stays_as_drawn(tmp_path: Path, there: str, here: str) -> None:
    """A run names its head. Of a file it is not known: what is taken of the classifier, then, is not told as drawn."""
    torch.manual_seed(1)
    teacher, spec = ModelSpec("resnet20", 3, head=there).build(), ModelSpec("resnet20", 3, head=here)
    architecture = ModelSpec("resnet20", 3, head=there).architecture
    info = ModelInfo(architecture=architecture, class_names=NAMES, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    save_final(tmp_path, teacher.state_dict(), info)
    torch.manual_seed(2)
    network = spec.build()
    fresh = state_of(network)
    report = initialise(network, str(tmp_path), spec, NAMES).report
    assert equal(network, fresh, {name for name in fresh if name.startswith("fc.")})
    assert "the classifier stays as drawn from the seed" in report and f"of a {there} head: fc.weight" in report
    torch.save(teacher.state_dict(), tmp_path / "a.pth")
    report = initialise(network, str(tmp_path / "a.pth"), spec, NAMES).report
    assert equal(network, state_of(teacher), {"fc.weight"})
    assert "the classifier stays as drawn from the seed" not in report
    assert any(line.startswith("warning: a part of the classifier was taken") for line in report) is (here == "linear")


def test_what_fits_in_part_is_told(source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """A wrapper's names, too many and too few tensors, a deeper network."""
    _, state = source
    part = {f"module.{name}": tensor for name, tensor in state.items() if name != "bn1.bias"}
    torch.save({"epoch": 3, "state_dict": part | {"module.head.weight": torch.zeros(2)}}, tmp_path / "b.pth")
    network = drawn(2, "resnet32")
    report = initialise(network, str(tmp_path / "b.pth"), ModelSpec("resnet32", 3), NAMES).report
    assert report[0].endswith("b.pth: took 'state_dict' of epoch, state_dict")
    assert report[1].endswith("every name began with 'module.', which was left out")
    assert report[2].startswith("model.init=") and "96 of 157 tensors taken" in report[2]
    assert report[3] == "warning: 61 tensors besides the classifier stay as drawn from the seed"
    assert report[4].startswith("missing: bn1.bias, layer1.3.conv1.weight, ") and report[4].endswith(" and 53 more")
    assert report[5] == "not in the network: head.weight" and len(report) == 6
    assert equal(network, state, set(state) - {"bn1.bias"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {f"net.{k}": v for k, v in s.items()},
            "fits model.name=resnet20 in nothing: missing: conv1.weight, ",
        ),
        (lambda s: {k: v for k, v in s.items() if k.startswith("fc.")}, "in nothing but the classifier: missing: "),
        (lambda s: {k: v for k, v in s.items() if k.endswith("tracked")}, "in nothing: missing: "),
        (lambda s: {}, "in nothing: missing: "),
        (lambda s: [1], "model.init=.*a.pth holds a list"),
    ],
)
def test_weights_of_which_nothing_fits_are_refused(
    source: tuple[Path, dict[str, torch.Tensor]], change, words: str
) -> None:
    path, state = source
    torch.save(change(state), path)
    network = drawn(2)
    with pytest.raises(UserError, match=words):
        initialise(network, str(path), ModelSpec("resnet20", 3), NAMES)
    assert equal(network, state_of(drawn(2)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere.pth", "model.init=nowhere.pth: there is no such file; give a file of weights, .safetensors or .pth"),
        ("./nowhere.safetensors", "model.init=nowhere.safetensors: there is no such file"),
        ("nobody", "model.init=nobody: no run 'nobody': there is no folder runs/nobody"),
    ],
)
def test_a_source_that_is_not_there(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        initialise(drawn(2), given, ModelSpec("resnet20", 3), NAMES)


# ---- in a training ----


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory with the finished run `t`, and `s`, started from it."""
    folder = tmp_path_factory.mktemp("work")
    config = tiny_config(folder, tiny)
    run("teacher", config, "run=t", "schedule.epochs=1", cwd=folder)
    shutil.copytree(folder / "runs/t", folder / "kept")
    run("teacher", config, *SETTINGS, cwd=folder)
    return folder


SETTINGS = ["run=s", "schedule.epochs=2", "model.init=t", "seed=3"]


def first_loss(folder: Path, name: str) -> float:
    return json.loads((folder / "runs" / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def test_a_run_starts_from_the_weights_and_says_so(work: Path) -> None:
    done = run("teacher", work / "bsce.yaml", *SETTINGS[1:], "run=dry", "--dry-run", cwd=work)
    assert "model.init=t: 37 of 37 tensors taken, weights " in done.stdout
    run("teacher", work / "bsce.yaml", "run=fresh", "schedule.epochs=2", "seed=3", cwd=work)
    assert first_loss(work, "s") < first_loss(work, "fresh") - 0.1
    told = json.loads((work / "runs/s/model.json").read_text())["init"]
    facts = json.loads((work / "runs/s/run.json").read_text())["facts"]
    teacher = json.loads((work / "runs/t/model.json").read_text())
    assert told == {"source": "t", "weights": facts["init"]} and len(facts["init"]) == 64
    assert teacher["init"] is None and teacher["teachers"] == []


def test_a_resumed_run_wants_the_same_weights_until_it_has_a_checkpoint(work: Path) -> None:
    expected = (work / "runs/s/model.safetensors").read_bytes()
    run_s, run_t = work / "runs/s", work / "runs/t"
    for name in ("result.json", "model.json", "model.safetensors"):
        (run_s / name).unlink()
    shutil.rmtree(run_s / "checkpoints/step_00000014")
    shutil.rmtree(run_t)
    done = run("teacher", work / "bsce.yaml", *SETTINGS, cwd=work)  # from its checkpoint of step 7
    assert "resumed after step 7" in done.stdout and "tensors taken" not in done.stdout
    assert (run_s / "model.safetensors").read_bytes() == expected

    (run_s / "result.json").unlink()
    shutil.rmtree(run_s / "checkpoints")
    gone = run("teacher", work / "bsce.yaml", *SETTINGS, cwd=work, check=False)
    assert gone.returncode == 2 and "model.init=t: no run 't'" in gone.stderr
    shutil.copytree(work / "kept", run_t)
    state = state_of(drawn(9, classes=5))
    meta = json.loads((run_t / "model.json").read_text())
    save_final(run_t, state, ModelInfo.of(meta))
    other = run("teacher", work / "bsce.yaml", *SETTINGS, cwd=work, check=False)
    assert other.returncode == 2 and "was started from weights with the hash" in other.stderr
    shutil.rmtree(run_t)
    shutil.copytree(work / "kept", run_t)
    run("teacher", work / "bsce.yaml", *SETTINGS, cwd=work)
    assert (run_s / "model.safetensors").read_bytes() == expected
