import os
import subprocess

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.launch import ROOT

from pipelines.errors import UserError
from train.config import Config
from train.run.environment import describe_environment, git_state, make_accelerator

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_precision_and_determinism():
    assert make_accelerator(Config()).mixed_precision == "no"
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    AcceleratorState._reset_state(True)
    assert make_accelerator(Config(precision="bf16", deterministic=True)).mixed_precision == "bf16"
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_fp32_is_no_tf32():
    torch.backends.cudnn.allow_tf32 = True
    make_accelerator(Config(precision="fp32"))
    assert not torch.backends.cudnn.allow_tf32


def test_processes_share_the_cores_for_compilation(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for cores, share in ((200, "32"), (16, "4"), (2, "1")):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        make_accelerator(Config())
        assert "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ
        make_accelerator(Config(compile=True))
        assert os.environ.pop("TORCHINDUCTOR_COMPILE_THREADS") == share
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "7")
    make_accelerator(Config(compile=True))
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "7", "what the user has set stays"


def test_fp16_on_a_cpu():
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        make_accelerator(Config(precision="fp16"))


@pytest.mark.parametrize(
    "precision, cpu, warns",
    [
        ("bf16", {"architecture": "x86_64", "avx2": True, "avx512_bf16": False}, True),
        ("bf16", {"architecture": "x86_64", "avx512_bf16": True}, False),
        ("bf16", {"architecture": "x86_64", "amx_bf16": True}, False),
        ("bf16", {"architecture": "arm64"}, False),
        ("fp32", {"architecture": "x86_64"}, False),
    ],
)
def test_bf16_on_a_cpu_that_emulates_it(monkeypatch, capsys, precision, cpu, warns):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    make_accelerator(Config(precision=precision))
    assert ("type precision=fp32" in capsys.readouterr().out) is warns


def test_what_accelerate_refuses_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"accelerate does not start \(precision=auto\): .*MASTER_ADDR"):
        make_accelerator(Config())


@pytest.mark.parametrize(
    "name, value, advice",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "set precision=fp32|bf16|fp16 instead"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "set precision="),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "set optim.accumulate=N"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set compile=true"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "launch with --multi_gpu"),
        ("ACCELERATE_USE_FSDP", "true", "launch with --multi_gpu"),
    ],
)
def test_what_the_launcher_may_not_decide(monkeypatch, name, value, advice):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        make_accelerator(Config(precision="bf16"))
    assert str(caught.value).startswith(f"{name}={value} (from the launcher") and advice in str(caught.value)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_the_launcher_says_by_default_or_in_agreement(monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert make_accelerator(Config(precision="bf16")).mixed_precision == "bf16"


def test_processes_that_accelerate_does_not_see(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but accelerate counts 1.*ACCELERATE_USE_CPU=true"):
        make_accelerator(Config())


def test_git_state(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook of git's runs with its repository's
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user's may sign commits
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert git_state(tmp_path) == {}
    git("init")
    assert git_state(tmp_path) == {}  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "one")
    (tmp_path / "untracked").touch()
    state = git_state(tmp_path)
    assert len(state["git_revision"]) == 40 and state["git_dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path)["git_dirty"] is True
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == {}  # installed somewhere inside another project's checkout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_git_state_of_another_users_clone(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GIT_", "SUDO_"))]:
        monkeypatch.delenv(name)
    # The user's may allow all folders.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for arguments in (["init"], ["commit", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    mine = git_state(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 12345, 12345)
    refused = subprocess.run([*git, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert git_state(tmp_path) == mine and len(mine["git_revision"]) == 40


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_the_revision_is_that_of_the_code() -> None:
    revision = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    found = describe_environment(Accelerator(cpu=True)).get("git_revision")
    assert found == (revision.stdout.strip() if revision.returncode == 0 else None)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "two", "1.5"])
def test_a_launchers_number_that_is_none(monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}='{value}' is no whole number"):
        make_accelerator(Config())
