"""tools/report.py on real runs of seconds: what the page says, how it looks in a browser, and what is refused."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import browser
from helpers.launch import run, tiny_config
from PIL import Image

from tools.report import main
from tools.reporting import runs
from tools.reporting.paper_figures import has_tsne
from train.evaluation.predictions import read

WIDTHS = (390, 1280)
LOOK = """(() => {
    const root = document.documentElement;
    const wide = [...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll > *")
        && one.getBoundingClientRect().right > root.clientWidth + 0.5);
    document.querySelectorAll("details").forEach(one => one.open = true);
    const styles = getComputedStyle(document.body);
    return {
        scroll: root.scrollWidth, client: root.clientWidth, wide: wide.map(one => one.outerHTML.slice(0, 200)),
        colours: [styles.color, styles.backgroundColor], fetched: performance.getEntriesByType("resource").map(one => one.name)
            .filter(name => !name.startsWith("data:")),
        plots: [...document.querySelectorAll("figure svg[role]")].map(one => one.getBoundingClientRect().height),
        text: getComputedStyle(document.querySelector("figure svg text")).fill,
        hidden: document.querySelectorAll("details:not([open])").length,
    };
})()"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Runs below runs/: a teacher with two seeds, and a student from its cache."""
    folder = tmp_path_factory.mktemp("report")
    bsce, dive = tiny_config(folder, tiny), tiny_config(folder, tiny, "dive", "  tau: 3\n  p: 0.5\n")
    short = ["schedule.epochs=1", "data.backend=reference", "eval.every_epochs=1"]
    for seed in (0, 1):
        run("teacher", bsce, f"run=bsce-s{seed}", f"seed={seed}", *short, cwd=folder)
    run("cache_logits", dive, "distill.teacher=bsce-s0", *short, cwd=folder)
    run("distill", dive, "run=dive <b>&\"'", "cache.paths=[caches]", *short, cwd=folder)
    return folder


