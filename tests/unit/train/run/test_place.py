from pathlib import Path

import pytest

from pipelines.errors import UserError
from train.run.place import run_name


def test_run_names():
    assert run_name(None, Path("configs/cifar100_lt/dive_if100.yaml"), 3) == "dive_if100-s3"
    assert run_name("007", Path("x.yaml"), 3) == "007"
    for wrong in (".", "..", " "):
        with pytest.raises(UserError, match="a run needs a name"):
            run_name(wrong, Path("x.yaml"), 0)
