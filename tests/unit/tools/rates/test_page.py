"""What is suggested for each optimizer."""

from typing import get_args

import pytest

from tools.rates.page import RULES, setting, suggested
from tools.rates.sweep import Found
from train.optim import OptimConfig
from train.settings import keys


def test_every_optimizer_has_a_rule() -> None:
    assert set(RULES) == set(get_args(keys(OptimConfig)["name"].hint))


@pytest.mark.parametrize(("name", "typed"), [("sgd", "optim.lr=0.03"), ("adamw", "optim.lr=0.002")])
def test_the_suggestion_follows_the_rule(name: str, typed: str) -> None:
    optim = OptimConfig(**{"name": name, "nesterov": False})
    assert setting(suggested(Found(minimum=0.3, steepest=0.002), optim), optim) == typed
