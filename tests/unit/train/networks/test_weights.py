"""Finished networks: from a run, an export folder or a file of weights; the same network from each of them, or a refusal."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models import ModelSpec, build_model
from pipelines import class_names
from pipelines.errors import UserError
from train.networks.final import save_final
from train.networks.info import ModelInfo
from train.networks.initial import initialise
from train.networks.weights import Pretrained, read_file, read_run, read_state, weights_hash

FIXTURES = Path(__file__).parents[3] / "fixtures"
NAMES = ["ant", "bee", "cat"]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_model("resnet20", len(NAMES))


def classes_in(folder: Path, names: list[str] = NAMES) -> str:
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    return str(folder / "classes.txt")


def read(file: Path, architecture: str = "resnet20", names: list[str] = NAMES) -> Pretrained:
    return read_file(str(file), architecture, classes_in(file.parent, names), MEAN, STD, 16)


# ---- the hash that names weights ----


def some_state() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=rng),
        "bn.running_mean": torch.randn(4, generator=rng),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(6, generator=rng).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


def test_weights_hash_is_that_of_the_values() -> None:
    """It does not depend on their order, layout, device of origin, or whether they are trained."""
    state = some_state()
    expected = weights_hash(state)
    assert len(expected) == 64
    assert weights_hash(dict(reversed(state.items()))) == expected
    conv = state["conv.weight"]
    for other in (
        conv.to(memory_format=torch.channels_last),
        torch.nn.Parameter(conv.clone()),
        conv.repeat_interleave(2, dim=0)[::2],
    ):
        assert weights_hash(state | {"conv.weight": other}) == expected
    assert weights_hash(some_state()) == expected


def test_weights_hash_notices_every_change() -> None:
    state = some_state()
    bit = state["conv.weight"].clone()
    bit.view(torch.int32)[3, 2, 1, 0] ^= 1
    renamed = {name.replace("bn", "norm"): tensor for name, tensor in state.items()}
    swapped = state | {"conv.weight": state["conv.weight"].flip(0)}
    changes = {
        "a bit": state | {"conv.weight": bit},
        "a size": state | {"empty": torch.zeros(0, 4)},
        "a name": renamed,
        "a dtype": state | {"half": state["half"].half()},
        "a dtype of equal bytes": state | {"half": state["half"].view(torch.int16)},
        "a shape": state | {"conv.weight": state["conv.weight"].reshape(4, 27)},
        "an order of rows": swapped,
        "a counter": state | {"bn.num_batches_tracked": torch.tensor(8)},
        "a tensor less": {name: tensor for name, tensor in state.items() if name != "empty"},
    }
    hashes = {name: weights_hash(changed) for name, changed in changes.items()}
    assert len({weights_hash(state), *hashes.values()}) == len(changes) + 1


# ---- runs and exports ----


def save_run(folder: Path, network: torch.nn.Module) -> Path:
    info = ModelInfo(architecture="resnet20", class_names=NAMES, mean=MEAN, std=STD, input_size=16)
    folder.mkdir(parents=True)
    save_final(folder, network.state_dict(), info)
    return folder


def test_a_run_and_its_export(network: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, by folder, by file, and from just the two files in any folder."""
    run = save_run(tmp_path / "runs" / "best", network)
    export = tmp_path / "export"
    export.mkdir()
    for name in ("model.safetensors", "model.json"):
        shutil.copy(run / name, export)
    monkeypatch.chdir(tmp_path)
    found = [read_run(given) for given in ("best", str(run), f"{run}/", f"{run}/model.safetensors", "./export")]
    assert [one.name for one in found] == ["best", "best", "best", "best", "export"]
    expected = weights_hash(network.state_dict())
    for one in found:
        assert weights_hash(one.network.state_dict()) == expected and one.notes == []
        assert one[3:8] == (ModelSpec("resnet20", 3), NAMES, MEAN, STD, 16)


def test_weights_that_are_not_the_runs_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    run = save_run(tmp_path / "t", network)
    meta = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(meta | {"architecture": "resnet32"}))
    with pytest.raises(UserError, match=r"does not fit resnet32 with 3 classes: missing layer1\.3\..* and \d+ more"):
        read_run(str(run))


def test_reading_a_network_moves_no_random_numbers(network: torch.nn.Module, tmp_path: Path) -> None:
    """A student with dropout is the same whether its teacher is run online or read from a cache."""
    run = save_run(tmp_path / "t", network)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    read_run(str(run))
    assert torch.equal(torch.rand(3), expected)


# ---- files ----


