"""The model card: which settings it names. What it says in all: test_export.py."""

from models.registry import ModelConfig
from pipelines.logits.reader import CacheConfig
from train.config import Config
from train.networks.card import _of_the_loss, _trained
from train.networks.info import ModelInfo
from train.objectives.methods import DistillConfig


def test_the_card_names_the_settings_that_the_loss_read() -> None:
    def shown(**sections: object) -> str:
        given = _of_the_loss(Config(**sections), tau=4.0)
        return ", ".join(f"{name} {value}" for name, value in given.items())

    assert shown(distill=DistillConfig(method="bsce", drw_from=3)) == ""
    assert shown(distill=DistillConfig(method="ldam", drw_beta=0.9)) == "margin 0.5"
    assert shown(distill=DistillConfig(method="ldam", drw_from=3)) == "margin 0.5, drw_from 3, drw_beta 0.9999"
    assert shown(distill=DistillConfig(method="ce", label_smoothing=0.1)) == "label_smoothing 0.1"
    several = ModelConfig(experts=3)
    ride = DistillConfig(method="kd", hard="ldam", kl_of="ensemble", diversity=-0.2, diversity_from=3)
    assert shown(distill=ride, model=several) == (
        "tau 4.0, alpha 0.5, hard ldam, kl_of ensemble, margin 0.5, diversity -0.2, diversity_from 3, diversity_eta 0.05"
    )
    assert shown(distill=DistillConfig(p=0.5)) == "tau 4.0, p 0.5, alpha 0.5"


def test_the_card_says_how_several_teachers_were_averaged() -> None:
    def shown(teachers: int) -> str:
        given = [{"source": f"t{i}", "architecture": "resnet8", "weights": "0"} for i in range(teachers)]
        facts = ModelInfo(
            architecture="resnet8", class_names=["a", "b"], train_counts=[5, 2], mean=[0.5] * 3, std=[0.2] * 3, input_size=8,
            teachers=given, training={"facts": {"tau": 3.0}},
        )  # fmt: skip
        return _trained(facts, Config(cache=CacheConfig(paths=["a", "b"], average="probabilities", weights=[2, 1])))

    assert "cache:\n  average: probabilities\n  weights: [2, 1]\n" in shown(2) and "cache:" not in shown(1)
