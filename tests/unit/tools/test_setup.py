"""tools/setup.sh with stand-ins for python, apt-get and pkg-config.

What it installs, in which order, and what it does when a part is unavailable. Nothing is installed: CI itself
runs on the real installation.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.browser import NAMES

ROOT = Path(__file__).resolve().parents[3]
FILES = ("tools/setup.sh", "setup.cfg", "pyproject.toml", "constraints.txt")

# Makes "virtual environments" that contain this script, records pip's arguments, fails on arguments with $FAIL.
PYTHON = """#!/bin/bash
[[ -n $FAIL && "$*" == *"$FAIL"* ]] && exit 1
case "$*" in
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "command = $0 -m venv $3" >"$3/pyvenv.cfg"
        ;;
    "-m pip "*) echo "$*" >>"$CALLS" ;;
    *torch.version.cuda*) echo "${CUDA:-13}" ;;
esac
"""
PKG_CONFIG = """#!/bin/bash
[[ -z ${MISSING:-} || "$*" != *"$MISSING"* ]]
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$CALLS"
exit 1
"""
NOTHING = "#!/bin/bash"
STAND_INS = {"python3": PYTHON, "pkg-config": PKG_CONFIG, "apt-get": APT_GET, "c++": NOTHING, "chromium": NOTHING}


class Clone:
    """A clone that contains only the set-up, and a PATH on which the stand-ins come first."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.calls = folder / "a clone", folder / "bin", folder / "calls"
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for name, text in STAND_INS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def setup(self, *extras: str, **environment: str) -> tuple[int, str, list[str]]:
        """(exit code, output, calls of pip and apt-get) of one run."""
        self.calls.write_text("")
        known = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "CUDA", "MISSING", "FAIL")}
        known |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": str(self.calls)} | environment
        command = ["bash", str(self.root / "tools" / "setup.sh"), *extras]
        done = subprocess.run(command, cwd="/", env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, self.calls.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def asked(calls: list[str]) -> list[str]:
    assert all(" -c constraints.txt " in call for call in calls)
    return [call.split(" -c constraints.txt ")[1] for call in calls]


def test_installs_torch_first_then_the_rest_and_only_once(clone: Clone) -> None:
    code, _, calls = clone.setup("report")
    assert code == 0
    assert asked(calls) == ["torch setuptools", "-e .", "-e .[report]", "-e .[ffcv]", "-e .[dali-cu13]"]
    assert clone.setup("report") == (0, "", [])
    code, _, calls = clone.setup("report", "dev")
    assert (code, asked(calls)) == (0, ["-e .[dev]"])
    assert clone.setup("dev", "report") == (0, "", [])


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_it_depends_on_installs_again(clone: Clone, name: str) -> None:
    clone.setup()
    with (clone.root / name).open("a") as file:
        file.write("# changed\n")
    code, _, calls = clone.setup()
    assert code == 0 and asked(calls)[:2] == ["torch setuptools", "-e ."]


def test_timm_takes_the_gpu_build_of_torch_only_where_it_does_not_import(clone: Clone) -> None:
    code, printed, calls = clone.setup("timm")
    assert code == 0 and "GPU" not in printed and asked(calls)[2:3] == ["-e .[timm]"]
    assert not any("torch===" in call for call in calls)
    clone.setup()
    (clone.root / ".venv/setup.stamp").unlink()
    code, printed, calls = clone.setup("report", "timm", FAIL="import timm")
    (pinned,) = [
        line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().split() if line[:7] == "torch=="
    ]
    assert asked(calls)[-2:] == ["-e .[report,timm]", f"torch==={pinned}"]
    assert code == 1 and "5 GB" in printed and "this failed:" in printed
    assert clone.setup("report", "timm")[0] == 0  # nothing was marked as done


def test_dali_follows_the_cuda_version_of_torch(clone: Clone) -> None:
    _, _, calls = clone.setup(CUDA="12")
    assert asked(calls)[-1] == "-e .[dali-cu12]"


def test_a_python_too_old_is_one_clear_line(clone: Clone) -> None:
    code, printed, calls = clone.setup(PYTHON=str(clone.bin / "python3"), FAIL="version_info")
    assert code == 1 and not calls
    assert "Python 3.11 or newer is needed" in printed and "PYTHON=" in printed and printed.count("\n") == 1


def test_a_build_that_fails_is_told_every_time_and_tried_once(clone: Clone) -> None:
    code, printed, calls = clone.setup(FAIL=".[ffcv]")
    assert code == 0 and "FFCV left out" in printed
    assert asked(calls)[-1] == "-e .[dali-cu13]"
    code, printed, calls = clone.setup()
    assert code == 0 and "FFCV left out" in printed and printed.count("\n") == 1 and not calls


def test_missing_system_packages_end_in_the_command_to_type(clone: Clone) -> None:
    """As root, apt is tried and fails here; otherwise it is not tried. Both continue without FFCV."""
    code, printed, calls = clone.setup(MISSING="turbojpeg")
    assert code == 0
    assert "sudo apt-get update && sudo apt-get install -y libturbojpeg0-dev && bash tools/setup.sh" in printed
    assert calls.count("apt-get update") == (os.geteuid() == 0)
    assert asked([call for call in calls if " pip " in call])[-1] == "-e .[dali-cu13]"
    code, _, calls = clone.setup()  # the package is available now
    assert code == 0 and asked(calls) == ["-e .[ffcv]"]


def test_the_developers_extra_brings_a_browser(clone: Clone) -> None:
    """Where there is none; the others do without. A failure is remembered, and told every time."""
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):  # all that the set-up needs, without the browsers
        for program in Path(place).iterdir():
            if program.name not in (*STAND_INS, *NAMES) and not os.path.lexists(clone.bin / program.name):
                (clone.bin / program.name).symlink_to(program)
    (clone.bin / "chromium").unlink()
    alone = {"PATH": str(clone.bin)}
    code, printed, _ = clone.setup("report", **alone)
    assert code == 0 and "Chromium" not in printed
    code, printed, calls = clone.setup("report", "dev", **alone)
    assert code == 0 and "Chromium left out" in printed and "apt-get install -y chromium fonts-dejavu-core" in printed
    assert calls.count("apt-get update") == (os.geteuid() == 0)
    code, printed, calls = clone.setup("report", "dev", **alone)
    assert code == 0 and "Chromium left out" in printed and not calls
    (clone.bin / "chromium").symlink_to("/bin/true")
    assert clone.setup("report", "dev", **alone) == (0, "", [])


def test_a_failing_core_install_stops_with_its_log(clone: Clone) -> None:
    code, printed, _ = clone.setup(FAIL="torch setuptools")
    assert code == 1 and "this failed:" in printed and "setup.log" in printed
    assert clone.setup()[0] == 0


def test_a_moved_clone_is_refused_with_the_command_to_type(clone: Clone) -> None:
    clone.setup()
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    code, printed, calls = clone.setup()
    assert code == 1 and f"rm -r '{clone.root.resolve()}/.venv'" in printed and not calls