def nested(state: dict, entry: str) -> dict:
    return {"epoch": 90, "arch": "resnet20", entry: state, "best": 71.2}


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda state: state, []),
        (lambda state: nested(state, "state_dict"), ["took 'state_dict' of arch, best, epoch, state_dict"]),
        (lambda state: nested(state, "model"), ["took 'model' of "]),
        (lambda state: {f"module.{k}": v for k, v in state.items()}, ["every name began with 'module.'"]),
        (
            lambda state: nested({f"module._orig_mod.{k}": v for k, v in state.items()}, "state_dict"),
            ["took 'state_dict'", "began with 'module.'", "began with '_orig_mod.'"],
        ),
        (lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, []),
        (lambda state: {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in state.items() if v.ndim}, []),
    ],
)
def test_files_of_weights(network: torch.nn.Module, tmp_path: Path, wrap, notes: list[str]) -> None:
    """In the forms that training scripts save; every adaptation is reported."""
    torch.save(wrap(dict(network.state_dict())), tmp_path / "a.pth")
    found = read(tmp_path / "a.pth")
    assert (found.name, found.class_names, found.mean, found.input_size) == ("a", NAMES, MEAN, 16)
    assert weights_hash(found.network.state_dict()) == weights_hash(network.state_dict())
    assert len(found.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, found.notes, strict=True))


