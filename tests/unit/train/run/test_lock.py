import os
import platform
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from accelerate import Accelerator

from pipelines.errors import UserError
from train.config import Config
from train.run.folder import Run
from train.run.lock import in_use, status_of

ROOT = Path(__file__).parents[4]
SCRIPT = "train/distill.py"

pytestmark = pytest.mark.usefixtures("bare_environment")


def refusal(name: str, accelerator: Accelerator) -> str:
    with pytest.raises(UserError) as caught:
        Run.open(Config(), name, SCRIPT, accelerator)
    return str(caught.value)


def test_a_run_in_use_is_refused_and_free_when_its_process_is_gone(accelerator):
    code = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from multiprocessing import get_context
        from train.run.lock import Lock
        lock = Lock(Path("runs/a"))
        worker = get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    Path("runs/a").mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        message = refusal("a", accelerator)
        assert message.startswith(f"run a is in use by process {holder.pid} on {platform.node()} since 20")
        assert os.listdir("runs/a") == ["lock"]
        assert in_use(Path("runs/a")) and status_of(Path("runs/a"), "running") == "running"
        holder.kill()
        holder.wait()
        assert not in_use(Path("runs/a"))
        assert status_of(Path("runs/a"), "running").startswith("ended without a word")
        assert status_of(Path("runs/a"), "error") == "error"
        with Run.open(Config(), "a", SCRIPT, accelerator):  # although its forked worker lives on
            os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()
        holder.stdout.close()


def test_a_run_in_use_by_this_very_process_is_refused(accelerator):
    with Run.open(Config(), "a", SCRIPT, accelerator):
        message = refusal("./runs/../runs/a", accelerator)
        assert f"in use by process {os.getpid()} on {platform.node()}" in message
    with Run.open(Config(), "a", SCRIPT, accelerator):
        pass
