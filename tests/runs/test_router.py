"""Routers through the entry scripts: trained, evaluated, exported, asked as a teacher; and what they learn."""

import json
from pathlib import Path

import pytest
import torch
from helpers.launch import losses, refused, result, run, tiny_config
from helpers.made_experts import CLASSES, MadeExperts, made_images
from safetensors.torch import load_file

from models import ModelSpec, load_network, outputs_of, set_training
from models.outputs import freeze_all_but
from models.router import experts_told
from pipelines.batch import Batch
from pipelines.errors import UserError
from train.config import Config
from train.objectives.methods import DistillConfig
from train.objectives.objective import Objective
from train.optim import OptimConfig, build_optimizer
from train.schedule import Schedule, ScheduleConfig
from train.settings import load

EXPERTS = ("model.experts=3", "model.head=cosine")
ROUTED = (*EXPERTS, "model.router=4")
SHORT = ("optim.lr=0.01", "schedule.epochs=2", "data.sampling=class_balanced")


@pytest.fixture(scope="module")
def work(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the run `base`, three experts, and the run `routed`, the same with trained routers."""
    folder = tmp_path_factory.mktemp("router")
    run("teacher", tiny_config(folder, tiny), "run=base", *EXPERTS, "schedule.epochs=2", cwd=folder)
    router = tiny_config(folder, tiny, "router")
    run("router", router, "run=routed", *ROUTED, "model.init=base", *SHORT, "ema.decay=0.5", cwd=folder)
    return folder


def test_all_but_the_routers_stays_to_the_bit(work: Path) -> None:
    """Weights, running statistics and counters of batch norm, also in the moving average."""
    base = load_file(work / "runs/base/model.safetensors")
    torch.manual_seed(0)
    drawn = ModelSpec("resnet8", 5, "cosine", experts=3, router=4).build().state_dict()
    for name in ("model", "model_ema"):
        state = load_file(work / f"runs/routed/{name}.safetensors")
        assert {key for key in state if not key.startswith("router.")} == set(base)
        assert all(torch.equal(state[key], tensor) for key, tensor in base.items()), name
        trained = [key for key in state if key.startswith("router.") and not torch.equal(state[key], drawn[key])]
        assert "router.unit.weight" in trained and "router.codes.1.weight" in trained
    (checkpoint,) = sorted((work / "runs/routed/checkpoints").glob("step_*"))[-1:]
    assert all(name.startswith("router.") for name in load_file(checkpoint / "optimizer.safetensors"))


def test_the_run_holds_the_whole_network(work: Path) -> None:
    meta = json.loads((work / "runs/routed/model.json").read_text())
    assert meta["architecture"] == "resnet8 head=cosine head_scale=30 experts=3 expert_width=0.75 router=4"
    assert (meta["method"], meta["init"]["source"]) == ("router", "base")
    record = json.loads((work / "runs/routed/run.json").read_text())
    assert record["script"] == "train/router.py" and record["facts"]["init"] == meta["init"]["weights"]
    lines = [json.loads(line) for line in (work / "runs/routed/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["needs_more"] <= 1 and 0 <= line["goes_on"] <= 1 for line in lines)


def test_its_evaluation_says_how_many_experts_answered_and_what_that_costs(work: Path) -> None:
    test, base = result(work, "routed")["test"], result(work, "base")["test"]
    shares = test["expert_shares"]
    assert len(shares) == 3 and shares[0] == 1 >= shares[1] >= shares[2]
    assert test["experts_used"] == pytest.approx(sum(shares)) and test["experts_used_many"] is None
    assert 1 <= test["experts_used_medium"] <= 3 and 1 <= test["experts_used_few"] <= 3
    assert test["flops"] == base["flops"] and "flops_routed" not in base and "experts_used" not in base
    assert result(work, "routed")["test_ema"]["flops"] == test["flops"]
    said = run("evaluate", "routed", "predictions=p.npz", cwd=work).stdout
    assert f"test.experts_used: {test['experts_used']:.4g}" in said and f"test.flops: {test['flops']}" in said
    again = json.loads((work / "runs/routed/evaluation_test.json").read_text())
    assert {name: again[name] for name in test} == test
    run("evaluate", "routed", "features=f.npz", cwd=work)  # for which all experts run on all images
    assert json.loads((work / "runs/routed/evaluation_test.json").read_text())["expert_shares"] == shares


def test_an_export_gives_the_same_answers(work: Path) -> None:
    run("evaluate", "routed", "export=exports/routed", cwd=work)
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        answers = [load_network(work / place)[0](images) for place in ("runs/routed", "exports/routed")]
    assert torch.equal(*answers) and answers[0].shape == (8, 5)
    card = (work / "exports/routed/README.md").read_text()
    assert "trained by binary cross-entropy of its routers alone" in card and "| started from | base, weights" in card
    assert "| settings of the loss | router_weight 100.0 |" in card


def test_as_a_teacher_from_a_cache_it_is_what_it_is_online(work: Path, tiny: Path) -> None:
    dive = tiny_config(work, tiny, "dive", "  tau: 3\n  p: 0.5\n")
    run("cache_logits", dive, "distill.teacher=routed", "cache.codec=f32", "schedule.epochs=2", cwd=work)
    run("distill", dive, "run=cached", "cache.paths=[caches]", "schedule.epochs=2", cwd=work)
    run("distill", dive, "run=online", "distill.teacher=routed", "schedule.epochs=2", cwd=work)
    cached, online = losses(work, "cached"), losses(work, "online")
    assert len(cached) == 2 and cached == pytest.approx(online, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (EXPERTS, "trains the router of a network, and this one has none: type model.router=30 "),
        (ROUTED, "trains the router of a finished network: type model.init=RUN, a finished run or an export of this "),
        (
            ("model.router=4", "model.init=base"),
            "model.router=4: a router decides between experts; give model.experts=2",
        ),
        ((*EXPERTS, "model.router=6", "model.init=base"), "model.router=6: must be from 1 to 5, the number of classes"),
        (
            (*ROUTED, "model.init=routed"),
            "model.init=routed is resnet8 .* router=4, with a router already; give the run",
        ),
        ((*ROUTED, "model.init=nothing"), "model.init=nothing: no run 'nothing'"),
        (
            (*ROUTED, "model.init=runs/x.pth"),
            "model.init=runs/x.pth is a file, of which nothing but its weights is known",
        ),
        ((*ROUTED, "model.experts=4", "model.init=base"), "which must be the same; type model.experts=3$"),
        (
            ("model.experts=3", "model.router=4", "model.name=resnet32", "data.mean=[0.4,0.5,0.5]", "model.init=base"),
            "; type data.mean=.0.5,0.5,0.5. model.name=resnet8 model.head=cosine$",
        ),
        (
            (*ROUTED, "data.recipe.crop=random_resized_crop", "data.recipe.size=12", "model.init=base"),
            "; type data.recipe.size=8$",
        ),
        ((*ROUTED, "distill.diversity=-0.2", "model.init=base"), "router does not train the experts; leave it out"),
        ((*ROUTED, "distill.head_smoothing=0.2", "model.init=base"), "router does not smooth labels"),
        ((*ROUTED, "model.sync_bn=true", "model.init=base"), "model.sync_bn=true goes with distill.method=ce, "),
    ],
)
def test_what_does_not_fit_is_refused(work: Path, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(refused(work, "router", "router.yaml", "run=no", *settings))


def test_other_methods_refuse_routers(work: Path, tiny: Path) -> None:
    said = refused(work, "teacher", "bsce.yaml", "run=no", *ROUTED)
    assert "model.router=4: bsce does not train routers" in said and "train/router.py CONFIG model.init=RUN" in said
    with pytest.raises(UserError, match="trains the router of a network, and this one has none"):  # in every program
        load(Config, work / "router.yaml")
    assert "use train/router.py" in refused(work, "teacher", "router.yaml", "run=no", *ROUTED)
    said = refused(work, "distill", tiny_config(work, tiny, "dive"), "run=no", "distill.hard=router")
    assert "distill.hard" in said and "ce|bsce|ldam" in said


def test_a_network_that_is_no_routed_experts_is_told(work: Path) -> None:
    run("teacher", "bsce.yaml", "run=plain", "schedule.epochs=1", cwd=work)
    said = refused(work, "router", "router.yaml", "run=no", "model.experts=3", "model.router=4", "model.init=plain")
    assert "model.init=plain is resnet8; router=4: a router decides between experts" in said


def test_it_learns_which_images_need_another_expert() -> None:
    """By RIDE's recipe (5 epochs, here of 21 batches) on a made network, whose second expert is always right."""
    torch.manual_seed(0)
    network = MadeExperts()
    freeze_all_but(network, "router")
    optimizer = build_optimizer(network, OptimConfig(lr=0.01, nesterov=True))
    objective = Objective(DistillConfig(method="router"), torch.ones(CLASSES, dtype=torch.int64), None)

    def measured() -> tuple[float, float, float]:
        """Accuracy, experts used, and the share of images whose decision is right."""
        images, labels, wrong = made_images(2000, seed=1)
        network.eval()
        with torch.no_grad(), experts_told(network):
            outputs = outputs_of(network(images))
        assert outputs.used is not None
        right = (outputs.logits.argmax(1) == labels).float().mean()
        return float(right), float(outputs.used.float().mean()), float(((outputs.used == 2) == wrong).float().mean())

    before = measured()
    assert before[2] < 0.9
    set_training(network)
    schedule = Schedule(ScheduleConfig(kind="cosine", epochs=5), 0.01, steps_per_epoch=21, batch=512)
    for step in range(schedule.total_steps):
        optimizer.param_groups[0]["lr"] = schedule.at(step)
        images, labels, _ = made_images(512, seed=2 + step)
        batch = Batch(images, labels, *[None] * (len(Batch._fields) - 2))  # pyright: ignore[reportArgumentType]
        loss, parts = objective(outputs_of(network(images)), batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    accuracy, used, decided = measured()
    share = float(made_images(2000, seed=1)[2].float().mean())
    assert accuracy == 1.0 and decided > 0.99 and used == pytest.approx(1 + share, abs=0.01)
    assert float(parts["goes_on"]) == pytest.approx(float(parts["needs_more"]), abs=0.01)