def test_the_old_format_of_torch(network: torch.nn.Module, tmp_path: Path) -> None:
    """The format of torchvision's first weights."""
    torch.save(network.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert weights_hash(read(tmp_path / "a.pth").network.state_dict()) == weights_hash(network.state_dict())


def test_safetensors_and_half_precision(network: torch.nn.Module, tmp_path: Path) -> None:
    """Half precision is widened: the hash is that of the network as used."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert weights_hash(read(tmp_path / "a.safetensors").network.state_dict()) == weights_hash(state)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(half, tmp_path / "half.pth")
    widened = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in half.items()}
    assert weights_hash(read(tmp_path / "half.pth").network.state_dict()) == weights_hash(widened)


def test_torchvisions_own_names_load(tmp_path: Path) -> None:
    shapes = json.loads((FIXTURES / "torchvision_resnet18.json").read_text())
    assert isinstance(shapes, dict)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {name: tensor.abs() for name, tensor in state.items() if name.endswith("running_var")}
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    names = [f"n{i:08d}" for i in range(1000)]
    found = read(tmp_path / "resnet18-f37072fd.pth", "resnet18", names)
    loaded = found.network.state_dict()
    assert set(shapes) <= set(loaded) and torch.equal(loaded["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize(
    ("change", "architecture", "names", "words"),
    [
        (lambda s: s, "resnet20", [*NAMES, "dog"], r"other shape fc.weight \[3, 64\] there, \[4, 64\] here, fc.bias"),
        (lambda s: s, "resnet32", NAMES, r"missing layer1\.3\.conv1\.weight, .* and \d+ more"),
        (lambda s: s | {"head.weight": torch.zeros(2)}, "resnet20", NAMES, "not in the network head.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, "resnet20", NAMES, "missing fc.bias"),
        (lambda s: {"net": dict(s), "epoch": 3}, "resnet20", NAMES, "'net' is a dict, not a tensor"),
        (lambda s: list(s.values()), "resnet20", NAMES, "holds a list, not tensors by name"),
        (lambda s: s, "resnet21", NAMES, "distill.teacher_arch: no model is named 'resnet21'.*nearest: resnet"),
    ],
)
def test_what_does_not_fit_is_refused(
    network: torch.nn.Module, tmp_path: Path, change, architecture: str, names: list[str], words: str
) -> None:
    torch.save(change(dict(network.state_dict())), tmp_path / "a.pth")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "a.pth", architecture, names)


def test_no_file_is_read_in_a_way_that_runs_code(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "args": Path("x")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds more than tensors, and reading that could run code"):
        read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_and_missing_files(network: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(UserError, match="there is no such file"):
        read(path)
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        safetensors.torch.save_file(dict(network.state_dict()), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for data in (whole[: len(whole) // 2], b"", b"text\n" * 40, *(rng.bytes(size) for size in range(1, 300, 13))):
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def zip_of_a_text() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("a.txt", "b")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a git-LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>404</html>", "an HTML or XML page: the download failed"),
        (b"\n  <html>404</html>", "an HTML or XML page"),
        (b'{"message": "Not Found"}', "text in JSON"),
        (b"\x1f\x8b\x08" + bytes(40), "a gzip archive; unpack it"),
        (bytes(257) + b"ustar\0" + bytes(300), "a tar archive; unpack it"),
        (b"\x93NUMPY\x01\x00", "a numpy array"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"", "is empty"),
        (zip_of_a_text(), "no file of weights|or a zip archive"),
        (bytes(range(256)), "no file of weights"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, suffix: str, data: bytes, words: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        read_state(str(path), "model.init")
    assert "run code" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipe_and_files_under_the_other_suffix_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    torch.save(network.state_dict(), tmp_path / "a.safetensors")
    safetensors.torch.save_file(dict(network.state_dict()), tmp_path / "b.pth")
    for name, words in (("pipe.pth", "no regular file"), ("a.safetensors", "to .pth"), ("b.pth", "to .safetensors")):
        with pytest.raises(UserError, match=words):
            read_state(str(tmp_path / name), "model.init")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.to(torch.int8), "fc.weight is int8"),
        (lambda weight: weight > 0, "fc.weight is bool"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "fc.weight is float8_e4m3fn"),
        (lambda weight: weight.to(torch.complex64), "fc.weight is complex64"),
        (lambda weight: weight.to_sparse(), r"fc.weight is a sparse tensor"),
        (lambda weight: weight.to("meta"), "fc.weight is a tensor without values"),
    ],
)
def test_only_floats_are_weights(network: torch.nn.Module, tmp_path: Path, change, words: str) -> None:
    """Converting them silently would give a network of other weights."""
    state = dict(network.state_dict())
    torch.save(state | {"fc.weight": change(state["fc.weight"])}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "a.pth")
    with pytest.raises(UserError, match=words):
        initialise(network, str(tmp_path / "a.pth"), ModelSpec("resnet20", 3), NAMES)


@pytest.mark.parametrize("key", [0, ("a",), None, b"a"])
def test_names_of_tensors_are_text(tmp_path: Path, key: object) -> None:
    torch.save({key: torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="is no name of a tensor|damaged|run code"):
        read_state(str(tmp_path / "a.pth"), "model.init")


@pytest.mark.parametrize(
    "changed",
    [
        *({}, [], 3, None, "x"),
        *({"class_names": 3}, {"class_names": [1, 2, 3]}, {"architecture": 5}, {"mean": "0.5"}, {"std": [None]}),
        *({"input_size": "16"}, {"training": []}, {"train_counts": ["1"]}, {"sha256": 4}),
        *({"mean": [120, 118, 104]}, {"std": [0.0, 1.0, 1.0]}),
    ],
)
def test_a_damaged_description_is_one_line(network: torch.nn.Module, tmp_path: Path, changed: object) -> None:
    path = save_run(tmp_path / "t", network) / "model.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | changed if isinstance(changed, dict) and changed else changed))
    with pytest.raises(UserError, match=r"model.json is damaged|model.safetensors is damaged"):
        read_run(str(tmp_path / "t"))


def test_messages_name_the_setting_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    for source, words in (
        (tmp_path / "a.safetensors", "model.init=.*a.safetensors is damaged, or no file of weights"),
        (tmp_path / "b.safetensors", "model.init=.*b.safetensors: there is no such file"),
        (tmp_path / "c", "model.init=.*c: no run 'c'"),
    ):
        with pytest.raises(UserError, match=words):
            read_state(str(source), "model.init")
    with pytest.raises(UserError, match="distill.teacher=.*c: no run 'c'"):
        read_run(str(tmp_path / "c"))
    with pytest.raises(UserError, match="distill.teacher=.*a.safetensors is damaged"):
        read(tmp_path / "a.safetensors")


def test_class_lists(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"classes.txt, line 2: a class name expected"):
        read(tmp_path / "a.pth", names=["ant", "", "cat"])
    with pytest.raises(UserError, match=r"distill.teacher_classes=.*nowhere: cannot be read"):
        read_file(str(tmp_path / "a.pth"), "resnet20", str(tmp_path / "nowhere"), MEAN, STD, 16)


def test_a_file_without_its_network_is_told_what_to_add(network: torch.nn.Module, tmp_path: Path) -> None:
    for path in (tmp_path / "a.pth", tmp_path / "model.safetensors"):
        path.write_bytes(b"")
        with pytest.raises(UserError, match="distill.teacher_arch=NAME distill.teacher_classes=FILE"):
            read_run(str(path))


def test_an_exports_class_list_names_a_teachers_classes(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a.pth")
    names = [" ant", "caf\udce9", "cat "]
    (tmp_path / "class_names.txt").write_bytes(b"\xef\xbb\xbf" + class_names.text(names))
    teacher = read_file(str(tmp_path / "a.pth"), "resnet20", str(tmp_path / "class_names.txt"), MEAN, STD, 16)
    assert teacher.class_names == names
