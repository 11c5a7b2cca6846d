<<<<<<< HEAD
"""tools/logits.py on real caches: every damage is named, repair deletes no more than that, pixels and flatness are reported."""
=======
"""The command line of tools/logits.py: as a program, where no cache is, and with values out of range."""
>>>>>>> w-tools2

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cache_damage import B00, Run, change

from tools.logits import main

ROOT = Path(__file__).resolve().parents[3]
<<<<<<< HEAD
MANY = BLOCK_ROWS + 37  # two blocks
FEW = 41
RECORD = 20 + 4 * len(CLASSES)  # fingerprint and f32 logits


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("many") / "a.beton", some_samples(MANY))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("few") / "a.beton", some_samples(FEW))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, many: Records) -> Path:
    """Two blocks under two views."""
    return make_cache(tmp_path_factory.mktemp("intact"), many)


@pytest.fixture
def cache(tmp_path: Path, intact: Path) -> Path:
    """A copy of that cache, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "caches" / intact.name))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal so wide that no line of a table is folded."""
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line -> (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


Run = Callable[..., tuple[int, str, str]]


def change(path: Path, at: int, by: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= by
    path.write_bytes(data)


# ---- verify ----


def test_a_whole_cache_is_whole(intact: Path, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in intact.rglob("*")}
    for path in (intact, intact.parent):
        code, out, err = run("verify", path)
        assert code == 0 and "bad" not in err and "note" not in err
        assert "every checksum of 4 blocks and 8,266 records is right; 2 views complete" in out
    assert {path: path.stat().st_mtime_ns for path in intact.rglob("*")} == before


def test_an_unfinished_cache_is_no_bad_one(tmp_path: Path, many: Records, run: Run) -> None:
    """Every visible block is checked, even if others are missing."""
    writer = CacheWriter(tmp_path, "t", identity_of(many), many.rows())
    assert "every checksum of 0 blocks" in run("verify", writer.folder)[1]
    for cell in ((0, 1), (3, 0)):
        write_cell(writer, cell)
    code, out, _ = run("verify", writer.folder)
    assert code == 0 and "every checksum of 2 blocks and 4,133 records is right; unfinished" in out
    change(writer.folder / "v003/b00000.lc", 5000)
    assert run("verify", writer.folder)[0] == 2


def swap(a: str, b: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        x, y = (folder / a).read_bytes(), (folder / b).read_bytes()
        (folder / a).write_bytes(y)
        (folder / b).write_bytes(x)

    return harm


def swap_records(folder: Path) -> None:
    """Two records are swapped with their checksums, and the file is sealed again."""
    path = folder / "v001/b00001.lc"
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    split = HEADER.itemsize + 37 * RECORD
    for table in (data[HEADER.itemsize : split].reshape(37, RECORD), data[split : split + 4 * 37].reshape(37, 4)):
        table[[3, 8]] = table[[8, 3]]
    path.write_bytes(data[:-4].tobytes() + zlib.crc32(data[split:-4].tobytes()).to_bytes(4, "little"))


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return harm


def foreign_sums(folder: Path) -> None:
    """A done.json with a right seal, but for other blocks."""
    kind = open_folder(folder).kind
    views, certificate = read_done(folder, kind)
    write_done(folder, kind, views, certificate * 0.9)


B00, B01, B10, B11 = (f"v00{v}/b0000{b}.lc" for v in range(2) for b in range(2))


@pytest.mark.parametrize(
    ("harm", "bad"),
    [
        (
            lambda f: change(f / B00, HEADER.itemsize + 77 * RECORD),
            {B00: "1 of 4096 records are damaged, the first of"},
        ),
        (lambda f: change(f / B01, 9), {B01: "its header is not that of view 0, block 1"}),
        (lambda f: change(f / B10, -1), {B10: "its checksums are damaged"}),
        (lambda f: change(f / B10, -200), {B10: "its checksums are damaged"}),
        (cut(B11, 900), {B11: "900 bytes instead of"}),
        (cut(B11, 0), {B11: "0 bytes instead of"}),
        (swap(B00, B10), {B00: "its header is not that of view 0", B10: "its header is not that of view 1"}),
        (swap(B00, B01), {B00: "bytes instead of", B01: "bytes instead of"}),
        (swap_records, {B11: "2 of 37 records are damaged"}),
        (lambda f: (f / B01).unlink(), {B01: "is missing"}),
        (lambda f: shutil.rmtree(f / "v001"), {B10: "is missing", B11: "is missing"}),
        (edit("done.json", '"views": 2', '"views": 3'), {"done.json": "damaged, edited or of another cache"}),
        (cut("done.json", 20), {"done.json": "not JSON"}),
        (foreign_sums, {"done.json": "its certificate is not the sum of its blocks'"}),
        (cut("made.json", 4), {"made.json": "not JSON"}),
        (lambda f: (f / "made.json").write_text("[]"), {"made.json": "damaged"}),
    ],
)
def test_each_bad_file_is_named_with_block_and_reason(
    cache: Path, run: Run, harm: Callable[[Path], None], bad: dict[str, str]
) -> None:
    harm(cache)
    code, out, err = run("verify", cache)
    listed = [line for line in err.splitlines() if line.startswith("bad: ")]
    assert code == 2 and out == "" and len(listed) == len(bad)
    for line, (name, why) in zip(listed, bad.items(), strict=True):
        assert str(cache / name) in line and why in line
        where = f"view {int(name[1:4])}, block {int(name[6:11])}: " if name.endswith(".lc") else ""
        assert line.startswith(f"bad: {where}{cache / name}")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {cache}: {len(bad)} bad file")
    assert ", ".join(bad) in error and error.endswith(f"tools/logits.py repair {cache}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (edit("identity.json", '"data_seed": 0', '"data_seed": 1'), "its name should end in"),
        (edit("identity.json", '"data_seed": 0', '"data_seed":  0'), "identity.json was edited or damaged"),
        (cut("identity.json", 30), "identity.json is damaged: not JSON"),
        (lambda f: (f / "identity.json").unlink(), "identity.json is missing"),
        (lambda f: change(f / "index.bin", 100), "index.bin is damaged or of another dataset"),
        (cut("index.bin", 320), "index.bin is damaged or of another dataset"),
        (lambda f: (f / "index.bin").unlink(), "index.bin: No such file"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "repair"])
def test_without_identity_and_index_nothing_is_judged_or_deleted(
    cache: Path, run: Run, command: str, harm: Callable[[Path], None], words: str
) -> None:
    harm(cache)
    before = sorted(cache.rglob("*"))
    code, out, err = run(command, cache)
    assert code == 2 and out == "" and words in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(cache.rglob("*")) == before


def test_the_index_of_another_dataset(cache: Path, tmp_path: Path, run: Run) -> None:
    other = make_records(tmp_path / "other.beton", some_samples(MANY, seed=1))
    (cache / "index.bin").write_bytes(other.rows().tobytes())
    code, _, err = run("verify", cache)
    assert code == 2 and "index.bin is damaged or of another dataset" in err


def test_any_flipped_bit_is_found(cache: Path, run: Run) -> None:
    """Damage at random places of every file that a target depends on."""
    rng = random.Random(0)
    for path in sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "made.json"):
        whole = path.read_bytes()
        for _ in range(4):
            change(path, rng.randrange(len(whole)), 1 << rng.randrange(8))
            code, _, err = run("verify", cache)
            assert code == 2 and path.name in err
            path.write_bytes(whole)
    assert run("verify", cache)[0] == 0


def test_what_does_not_belong_there_is_said_and_does_no_harm(cache: Path, run: Run) -> None:
    strays = [cache / name for name in ("notes.txt", "v000/b00002.lc", "v000/b00000.lc.bak", "v0/b00000.lc")]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    temporary = temporary_path(cache / B00)
    temporary.write_bytes(b"x")
    code, _, err = run("verify", cache)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == 5
    assert all(any(f"note: {path} is no part of a cache" in line for line in notes) for path in strays)
    assert any(f"note: {temporary} is being written, or was left" in line for line in notes)
=======
>>>>>>> w-tools2


def test_as_a_program(cache: Path) -> None:
    """Run from another folder: one line on stderr and exit code 2."""
    change(cache / B00, 3000)
    command = [sys.executable, str(ROOT / "tools/logits.py"), "verify", cache.name]
    done = subprocess.run(command, cwd=cache.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {cache.name}: 1 bad file: {B00};")


def test_no_cache_there(tmp_path: Path, run: Run) -> None:
    for command in ("info", "verify", "repair", "flatness"):
        code, _, err = run(command, tmp_path / "nothing")
        assert code == 2 and "no logit cache at" in err


<<<<<<< HEAD
# ---- verify --data ----


def seen_by_a_teacher(parent: Path, records: Records, shift: Callable[[int, torch.Tensor], torch.Tensor]) -> Path:
    """A cache of two views with the fingerprints of its crops, after `shift` has changed the crops of a view."""
    cpu = torch.device("cpu")
    finish = Finish([0.5] * 3, [0.5] * 3, cpu, channels_last=False)
    loader = Loader(records, RECIPE, seed=0, backend="reference", finish=finish, device=cpu)
    writer = CacheWriter(parent, "t", identity_of(records), records.rows())
    by_key, fingerprint = np.argsort(records.keys), Fingerprinter()
    for cell in writer.missing(2):
        positions = by_key[writer.block_rows(cell[1])]
        views = np.full(len(positions), cell[0], np.int32)
        (batch,) = loader.batches(positions, views, len(positions))
        writer.write(cell, logits_of(batch.keys, cell[0]), fingerprint(shift(cell[0], batch.pixels)))
    writer.finish(2, None)
    return writer.folder


def unchanged(view: int, pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def nudged(view: int, pixels: torch.Tensor) -> torch.Tensor:
    """A difference of one grey level, as between JPEG decoders."""
    return pixels + (pixels < 255).to(torch.uint8)


def inverted_later(view: int, pixels: torch.Tensor) -> torch.Tensor:
    return 255 - pixels if view else pixels


def test_the_pixels_of_the_teacher(tmp_path: Path, many: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, many, unchanged)
    for samples, count in (("all", "8,266"), (50, "50"), (10**6, "8,266")):
        code, out, err = run("verify", folder, "--data", many.path, "--samples", samples)
        assert code == 0 and "is not" not in err
        assert f"{count} crops of {many.path}" in out and f"{count.replace(',', '')} same, 0 close, 0 other" in out


def test_pixels_of_another_decoder_are_close(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, nudged)
    code, out, _ = run("verify", folder, "--data", few.path)
    assert code == 0 and "82 crops" in out and "0 same, 82 close, 0 other" in out


def test_other_pixels_are_refused_by_name(tmp_path: Path, few: Records, run: Run) -> None:
    """One of two views is wrong: a dozen crops spread over the cache find it."""
    folder = seen_by_a_teacher(tmp_path, few, inverted_later)
    code, out, err = run("verify", folder, "--data", few.path, "--samples", 12)
    assert code == 2 and "6 same, 0 close, 6 other" in out
    error = err.splitlines()[-1]
    names = {few.name(i): few.keys[i] for i in range(FEW)}
    assert error.startswith(f"error: {folder}: 6 crops of {few.path} show other pixels than the teacher saw: s/")
    shown = [part.split(" (")[0] for part in error.split("saw: ")[1].split("view 1), ")]
    assert all(f"{name} (key {names[name]}, view 1)" in error for name in shown[:3]) and "and 3 more" in error


def test_every_cell_has_its_share_of_the_samples(tmp_path: Path, many: Records, run: Run) -> None:
    """Fifty of 8266 crops: half of them in each view, and a larger sample leaves out none of the smallest block."""
    folder = seen_by_a_teacher(tmp_path, many, inverted_later)
    assert "25 same, 0 close, 25 other" in run("verify", folder, "--data", many.path, "--samples", 50)[1]
    err = run("verify", folder, "--data", many.path, "--samples", "all")[2]
    assert f"error: {folder}: 4,133 crops of" in err


def test_part_of_the_data(tmp_path: Path, many: Records, run: Run) -> None:
    """A subset in another order is checked on its own images."""
    folder = seen_by_a_teacher(tmp_path, many, unchanged)
    samples = some_samples(MANY)
    chosen = [samples[i] for i in np.random.default_rng(0).permutation(MANY)[:20]]
    subset = make_records(tmp_path / "subset.beton", chosen)
    code, out, _ = run("verify", folder, "--data", subset.path, "--samples", "all")
    assert code == 0 and "40 crops" in out and "40 same, 0 close, 0 other" in out


def test_other_data_are_refused_before_any_pixel(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, unchanged)
    other = make_records(tmp_path / "other.beton", some_samples(FEW, seed=1))
    classes = make_records(tmp_path / "classes.beton", some_samples(FEW), CLASSES[::-1])
    for records, words in ((other, "dataset.digest: another dataset"), (classes, "dataset.class_names: ")):
        code, out, err = run("verify", folder, "--data", records.path)
        assert code == 2 and f"{records.path} is not the data of {folder}: {words}" in err and "crops" not in out


def test_the_blocks_of_an_unfinished_cache_are_compared(tmp_path: Path, few: Records, run: Run) -> None:
    folder = seen_by_a_teacher(tmp_path, few, inverted_later)
    (folder / "done.json").unlink()
    (folder / "v001/b00000.lc").unlink()
    code, out, _ = run("verify", folder, "--data", few.path, "--samples", "all")
    assert code == 0 and "unfinished" in out and "41 same, 0 close, 0 other" in out


# ---- repair ----


def test_what_is_bad_goes_and_is_written_again(cache: Path, intact: Path, many: Records, run: Run) -> None:
    change(cache / B00, 3000)
    (cache / B11).unlink()
    whole = cache_files(intact)
    code, out, err = run("repair", cache)
    assert code == 0 and [line for line in err.splitlines() if line.startswith("deleted")] == [
        "deleted: done.json",
        f"deleted: {B00}",
    ]
    assert cache_files(cache) == {name: data for name, data in whole.items() if name not in (B00, B11)}
    with pytest.raises(UserError, match="unfinished"):
        LogitCache(cache)
    assert "2 files to write again; type " in out
    fill(CacheWriter(cache.parent, "t", identity_of(many), many.rows()), 2)
    assert cache_files(cache) == whole
    code, out, err = run("repair", cache)
    assert code == 0 and "nothing to repair: 4 blocks, all whole" in out and "deleted" not in err


def test_done_json_goes_before_any_block(cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its first deletion, repair leaves an unfinished cache, not a complete one with a hole."""
    change(cache / B10, 3000)
    unlink = Path.unlink

    def only_one(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".lc":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", only_one)
    assert run("repair", cache)[0] == 130
    assert (cache / B10).exists() and not (cache / "done.json").exists()


@pytest.mark.parametrize("name", ["done.json", "made.json"])
def test_only_a_file_of_facts_is_bad(cache: Path, intact: Path, many: Records, run: Run, name: str) -> None:
    (cache / name).write_text("{")
    code, out, err = run("repair", cache)
    assert code == 0 and f"deleted: {name}" in err and err.count("deleted") == 1 and "1 file to write again" in out
    assert cache_files(cache) == cache_files(intact) and (cache / "done.json").exists() == (name != "done.json")
    fill(CacheWriter(cache.parent, "t", identity_of(many), many.rows()), 2)
    assert run("verify", cache)[0] == 0


def test_a_bad_block_beyond_what_is_declared_leaves_the_cache_complete(cache: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(cache.parent, "t", identity_of(many), many.rows())
    write_cell(writer, (2, 0))
    change(cache / "v002/b00000.lc", 3000)
    code, _, err = run("repair", cache)
    assert code == 0 and "deleted: v002/b00000.lc" in err and "done.json" not in err
    assert LogitCache(cache).views == 2


def test_all_blocks_are_foreign_when_the_identity_is(cache: Path, many: Records, run: Run) -> None:
    """identity.json is exchanged and the folder renamed to fit: the blocks must not be deleted."""
    identity = identity_of(many, seed=1)
    (cache / "identity.json").write_bytes(identity_bytes(identity))
    renamed = cache.rename(cache.with_name(f"t-{identity_hash(identity).hex()[:12]}"))
    before = cache_files(renamed)
    assert run("verify", renamed)[0] == 2
    code, _, err = run("repair", renamed)
    assert code == 2 and "not one of its 4 blocks fits its identity.json and index.bin" in err
    assert "nothing was deleted" in err and cache_files(renamed) == before and (renamed / "done.json").exists()


def test_leftovers_go_when_they_are_old(cache: Path, run: Run) -> None:
    old, young = temporary_path(cache / B00), temporary_path(cache / B00)
    for path in (old, young):
        path.write_bytes(b"x")
    past = time.time() - LEFTOVER_SECONDS - 60
    os.utime(old, (past, past))
    code, out, err = run("repair", cache)
    assert code == 0 and "nothing to repair" in out and f"deleted: {old.relative_to(cache)}" in err
    assert young.exists() and not old.exists() and (cache / "done.json").exists()


def test_strays_stay(cache: Path, run: Run) -> None:
    (cache / "notes.txt").write_text("mine")
    change(cache / B00, 3000)
    assert run("repair", cache)[0] == 0 and (cache / "notes.txt").exists()


def test_a_block_that_cannot_be_read_may_be_whole(cache: Path, run: Run) -> None:
    """Nothing is deleted when one bad file cannot be opened: a folder in its place simulates missing permissions."""
    change(cache / B00, 3000)
    (cache / B01).unlink()
    (cache / B01).mkdir()
    code, _, err = run("repair", cache)
    assert code == 2 and f"cannot read or delete {cache / B01}" in err and "check permissions" in err
    assert (cache / B00).exists() and (cache / "done.json").exists()


def command_of(out: str) -> list[str]:
    return out.splitlines()[-1].split()


def test_the_command_that_wrote_the_cache(cache: Path, run: Run) -> None:
    """The recorded arguments, except the folder, which may have moved, and the present number of views."""
    argv = ["train/cache_logits.py", "my.yaml", "distill.teacher=bsce", "cache.dir=elsewhere", "data.views=1", "seed=3"]
    sessions = [{"argv": ["x", "old.yaml"], "views": 1}, {"argv": argv, "views": 2}]
    (cache / "made.json").write_text(json.dumps({"sessions": sessions}))
    change(cache / B00, 3000)
    out = run("repair", cache)[1]
    assert "as the last time" in out and command_of(out) == [
        *("python", "train/cache_logits.py", "my.yaml", "distill.teacher=bsce", "seed=3"),
        *("data.views=2", f"cache.dir={cache.parent}"),
    ]


def test_the_command_as_far_as_it_is_known(cache: Path, run: Run) -> None:
    (cache / "made.json").unlink()
    change(cache / B00, 3000)
    out = run("repair", cache)[1]
    known = ["distill.teacher=t", "data.seed=0", "cache.codec=f32", "cache.batch=64", "precision=fp32", "data.views=2"]
    assert "CONFIG is the configuration of the cache's students" in out
    assert command_of(out) == ["python", "train/cache_logits.py", "CONFIG", *known, f"cache.dir={cache.parent}"]


def test_an_unfinished_cache_may_need_more_views_than_it_has(tmp_path: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(many), many.rows())
    write_cell(writer, (0, 0))
    code, out, err = run("repair", writer.folder)
    assert code == 0 and "unfinished; type" in out and "data.views" not in out and "deleted" not in err
    assert writer.has((0, 0))


# ---- info ----


def rows_of(out: str) -> dict[str, str]:
    """Name -> text of a table printed wide; continuation lines are joined to their row."""
    rows: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if line.startswith("│"):
            left, text = (part.strip() for part in line.strip("│").split("│", 1))
            name = left or name
            rows[name] = f"{rows[name]} {text}" if name in rows else text
    return rows


def test_info_of_a_complete_cache(cache: Path, many: Records, run: Run) -> None:
    session = {"host": "here", "time": 1.7e9, "argv": ["cache_logits.py", "my config.yaml"], "seconds": 2.5}
    (cache / "made.json").write_text(json.dumps({"sessions": [session]}))
    code, out, _ = run("info", cache.parent)
    rows = rows_of(out)
    size = sum(path.stat().st_size for path in cache.rglob("*.lc"))
    expected = {
        "dataset": f"4,133 samples, digest {many.digest}",
        "classes": "5: ant, bee, cat, ...",
        "recipe": "crop pad_crop, flip True, pad 1, size 4",
        "data_seed": "0",
        "codec": "f32",
        "record": f"{RECORD} bytes a sample and view",
        "identity": identity_hash(identity_of(many)).hex(),
        "views": "2 whole; 2 declared complete",
        "blocks": "4 of 4 in the views begun, 2 a view",
        "on disk": f"{size / 1e6:.1f} MB; a view has {size / 2e6:.1f} MB",
        "codec loses": "nothing: f32 keeps every bit",
    }
    assert code == 0 and str(cache) in out and expected.items() <= rows.items()
    assert f"weights {'ab' * 32}" in rows["teacher"] and "architecture resnet20" in rows["teacher"]
    right = sum((logits_of(many.keys, view).argmax(axis=1) == many.labels).sum() for view in range(2))
    assert rows["teacher right"] == f"{right / (2 * MANY):.2%} of 8,266 views, by plain argmax"
    assert "host here" in rows["session 1"] and "time 2023-11-1" in rows["session 1"]
    assert rows["session 1"].endswith("cache_logits.py 'my config.yaml'")


def test_info_of_an_unfinished_and_damaged_cache(tmp_path: Path, many: Records, run: Run) -> None:
    writer = CacheWriter(tmp_path, "t", identity_of(many, codec="u8"), many.rows())
    assert rows_of(run("info", writer.folder)[1])["views"] == "0 whole; unfinished"
    for cell in ((0, 0), (0, 1), (2, 1), (3, 0)):
        write_cell(writer, cell)
    rows = rows_of(run("info", writer.folder)[1])
    assert rows["views"] == "1 whole; unfinished 2 views begun: 2, 3"
    assert rows["blocks"] == "4 of 6 in the views begun, 2 a view"
    assert rows["teacher right"].endswith(f"of {2 * BLOCK_ROWS + 2 * 37:,} views, by plain argmax")
    assert " at T=1, " in rows["codec loses"] and "1% is allowed" in rows["codec loses"]
    os.truncate(writer.folder / "v003/b00000.lc", 100)
    (writer.folder / "made.json").write_text('{"sessions": 3}')
    (writer.folder / "done.json").write_text("{}")
    (writer.folder / "notes.txt").write_text("")
    rows = rows_of(run("info", writer.folder)[1])
    assert "1 block; `verify` names them" in rows["damaged"] and "done.json is damaged" in rows["damaged"]
    assert rows["teacher right"].endswith(f"of {BLOCK_ROWS + 2 * 37:,} views, by plain argmax")
    assert rows["stray"] == "1 file, such as notes.txt"


# ---- flatness ----


@pytest.fixture(scope="module")
def tailed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """201 images, in classes of 120, 60, 12, 6 and 3."""
    labels = np.repeat(np.arange(5), [120, 60, 12, 6, 3])
    samples = [sample._replace(label=int(labels[i])) for i, sample in enumerate(some_samples(len(labels)))]
    return make_records(tmp_path_factory.mktemp("tailed") / "a.beton", samples)


def sharing(parent: Path, records: Records, own: float, codec: str = "f32", views: int = 2) -> Path:
    """A teacher whose largest class shares its images with the smallest one: own : 0; certain of the others. Views differ."""
    writer = CacheWriter(parent, "t", identity_of(records, codec=codec), records.rows())
    table = 200 * np.eye(5)
    table[0, 4], table[0, 0] = 200, 200 + own
    for view in range(views):
        logits = (table[writer.rows["label"]] + view).astype(np.float32)
        logits[: 60 * view] = 0
        writer.write((view, 0), logits, prints_of(writer.rows["key"], view))
    writer.finish(views, {})
    return writer.folder


def test_the_table_and_the_recommendation_in_both_spellings(tmp_path: Path, tailed: Records, run: Run) -> None:
    """120 s against 120 (1 - s) + 3 with s = sigmoid(0.4 / T): equal at T = 0.4 / log(123 / 117) = 8; the grid has 9."""
    folder = sharing(tmp_path, tailed, 0.4)
    code, out, _ = run("flatness", folder, "--p", 0.5)
    virtual = virtual_examples(LogitCache(folder), tailed.keys)
    lines = {
        line.strip("│ ").split()[0]: [cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()[4:]
    }
    share = np.array([120, 60, 12, 6, 3]) / 201
    nats = -(share * np.log(share)).sum()
    assert lines["images"][2:8] == [
        *("120.0", "60.0", "7.0", f"{3 / 120:.3f}", f"{nats:.3f}", f"{nats / np.log(5):.1%}"),
    ]
    at_1 = virtual[0]
    assert lines["1"][1:6] == ["0.5", f"{at_1[0]:.1f}", "60.0", f"{at_1[2:].mean():.1f}", f"{at_1[4] / at_1[0]:.3f}"]
    assert lines["9"][1] == "4.5" and lines["9"][-1] == "0.000%"
    assert code == 0 and "many" in out and "201 images under 1 of 2 views" in out
    assert "recommended: T = 9, that is distill.tau=4.5 distill.p=0.5 or distill.tau=9 distill.p=1\n" in out
    out = run("flatness", folder)[1]
    assert "recommended: T = 9, that is distill.tau=9 distill.p=1\n" in out


def test_a_class_by_class_table(tmp_path: Path, tailed: Records, run: Run) -> None:
    out = run("flatness", sharing(tmp_path, tailed, 0.4), "--classes")[1]
    names = [line.split()[1] for line in out.splitlines() if any(f"│ {name} " in line for name in CLASSES)]
    assert names == CLASSES  # from the most frequent to the rarest
    (bee,) = [line for line in out.splitlines() if "│ bee " in line]
    assert bee.split("│")[2].strip() == "60" and bee.split("│")[3].strip() == "60.0"


def test_no_temperature_is_high_enough(tmp_path: Path, tailed: Records, run: Run) -> None:
    out = run("flatness", sharing(tmp_path, tailed, 3.0))[1]
    assert "recommended: T = 20, that is distill.tau=20" in out
    assert "no T up to 20 lifts the rarest third of classes to the most frequent third (0.9" in out


def test_more_views(tmp_path: Path, tailed: Records, run: Run) -> None:
    folder = sharing(tmp_path, tailed, 0.4)
    report = tmp_path / "f.json"
    code, out, _ = run("flatness", folder, "--views", 2, "--json", report)
    assert code == 0 and "under 2 of 2 views" in out
    found = [row["classes"] for row in json.loads(report.read_text())["distributions"]]
    assert np.array_equal(found, virtual_examples(LogitCache(folder), tailed.keys, views=2))
    code, _, err = run("flatness", folder, "--views", 3)
    assert code == 2 and f"--views 3: cache {folder} holds 2; give at most that" in err


def test_json(tmp_path: Path, tailed: Records, run: Run) -> None:
    folder, path = sharing(tmp_path, tailed, 0.4, codec="f16"), tmp_path / "f.json"
    assert run("flatness", folder, "--p", 0.5, "--json", path)[0] == 0
    report = json.loads(path.read_text())
    assert report["cache"] == folder.name and report["images"] == [120, 60, 12, 6, 3] and report["views"] == 1
    assert report["recommended"] == {"T": 9, "tau": 4.5, "p": 0.5, "flat": True}
    assert [(row["T"], row["tau"]) for row in report["distributions"]] == [(t, t / 2) for t in TEMPERATURES]
    for row in report["distributions"]:
        assert np.isclose(sum(row["classes"]), 201) and row["few"] == np.mean(row["classes"][2:])
        assert row["certified_loss"] > 0 and 0 < row["entropy_of_log_classes"] <= 1


def test_records_that_are_part_of_the_cache(tmp_path: Path, tailed: Records, run: Run) -> None:
    """For a student without the largest class, its own images count."""
    folder, path = sharing(tmp_path, tailed, 0.4), tmp_path / "f.json"
    rest = [s._replace(label=int(tailed.labels[i])) for i, s in enumerate(some_samples(201)) if tailed.labels[i]]
    part = make_records(tmp_path / "part.beton", rest)
    code, out, _ = run("flatness", folder, "--data", part.path, "--json", path)
    report = json.loads(path.read_text())
    assert code == 0 and "81 images under" in out and report["images"] == [0, 60, 12, 6, 3]
    assert np.allclose(report["distributions"][0]["classes"], [0, 60, 12, 6, 3], atol=1e-6)
    other = make_records(tmp_path / "classes.beton", rest, CLASSES[::-1])
    code, _, err = run("flatness", folder, "--data", other.path)
    assert code == 2 and "has other classes than cache" in err


def test_a_codec_that_loses_too_much_is_marked(tmp_path: Path, few: Records, run: Run) -> None:
    """One class far below the rest: 8 bits over that range lose all information about the others."""
    writer = CacheWriter(tmp_path, "t", identity_of(few, codec="u8"), few.rows())
    logits = logits_of(writer.rows["key"], 0)
    logits[:, 1] = -8000
    writer.write((0, 0), logits, prints_of(writer.rows["key"], 0))
    writer.finish(1, {})
    code, out, _ = run("flatness", writer.folder)
    assert code == 0 and "% ! │" in out
    assert "codec u8 loses more than the 1% that training allows at T = 1, " in out and "cache.codec=f32" in out
    assert "(refused)" in rows_of(run("info", writer.folder)[1])["codec loses"]


def test_a_picture(tmp_path: Path, tailed: Records, run: Run) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")
    from matplotlib.image import imread

    folder, path = sharing(tmp_path, tailed, 0.4), tmp_path / "f.png"
    assert run("flatness", folder, "--png", path)[0] == 0
    image = imread(path)
    assert min(image.shape[:2]) > 300 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10
    code, _, err = run("flatness", folder, "--png", tmp_path / "nowhere/f.png")
    assert code == 2 and "cannot be written: No such file" in err


def test_without_matplotlib(tmp_path: Path, tailed: Records, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("flatness", sharing(tmp_path, tailed, 0.4), "--png", tmp_path / "f.png")
    assert code == 2 and err == "error: --png needs matplotlib; type: pip install matplotlib\n" and "recommended" in out


=======
>>>>>>> w-tools2
@pytest.mark.parametrize("words", [["--p", "0"], ["--p", "inf"], ["--views", "0"]])
def test_settings_that_make_no_sense(intact: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["flatness", str(intact), *words])
    assert caught.value.code == 2 and "allowed" in capsys.readouterr().err
