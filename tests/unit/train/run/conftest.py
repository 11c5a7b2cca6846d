"""What the tests of runs share."""

import pytest
from accelerate import Accelerator

from train.config import Config
from train.run.environment import make_accelerator


@pytest.fixture
def accelerator(bare_environment) -> Accelerator:
    return make_accelerator(Config())
