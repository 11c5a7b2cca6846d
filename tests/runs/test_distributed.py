"""Two real processes against one at the same global batch: the same samples, views and gradients, exact evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launch import ROOT, finish, run, start_program, tiny_config

from models import ModelSpec, load_network
from models.router import experts_told
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from train import assembly
from train.config import Config
from train.evaluation.predictions import read
from train.settings import load

# Weights that do not move. Where batches are cut otherwise, gradients differ by rounding; weights that moved by them would differ
# more in each step, until somewhere a ReLU has its input on the other side of zero, and a gradient differs by percents.
STILL = "optim.lr=1e-12"


def walk(folder: Path, name: str, ranks: int, *arguments: object) -> dict[str, np.ndarray]:
    """The output of tests/helpers/two_ranks.py with this number of ranks."""
    script = ROOT / "tests/helpers/two_ranks.py"
    done = finish(start_program(script, folder / f"{name}.npz", *arguments, cwd=folder, ranks=ranks))
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / f"{name}.npz"))


def test_two_processes_see_and_compute_what_one_does(tiny: Path, tmp_path: Path) -> None:
    """20 steps in almost three epochs, with two accumulation steps on one process; two ranks count 13 test images as 13."""
    test = Records(tiny / "test.beton")
    samples = [Sample(test.name(i), int(test.labels[i]), test.payload(i).reshape(8, 8, 3)) for i in range(13)]
    write_records(tmp_path / "thirteen.beton", samples, list(test.class_names), kind="test")
    config = tiny_config(tmp_path, tiny)
    # Without batch statistics a freshly drawn network has large logits: a small rate keeps them finite.
    given = [config, f"data.test={tmp_path}/thirteen.beton", "eval.batch=4", "optim.lr=1e-4"]
    one = walk(tmp_path, "one", 1, *given, "optim.accumulate=2")
    two = walk(tmp_path, "two", 2, *given)
    assert one["keys"].shape == (20, 16)
    np.testing.assert_array_equal(one["keys"], two["keys"])
    np.testing.assert_array_equal(one["views"], two["views"])
    assert [len(set(epoch)) for epoch in one["keys"][:14].reshape(2, -1)] == [7 * 16] * 2
    assert list(one["views"][:, 0]) == [0] * 7 + [1] * 7 + [2] * 6
    _require_equal_gradients(one, two)
    assert int(one["samples"]) == int(two["samples"]) == 13
    # Of the same weights: the same file, whoever of them saw which image, and the same figures to the last digit.
    files = [(tmp_path / f"{name}.predictions.npz").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1] and read(tmp_path / "one.predictions.npz").features is not None
    assert str(one["figures"]) == str(two["figures"]) and json.loads(str(one["figures"]))["samples"] == 13


def _require_equal_gradients(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    scale = np.abs(one["gradients"]).max(axis=1)
    difference = np.abs(one["gradients"] - two["gradients"]).max(axis=1) / scale
    assert difference.max() < 1e-5
    assert scale.min() > 1e-3  # there was something to compare


def test_experts_class_weights_and_mixtures_have_the_gradients_of_one_process(tiny: Path, tmp_path: Path) -> None:
    """Whole batches of 16 against quarters, on two ranks with two accumulation steps each: their weights have different sums.

    Re-weighted in every step, with two labels for most images; the diversity has temperatures from the second epoch on.
    """
    losses = ("distill.method=ldam", "distill.drw_from=0", "distill.drw_beta=0.99", "distill.diversity=-0.2")
    model = ("model.experts=2", "model.head=cosine", "distill.diversity_from=1", "eval.batch=64", STILL)
    given = [tiny_config(tmp_path, tiny), *losses, *model, "data.recipe.mix=mixup", "data.recipe.mix_share=0.8"]
    one, two = walk(tmp_path, "one", 1, *given), walk(tmp_path, "two", 2, *given, "optim.accumulate=2")
    _require_equal_gradients(one, two)


def _that_divides(folder: Path, tiny: Path) -> int:
    """A seed with whose routers, as drawn, the run `base` answers some of the test images with fewer experts than others."""
    test, (base, _) = Records(tiny / "test.beton"), load_network(folder / "runs/base")
    pixels = np.stack([test.payload(i).reshape(8, 8, 3) for i in range(len(test))])
    images = torch.tensor((pixels / 255 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)
    for seed in range(100):
        torch.manual_seed(seed)
        network = ModelSpec("resnet8", 5, experts=3, router=4).build().eval()
        network.load_state_dict(network.state_dict() | base.state_dict())
        with torch.no_grad(), experts_told(network):
            used = network(images).used
        if 1.05 < float(used.float().mean()) < 2.95:
            return seed
    raise AssertionError("of 100 seeds none divides the images")


def test_routers_have_the_gradients_of_one_process(tiny: Path, tmp_path: Path) -> None:
    """And their evaluation counts the experts that each image used once, whichever process saw it."""
    run("teacher", tiny_config(tmp_path, tiny), "run=base", "model.experts=3", "schedule.epochs=1", cwd=tmp_path)
    routers = ("model.experts=3", "model.router=4", "model.init=base", "data.sampling=class_balanced", STILL)
    given = [tiny_config(tmp_path, tiny, "router"), *routers, "eval.batch=5", f"seed={_that_divides(tmp_path, tiny)}"]
    one, two = walk(tmp_path, "one", 1, *given), walk(tmp_path, "two", 2, *given, "optim.accumulate=2")
    assert one["gradients"].shape == (20, 2 * (16 * 48 + 16) + 4 + 16 + 1)
    _require_equal_gradients(one, two)
    figures = json.loads(str(one["figures"]))
    assert str(one["figures"]) == str(two["figures"]) and 1 < figures["experts_used"] < 3


def test_a_batch_that_does_not_split_names_the_nearest(tiny: Path, tmp_path: Path) -> None:
    done = run("teacher", tiny_config(tmp_path, tiny), "optim.batch=15", cwd=tmp_path, ranks=2, check=False)
    assert done.returncode != 0
    assert "optim.batch=15 does not split into 2 processes" in done.stderr and "optim.batch=14 or 16" in done.stderr


def test_synchronised_batch_norm_needs_a_gpu(tiny: Path, tmp_path: Path) -> None:
    done = run("teacher", tiny_config(tmp_path, tiny), "model.sync_bn=true", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "model.sync_bn=true needs GPUs" in done.stderr


def test_synchronised_batch_norm_is_not_compiled(tiny: Path, tmp_path: Path) -> None:
    def note(processes: int, *given: str) -> str | None:
        return assembly._note_on_norms(load(Config, tiny_config(tmp_path, tiny), list(given)), processes)

    assert "cuts the compiled network at every norm" in str(note(2, "model.sync_bn=true", "compile=true"))
    assert note(1, "model.sync_bn=true", "compile=true") is None  # one process sends no messages
    assert note(2, "model.sync_bn=true") is None and note(2, "compile=true") is None


@pytest.mark.gpu
def test_batch_norm_is_synchronised_on_a_gpu(tiny: Path, tmp_path: Path) -> None:
    """With one process the layers are converted, and their names in the files are the usual ones."""
    done = run("teacher", tiny_config(tmp_path, tiny), "model.sync_bn=true", "run=r", cwd=tmp_path)
    assert done.returncode == 0
    run("evaluate", "r", cwd=tmp_path)
