"""pipelines/cores.py: quotas of both versions of cgroups, as hosts and containers show them."""

import os
from pathlib import Path

import pytest

from pipelines.cores import usable_cores
from pipelines.loader import default_workers


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))


def cores(tmp_path: Path, own: str, files: dict[str, str]) -> int:
    """With this /proc/self/cgroup, and these files below the mounted folder."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(text)
    return usable_cores(tmp_path / "mounted", tmp_path / "own")


def version_1(quota: int, folder: str = "cpu") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


NAMES = "12:cpuset:/jobs/7\n5:{}:/jobs/7\n1:name=systemd:/x\n0::/x\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # a container of its own names
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),  # the one above limits
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/host/name\n", {"cpu.max": "400000 100000\n"}, 4),  # a container with the host's names
        (NAMES.format("cpu"), version_1(250000, "cpu/jobs/7"), 3),
        (NAMES.format("cpu,cpuacct"), version_1(250000, "cpu,cpuacct"), 3),
        (NAMES.format("cpu"), version_1(-1), 16),
        (NAMES.format("cpu"), {"cpuset/jobs/7/cpu.cfs_quota_us": "1", "memory/cpu.max": "1 100000"}, 16),
        ("0::/\n", {"cpu.max": "damaged"}, 16),
        ("0::/\n", {}, 16),
    ],
)
def test_quotas(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    assert cores(tmp_path, own, files) == expected


def test_without_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "nothing") == 16


def test_the_share_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.loader.usable_cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert default_workers() == 6


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/cpu/cpu.cfs_period_us", os.W_OK), reason="needs root and cgroups 1")
def test_a_real_quota() -> None:
    """This machine's own cgroups; the process is moved there and back."""
    folder = Path(f"/sys/fs/cgroup/cpu/test-{os.getpid()}")
    (mine,) = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":cpu:" in line]
    folder.mkdir()
    try:
        (folder / "cpu.cfs_quota_us").write_text("130000")
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        assert usable_cores() == 2
    finally:
        Path(f"/sys/fs/cgroup/cpu{mine}/cgroup.procs").write_text(str(os.getpid()))
        folder.rmdir()
