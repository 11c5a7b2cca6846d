"""Images that one run answers right and another wrong: which are drawn, what is said of them, how they and their names look."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.drawings import picture
from helpers.made_predictions import made_records, made_run, reordered
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipelines.errors import UserError
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records
from tools.figures import main
from tools.reporting.runs import Run
from tools.reporting.samples import (
    Samples,
    as_json,
    draw,
    draw_places,
    find_records,
    fitted_size,
    measure,
    notes,
    page,
    tables,
)
from tools.reporting.style import COLOURS, GROUP_COLOURS, svg

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNTS = (10, 500, 30, 200, 15, 101)  # few, many, medium, many, few, many
GROUPS = ("few", "many", "medium", "many", "few", "many")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return made_records(tmp_path_factory.mktemp("records") / "test.beton", NAMES)


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    return made_run("good", NAMES, COUNTS, seed=1, accuracy=0.8), made_run("bad", NAMES, COUNTS, seed=2, accuracy=0.3)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def with_classes(run: Run, names: tuple[str, ...], **changed: Any) -> Run:
    return replace(run, predictions=replace(run.predictions, class_names=np.array(names), **changed))


def test_shares_are_as_equal_as_the_pools_allow() -> None:
    def shares(sizes: list[int], number: int) -> list[int]:
        return [len(places) for places in draw_places(sizes, number, 0)]

    assert shares([50, 50, 50], 16) == [6, 5, 5] and shares([50, 2, 50], 16) == [7, 2, 7]
    assert shares([0, 1, 3], 16) == [0, 1, 3] and shares([9], 4) == [4]


def test_places_are_drawn_from_the_whole_list_and_follow_the_seed() -> None:
    seen = {int(place) for seed in range(200) for place in draw_places([10], 3, seed)[0]}
    assert seen == set(range(10)) and all((np.diff(draw_places([10], 5, seed)[0]) > 0).all() for seed in range(9))
    assert np.array_equal(draw_places([99], 5, 4)[0], draw_places([99], 5, 4)[0])


def test_only_images_that_one_run_alone_has_right_are_shown(runs: tuple[Run, Run], records: Records) -> None:
    right, wrong = (run.predictions for run in runs)
    measured = measure(runs, records, number=100)
    expected = [i for i in range(36) if right.answers[i] == i % 6 != wrong.answers[i]]
    assert sorted(one.position for one in measured.shown) == expected
    assert notes(measured)[3] == "100 images were asked for; there are no more"
    groups = [GROUPS[one.label] for one in measured.shown]
    assert groups == sorted(groups, key=["many", "medium", "few"].index)
    few = measure(runs, records, groups=["few"], number=2)
    assert [GROUPS[one.label] for one in few.shown] == ["few", "few"] and few.drawn_from == ("few",)


def test_what_is_said_of_an_image(runs: tuple[Run, Run], records: Records) -> None:
    """Name, pixels, classes and confidence, against the files."""
    measured = measure(runs, records, number=5)
    for one in measured.shown:
        stored = records.payload(one.position).reshape(8, 8, 3)
        assert (
            one.name == f"s/{one.position}" and np.array_equal(one.pixels, stored) and one.label == one.answers[0].label
        )
        for answer, run in zip(one.answers, runs, strict=True):
            row = run.predictions.logits[one.position].astype(float)
            assert answer.label == row.argmax()
            assert answer.confidence == pytest.approx(1 / sum(np.exp(value - row.max()) for value in row))


def test_the_four_cases_are_counted_by_group(runs: tuple[Run, Run], records: Records) -> None:
    measured = measure(runs, records)
    hits = [[run.predictions.answers[i] == i % 6 for i in range(36)] for run in runs]
    cases = list(measured.cases.values())
    for case, wanted in zip(cases, ((True, True), (True, False), (False, True), (False, False)), strict=True):
        of = [i for i in range(36) if (hits[0][i], hits[1][i]) == wanted]
        assert case == {"all": len(of)} | {g: sum(GROUPS[i % 6] == g for i in of) for g in ("many", "medium", "few")}
    assert sum(case["all"] for case in cases) == 36
    table = tables(measured)[0]
    assert table.rows[1][:2] == ["only good right", str(cases[1]["all"])] and table.columns[1:] == (
        "all",
        "many",
        "medium",
        "few",
        "share of all",
    )


def test_several_runs_that_are_all_wrong(runs: tuple[Run, Run], records: Records) -> None:
    """Shown is what the first alone has right; each run has its line below, and every image is in one of five cases."""
    three = (*runs, made_run("worse", NAMES, COUNTS, seed=3, accuracy=0.2))
    measured = measure(three, records, number=100)
    hits = np.array([run.predictions.answers == np.arange(36) % 6 for run in three])
    assert sorted(one.position for one in measured.shown) == [*np.flatnonzero(hits[0] & ~hits[1] & ~hits[2])]
    mixed = hits[1] != hits[2]
    assert measured.cases["other cases"]["all"] == mixed.sum() > 0
    assert sum(case["all"] for case in measured.cases.values()) == 36
    found = texts(draw(measured))
    assert found[:3] == ["✓ right: good", "✗ wrong: bad", "✗ wrong: worse"]
    assert len(found) == 7 + 4 * len(measured.shown) and notes(measured)[0].count("bad and worse wrong") == 1


def test_rows_in_another_order_are_the_same_images(runs: tuple[Run, Run], records: Records) -> None:
    other = replace(runs[1], predictions=reordered(runs[1].predictions, np.random.default_rng(0).permutation(36)))
    assert as_json(measure((runs[0], other), records)) == as_json(measure(runs, records))


def test_without_training_counts_there_are_no_groups(runs: tuple[Run, Run], records: Records) -> None:
    unknown = [with_classes(run, NAMES, train_counts=None) for run in runs]
    measured = measure(unknown, records, number=3)
    assert set(measured.cases["all right"]) == {"all"} and measured.drawn_from == ()
    assert not any("[M]" in text or "few" in text for text in texts(draw(measured)))
    with pytest.raises(UserError, match="--groups: the training images of the classes are not known"):
        measure(unknown, records, groups=["few"])


def test_no_such_image(runs: tuple[Run, Run], records: Records) -> None:
    with pytest.raises(UserError, match="there is no image that good answers right and good wrong"):
        measure((runs[0], runs[0]), records)


def test_records_must_be_those_of_the_predictions(runs: tuple[Run, Run], records: Records, tmp_path: Path) -> None:
    fewer = made_records(tmp_path / "fewer.beton", NAMES, each=5)
    for run in (runs[0], with_classes(runs[0], NAMES, records=records.digest)):
        assert measure((run, runs[1]), records).shown
        with pytest.raises(
            UserError, match=r"fewer.beton: good was evaluated on other records; .* samples by --records FILE.beton"
        ):
            measure((run, runs[1]), fewer)
    with pytest.raises(
        UserError, match=r"no images; give the records of data.test to tools/figures.py samples by --records"
    ):
        find_records(runs, None, ["eval.batch=3"], "test")
    setting = [f"data.test={tmp_path / 'fewer.beton'}"]
    assert find_records(runs, None, setting, "test").digest == fewer.digest
    assert find_records(runs, records.path, setting, "test").digest == records.digest
    opened = (runs[0], replace(runs[1], records=records))
    assert find_records(opened, None, setting, "val") is records


def test_sizes_in_the_picture() -> None:
    assert fitted_size(32, 32) == (192, 192) and fitted_size(100, 50) == (200, 100)
    assert fitted_size(208, 8) == (208, 8) and fitted_size(500, 375) == (208, 156) and fitted_size(1, 900) == (1, 208)


def test_small_images_are_enlarged_pixel_by_pixel_and_photographs_keep_their_shape(tmp_path: Path) -> None:
    sizes = ((32, 32), (300, 200), (90, 400), (209, 208))
    for number, (width, height) in enumerate(sizes):
        picture(width, height, number).save(tmp_path / f"{number}.jpg")
    samples = [Sample(f"s/{i}", i % 6, tmp_path / f"{i % 4}.jpg") for i in range(36)]
    write_records(tmp_path / "photos.beton", samples, NAMES, kind="test")
    right, wrong = made_run("a", NAMES, COUNTS, accuracy=1), made_run("b", NAMES, COUNTS, accuracy=0)
    measured = measure((right, wrong), Records(tmp_path / "photos.beton"), number=20)
    figure = draw(measured)
    for axes, one in zip(figure.axes, measured.shown, strict=True):
        height, width = np.asarray(axes.get_images()[0].get_array()).shape[:2]
        assert (width, height) == fitted_size(*sizes[one.position % 4])
        box = axes.get_position()
        drawn = np.array([box.width, box.height]) * figure.get_size_inches() * 130
        assert drawn == pytest.approx([width, height])
    small = next(i for i, one in enumerate(measured.shown) if one.position % 4 == 0)
    shown = np.asarray(figure.axes[small].get_images()[0].get_array())
    assert np.array_equal(shown, measured.shown[small].pixels.repeat(6, 0).repeat(6, 1))


def odd(runs: tuple[Run, Run], records: Records) -> tuple[Samples, Figure]:
    names = ("$x$", "_hidden", r"\frac{", "a$b", "W" * 90, "名\udcff\n")
    both = [with_classes(replace(run, title=f"$run$_{i}"), names) for i, run in enumerate(runs)]
    measured = measure(both, records, number=9)
    return measured, draw(measured)


def test_the_picture_shows_names_as_they_are(runs: tuple[Run, Run], records: Records) -> None:
    measured, figure = odd(runs, records)
    found = texts(figure)
    assert found[:2] == ["✓ right: $run$_0", "✗ wrong: $run$_1"]
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if isinstance(text, Text))
    marks = ("[F] $x$", "[M] _hidden", r"[D] \frac{", "[M] a$b", "[F] WWW", r"[M] \u540d\udcff")
    for i, one in enumerate(measured.shown):
        mine = found[6 + 3 * i : 9 + 3 * i]
        assert mine[0].startswith(f"{i + 1}. {marks[one.label]}")
        for line, mark, answer in zip(mine[1:], "✓✗", one.answers, strict=True):
            assert line.startswith(f"{mark} {answer.confidence:.0%}  {marks[answer.label]}"[:24])
    assert svg(figure)  # draws every text
    cells = " ".join(cell for row in tables(measured)[1].rows for cell in row)
    assert r"名\udcff" in cells and "\udcff" not in cells


def test_notes_on_a_run_whose_name_is_not_utf8_are_escaped(runs: tuple[Run, Run], records: Records) -> None:
    measured = measure((replace(runs[0], title="caf\udce9", step=5), runs[1]), records)
    assert notes(measured)[-1].startswith(r"caf\udce9 is unfinished") and page(measured).encode()


def test_no_text_reaches_the_next_image(runs: tuple[Run, Run], records: Records) -> None:
    _, figure = odd(runs, records)
    width = figure.get_figwidth() * figure.dpi
    tile = 264 / 130 * figure.dpi
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x1 < width and (text in figure.texts[:6] or box.width < tile)


def test_colour_and_letter_say_the_group(runs: tuple[Run, Run], records: Records) -> None:
    figure = draw(measure(runs, records))
    letters = {"[M]": GROUP_COLOURS["many"], "[D]": GROUP_COLOURS["medium"], "[F]": GROUP_COLOURS["few"]}
    marked = [text for text in figure.texts if "[" in text.get_text()]
    assert all(text.get_color() == letters[f"[{text.get_text().partition('[')[2][:2]}"] for text in marked)
    assert len(marked) > 10 and set(letters.values()) <= set(COLOURS)
    legend = ["[M] many: more than 100 training images", "[D] medium: 20 to 100", "[F] few: fewer than 20"]
    assert texts(figure)[3:6] == legend


def test_the_same_command_writes_the_same_files(runs: tuple[Run, Run], records: Records, tmp_path: Path) -> None:
    for run in runs:
        run.predictions.save(tmp_path / f"{run.title}.npz")
    command = ["samples", str(tmp_path / "good.npz"), str(tmp_path / "bad.npz"), "--number", "6", "--out"]
    where = ["--records", str(records.path)], [f"data.test={records.path}"]
    for out, given in zip(("first", "second"), where, strict=True):
        assert main([*command, str(tmp_path / out), *given]) == 0
    for suffix in ("md", "json", "svg", "png"):
        one, two = ((tmp_path / out / f"samples.{suffix}").read_bytes() for out in ("first", "second"))
        assert one == two and one
    assert main([*command, str(tmp_path / "third"), "--seed", "1", *where[0]]) == 0
    assert (tmp_path / "third/samples.json").read_bytes() != (tmp_path / "first/samples.json").read_bytes()


def test_what_the_command_refuses(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in runs:
        run.predictions.save(tmp_path / f"{run.title}.npz")
    files = [str(tmp_path / f"{run.title}.npz") for run in runs]

    def refusal(*words: str) -> str:
        assert main(["samples", *files, "--out", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert (
        refusal()
        == "error: files of predictions hold no images; give the records of data.test to tools/figures.py samples "
        "by --records FILE.beton\n"
    )
    assert "invalid choice: 'rare'" in refusal("--groups", "rare")
    assert "no such record file" in refusal("--records", str(tmp_path / "none.beton"))
    (tmp_path / "file").write_text("")
    assert main(["samples", *files, "--out", str(tmp_path / "file")]) == 2
    assert "cannot write in" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "tools.reporting.style")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refusal() == "error: pictures need matplotlib; type: pip install matplotlib\n"
    assert not (tmp_path / "out").exists()