def report(folder: Path, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def page(work: Path) -> Path:
    code, said, errors = report(
        work, "bsce-s0", "bsce-s1", "runs/dive <b>&\"'", "--out", "r.html", "--without", "speed"
    )
    assert code == 0, errors
    assert "without speed: left out by --without" in said
    return work / "r.html"


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table with this title."""
    (table,) = re.findall(rf"<h3>{re.escape(title)}</h3>.*?</table>", text, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return cells


def test_what_the_page_says(work: Path, page: Path) -> None:
    text = page.read_text()
    assert len(text) < 1_000_000
    heads, teacher, student = rows(text, "Results on the test split")
    assert teacher[:2] == ["bsce-s*", "0, 1"] and student[0] == "dive &lt;b&gt;&amp;&quot;&#x27;"
    top1 = [json.loads((work / f"runs/bsce-s{seed}/result.json").read_text())["test"]["top1"] for seed in (0, 1)]
    assert teacher[heads.index("all, %")] == f"{100 * np.mean(top1):.2f} ± {100 * np.std(top1, ddof=1):.2f}"
    assert "over the seeds 0, 1. The settings that differ among them: run, seed." in text
    for title in (
        "Curves",
        "Accuracy",
        "Confusion",
        "Calibration",
        "Virtual examples",
        "Shifted test sets",
        "Left out",
    ):
        assert f"<h2>{title}</h2>" in text and f">{title}</a></li>" in text
    assert "Speed and time" not in text and "virtual examples, T = 6" in text
    assert ("features" in np.load(work / "runs/bsce-s0/predictions_test.npz")) == has_tsne()


@pytest.mark.skipif(
    browser.find() is None, reason="no Chromium; as root on Debian, bash tools/setup.sh dev installs it"
)
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    """On a telephone and a desktop, light and dark: nothing overflows, nothing is fetched, text is told from its ground."""
    program = browser.find()
    assert program is not None
    seen = {}
    with browser.browser(program, tmp_path / "profile") as window:
        for width in WIDTHS:
            for dark in (False, True):
                seen[width, dark] = window.look(page, LOOK, width, dark)
    for (width, dark), one in seen.items():
        assert one.answer["client"] == width and one.answer["scroll"] <= width and not one.answer["wide"]
        assert one.requests == [page.as_uri()] and one.answer["fetched"] == [] and one.errors == []
        assert one.answer["plots"] and min(one.answer["plots"]) > 100 and one.answer["hidden"] == 0
        ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in one.answer["colours"])
        assert one.answer["text"] == one.answer["colours"][0] and (ink > paper) == dark and abs(ink - paper) > 450
        pixels = np.asarray(Image.open(io.BytesIO(one.picture)).convert("L"))
        assert pixels.shape[1] == width and (np.median(pixels) < 80) == dark


def test_the_browser_sees_what_overflows_and_what_is_fetched(tmp_path: Path) -> None:
    """The test above can fail."""
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium")
    bad = tmp_path / "bad.html"
    (tmp_path / "a.png").write_bytes(b"")
    bad.write_text(
        '<main><p style="width:900px">x</p><img src="a.png"><figure><svg><text>x</text></svg></figure></main>'
    )
    with browser.browser(program, tmp_path / "profile") as window:
        seen = window.look(bad, LOOK, WIDTHS[0])
    assert seen.answer["scroll"] > WIDTHS[0] and seen.answer["wide"] and (tmp_path / "a.png").as_uri() in seen.requests


def test_an_unfinished_run_is_reported_from_its_checkpoint(work: Path) -> None:
    settings = ["run=half", "schedule.epochs=2", "save.every_steps=3", "data.backend=reference"]
    run("teacher", work / "bsce.yaml", *settings, cwd=work)
    folder = work / "runs" / "half"
    for name in ("result.json", "model.json", "model.safetensors"):
        (folder / name).unlink()
    slow = ["embeddings", "samples", "shifted", "accuracy", "curves", "confusion", "calibration", "virtual-examples"]
    code, _, errors = report(work, "half", "bsce-s1", "--out", "half.html", "--without", *slow)
    assert code == 0, errors
    text = (work / "half.html").read_text()
    assert re.search(r"half is unfinished: its figures are those of its newest checkpoint, after step \d+", text)


def test_predictions_that_an_earlier_version_rounded_are_made_again(work: Path) -> None:
    kept = work / "runs/bsce-s1/predictions_test.npz"
    said: list[str] = []
    runs.open_runs([str(kept.parent)], say=said.append)
    whole = np.load(kept)["logits"]
    predictions = read(kept)
    replace(predictions, logits=predictions.logits.astype(np.float16)).save(kept)
    for _ in range(2):  # the second time they are whole
        runs.open_runs([str(kept.parent)], say=said.append)
    assert len([line for line in said if line.startswith("evaluating ")]) == 1
    assert np.array_equal(np.load(kept)["logits"], whole) and whole.dtype == np.float32


def test_predictions_of_another_program(work: Path) -> None:
    labels = np.arange(40) % 4
    np.savez(
        work / "foreign.npz", labels=labels, logits=np.eye(4)[labels] + np.random.default_rng(0).normal(size=(40, 4))
    )
    code, said, errors = report(work, "foreign.npz", "--out", "foreign.html")
    assert code == 0, errors
    assert "without settings: " in said and "without curves: " in said and "without shifted: " in said
    assert "Most confused by foreign" in (work / "foreign.html").read_text()


def test_what_is_refused_before_the_work(work: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    text = (work / "runs/bsce-s0/config.yaml").read_text()
    untested = shutil.copytree(work / "runs/bsce-s0", tmp_path / "untested")
    (untested / "config.yaml").write_text(re.sub(r"  test: .*", "  test: null", text))
    before = sorted(tmp_path.rglob("*"))
    for words, reason in (
        (["--out", "r.html"], "RUN"),
        (["bsce-s0"], "--out"),
        (["no_such_run", "--out", str(tmp_path / "r.html")], "no_such_run"),
        (["bsce-s0", "--out", str(tmp_path / "missing" / "r.html")], "give a file in a folder that exists"),
        (["bsce-s0", "--out", str(tmp_path / "folder")], "it is no regular file"),
        (["bsce-s0", "--out", str(tmp_path / "r.html"), "--without", "jokes"], "jokes"),
        (["bsce-s0", "bsce-s0", "--out", str(tmp_path / "r.html")], "given twice"),
        ([str(untested), "--out", str(tmp_path / "r.html")], "no data.test; type data.test=FILE"),
        (
            ["bsce-s0", "optim.lr=9", "--out", str(tmp_path / "r.html")],
            "without effect on a report or figure (of the run -> given): optim.lr",
        ),
        (["bsce-s0", "distill.method=ce", "--out", str(tmp_path / "r.html")], "without effect on a report"),
        (["bsce-s0", "--split", "val", "--out", str(tmp_path / "r.html")], "no data.val"),
    ):
        code, _, errors = report(work, *words)
        assert code == 2 and reason in errors and errors.startswith("error: ") and errors.count("\n") == 1, (
            words,
            errors,
        )
    assert sorted(tmp_path.rglob("*")) == before
