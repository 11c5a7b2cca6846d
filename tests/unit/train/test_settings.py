import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import pytest
import yaml

from pipelines.errors import UserError
from train import settings
from train.config import Config
from train.evaluate import EvaluateConfig
from train.settings import Words, describe, diff, flatten, keys, load, nearest, parse_args, to_yaml, type_text


@pytest.fixture(autouse=True)
def usual_recursion_limit() -> Iterator[None]:
    """Other tests import libraries that raise it, above the depth of what is nested too deeply here."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@dataclass(kw_only=True)
class Crop:
    kind: Literal["center", "pad", "off"] = "center"
    "how the crop is cut"
    size: int = 224


@dataclass(kw_only=True)
class Data:
    train: str | None = field(default=None, metadata={"path": True})
    "training records"
    crop: Crop = field(default_factory=Crop)
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    pair: tuple[int, int] = (1, 2)
    weights: dict[str, float] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list, metadata={"path": True})
    """Several lines
    become one."""
    workers: int | None = None


@dataclass(kw_only=True)
class Optim:
    lr: float = 0.1
    "peak learning rate"
    nesterov: bool = True
    clip: Optional[float] = None  # noqa: UP045 - both spellings are read

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr}: must be above 0")
        if self.clip == 0:
            raise ValueError("clip=0 would stop everything")


@dataclass(kw_only=True)
class Root:
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    name: str = "x"
    run: str | None = None
    seed: int = 0


@pytest.fixture
def recipe(tmp_path: Path):
    """A function that writes a config file and gives its path."""

    def write(text: str = "") -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_file_and_overrides_in_that_order(recipe):
    path = recipe("# head comment\noptim:\n  lr: 0.5\n  nesterov: false\ndata: {crop: {size: 32}}\nseed: 3\n")
    config = load(Root, path, ["optim.lr=0.25", "seed=4", "seed=5"])
    assert config == Root(
        data=Data(crop=Crop(size=32)), optim=Optim(lr=0.25, nesterov=False), name="x", run=None, seed=5
    )
    assert load(Root, recipe("")) == Root()
    assert load(Root, recipe("optim:\n  # lr: 3\n")) == Root()  # a section with everything commented out


VALUES = [  # (key, text, value): the declared type decides, in a file and on the command line alike
    ("optim.lr", "1e-3", 0.001),
    ("optim.lr", "3", 3.0),
    ("optim.clip", "null", None),
    ("optim.clip", "2.5", 2.5),
    ("optim.nesterov", "off", False),
    ("optim.nesterov", "True", True),
    ("seed", "007", 7),
    ("name", "007", "007"),
    ("name", "1e-3", "1e-3"),
    ("name", "true", "true"),
    ("name", "1_000", "1_000"),
    ("name", "2024-01-01", "2024-01-01"),
    ("name", "'null'", "null"),
    ("name", "''", ""),
    ("run", "007", "007"),
    ("run", "null", None),
    ("run", "~", None),
    ("data.train", "/data/a b.beton", "/data/a b.beton"),
    ("data.crop.kind", "off", "off"),
    ("data.mean", "[1e-1, 2, .5]", [0.1, 2.0, 0.5]),
    ("data.pair", "[3, 4]", (3, 4)),
    ("data.weights", "{007: 1e-2}", {"007": 0.01}),
    ("data.paths", "[a, 007, null.txt]", ["a", "007", "null.txt"]),
    ("data.paths", "[]", []),
    ("data.workers", "4", 4),
]


@pytest.mark.parametrize("key, text, value", VALUES)
def test_values(recipe, key, text, value):
    by_line = load(Root, recipe(), [f"{key}={text}"])
    document = text
    for name in reversed(key.split(".")):
        document = f"{{{name}: {document}}}"
    by_file = load(Root, recipe(document))
    for config in (by_line, by_file):
        got = flatten(config)[key]
        assert got == value and type(got) is type(value)
    assert load(Root, recipe(to_yaml(by_line))) == by_line  # what is written equals what was read


def _both_ways(cls: type, path: Path, overrides: list[str]) -> list[object]:
    leaves = list(settings._file_leaves(cls, path))
    for override in overrides:
        leaves += settings._override_leaves(cls, override)
    assert all(map(settings._is_alone, leaves))
    return [settings._of_each(cls, leaves, keys(cls)), settings._of_tree(cls, leaves, keys(cls), path)]


def test_values_read_alone_are_those_of_the_whole_tree(recipe):
    """What is read with and without OmegaConf's tree is the same; also after another value of the same key."""
    given = [f"{key}={text}" for key, text, _ in VALUES if not text.startswith("{")]
    sets = [
        (Root, recipe("optim: {clip: 3}"), words) for words in ([], given, given[::-1], *([word] for word in given))
    ]
    sets += [(Config, path, []) for path in sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))]
    for cls, path, overrides in sets:
        alone, of_tree = _both_ways(cls, path, overrides)
        assert alone == of_tree and repr(alone) == repr(of_tree), (path, overrides)


def test_what_is_read_can_be_changed_without_changing_what_is_read_next(recipe):
    for overrides in ([], ["data.mean=[1, 2]"]):
        first, fresh = (load(Root, recipe(), overrides) for _ in range(2))
        first.data.mean.append(7.0)
        first.data.weights["a"] = 1.0
        assert load(Root, recipe(), overrides) == fresh != first


def test_a_mapping_adds_to_the_one_before_it(recipe):
    path = recipe("data: {weights: {a: 1}}")
    assert load(Root, path, ["data.weights={b: 2}"]).data.weights == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("text", ["a: b", "[a", "*x", "@x", "a #b", "%", "&", "{", "a=b", "x\ty", "- a"])
def test_text_on_the_command_line_may_hold_any_character(recipe, text):
    config = load(Root, recipe(), [f"name={text}"])
    assert config.name == text
    assert load(Root, recipe(to_yaml(config))) == config


def test_a_whole_section_on_the_command_line(recipe):
    assert load(Root, recipe(), ["data.crop={kind: pad, size: 32}"]).data.crop == Crop(kind="pad", size=32)


def test_environment_variables(recipe, monkeypatch):
    monkeypatch.setenv("WHERE", "/somewhere")
    assert load(Root, recipe("data: {train: '${oc.env:WHERE}/a.beton'}")).data.train == "/somewhere/a.beton"
    with pytest.raises(UserError, match=r"data.train \(command line\): .*'NOT_THERE' not found"):
        load(Root, recipe(), ["data.train=${oc.env:NOT_THERE}/a"])


WRONG = [  # (text of the override, what the message must hold)
    ("optim.lr=abc", "optim.lr=abc (command line): optim.lr takes float"),
    ("optim.lr=", "optim.lr=null (command line): optim.lr takes float"),
    ("optim.clip=x", "optim.clip takes float or null"),
    ("optim.nesterov=maybe", "optim.nesterov takes bool"),
    ("seed=1.5", "seed takes int"),
    ("seed=[1]", "seed takes int"),
    ("name=", "name takes str"),
    ("data.crop.kind=centre", "takes center|pad|off; did you mean data.crop.kind=center?"),
    ("data.mean=0.5", "data.mean=0.5 (command line): data.mean takes [float, ...]"),
    ("data.mean=[0.5, x]", "data.mean=[0.5, x] (command line): data.mean takes [float, ...]"),
    ("data.mean=[0.5", "data.mean=[0.5 (command line): not valid YAML"),
    ("data.pair=[1]", "data.pair takes [int, int]"),
    ("data.paths=a", "data.paths takes [str, ...]"),
    ("data.paths=null", "data.paths takes [str, ...]; its default is []"),
    ("optim=3", "optim=3 (command line): optim is a section; its keys: optim.lr, optim.nesterov, optim.clip"),
    ("optim.lr=.inf", "optim.lr=inf (command line): takes finite numbers"),
    ("optim.lr=1e400", "optim.lr=1e400 (command line): takes finite numbers"),
    ("optim.clip=nan", "optim.clip=nan (command line): takes finite numbers"),
    ("data.mean=[0, -inf, 1]", "data.mean=[0, -inf, 1] (command line): takes finite numbers"),
    ("data.weights={a: nan}", "takes finite numbers"),
    ("data.pair=[1, 9223372036854775808]", "takes integers below 2**63"),
    ("seed=" + "9" * 400, "... (400 characters) (command line): takes integers below 2**63"),
    ("seed=" + "9" * 5000, "(command line): seed takes int"),
    ("optim.nesterov=2", "optim.nesterov=2 (command line): optim.nesterov takes bool"),
    ("data.paths=[[a]]", "data.paths=[[a]] (command line): data.paths takes [str, ...]"),
    ("data.mean=[[1], 2]", "data.mean takes [float, ...]"),
    ("data.mean=[{a: 1}]", "data.mean takes [float, ...]"),
    ("data.mean=" + "[" * 99 + "]" * 99, "data.mean takes [float, ...]"),
    ("data.mean=" + "[" * 999 + "]" * 999, "nested too deeply"),
    ("data=" + "[" * 999, "nested too deeply"),
    ("data.paths=&a [*a]", "data.paths=&a [*a] (command line): data.paths takes [str, ...]"),
    ("data.paths=[!!python/object/apply:os.system [ls]]", "data.paths takes [str, ...]"),
    ("seed=${seed}", "seed (command line): Recursive interpolation detected"),
    ("name=${nokey}", "name (command line): Interpolation key 'nokey' not found"),
    ("name=a\nb", "name=a\\nb (command line): takes a text on one line, without control characters; this holds '\\n'"),
    ("name=a\0b", "this holds '\\x00'"),
    ("name=\x1b[31m", "name=\\x1b[31m (command line)"),
    ("name=\udcff", "name=\\udcff (command line): takes UTF-8 text"),
    ("name=" + "a" * 5000, "takes a text of at most 4095 bytes, this has 5,000"),
    ("o" * 100_000 + "=1", "unknown key 'oooo"),
    ("optim.lr=-1", "optim.lr=-1.0: must be above 0"),
    ("optim.clip=0", "optim: clip=0 would stop everything"),
    ("optim.lr", "'optim.lr' is not a setting; type KEY=VALUE"),
    ("=3", "'=3' is not a setting"),
    ("data.train=???", "data.train must be given; type data.train=..."),
    ("optim={lr: 1, lr: 2}", "'lr' is given twice"),
    ("optim..lr=3", "unknown key 'optim..lr' (command line); nearest: optim.lr"),
    ("optim.lr.x=3", "unknown key 'optim.lr.x' (command line)"),
    ("data.paths[0]=3", "unknown key 'data.paths[0]' (command line); nearest: data.paths"),
    ("model.lr=1", "nearest: optim.lr"),
    ("learning_rate=1", "unknown key 'learning_rate' (command line); --help lists all keys"),
]


@pytest.mark.parametrize("override, message", WRONG)
def test_wrong_overrides(recipe, override, message):
    with pytest.raises(UserError) as caught:
        load(Root, recipe(), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["tensorbord", "[tensorbord]"])
def test_a_misspelt_choice_of_a_list(recipe, given):
    meant = r"takes \[tensorboard\|wandb, ...\]; did you mean track.trackers=\[tensorboard\]\?"
    with pytest.raises(UserError, match=meant):
        load(Config, recipe(), [f"track.trackers={given}"])


def test_a_list_without_its_brackets(recipe):
    with pytest.raises(UserError, match=r"cache.paths takes \[str, ...\]; did you mean cache.paths=\[caches\]\?"):
        load(Config, recipe(), ["cache.paths=caches"])


WRONG_FILES = [
    (
        "seed: 1\noptim:\n  lr: 0.1\n  nestrov: true\n",
        "unknown key 'optim.nestrov' (FILE, line 4); nearest: optim.nesterov",
    ),
    ("optm: {lr: 1}", "unknown key 'optm' (FILE, line 1); nearest: optim"),
    ("optim.lr: 0.1", "'optim.lr' (FILE, line 1): a file is nested"),
    ("\nseed: one", "seed=one (FILE, line 2): seed takes int"),
    ("data: {mean: [1, x]}", "(FILE, line 1): data.mean takes [float, ...]"),
    ("optim: 3", "optim=3 (FILE, line 1): optim is a section"),
    ("- seed", "FILE: a config file is a mapping of sections"),
    ("seed: 1\nseed: 2", "'seed' is given twice (FILE, line 2)"),
    ("seed: 1\noptim: {lr: [1\n", "FILE, line 3: not valid YAML"),
    ("? [a]\n: 1", "FILE: a key must be a plain name"),
    ("seed: \x01", "FILE: not valid YAML"),
    ("data:\n  train: ???\n", "data.train must be given"),
    ("data:\n\ttrain: x", "FILE, line 2: not valid YAML: found character '\\t'"),
    ("seed: 1\n---\nseed: 2", "FILE, line 2: not valid YAML"),
    ("data: " + "[" * 999, "FILE: nested too deeply"),
    ("".join(f"{' ' * depth}a:\n" for depth in range(500)), "FILE: nested too deeply"),
    ("data: {paths: &a [*a]}", "data.paths=&a [*a] (FILE, line 1): data.paths takes [str, ...]"),
    ("data: &a {crop: *a}", "unknown key 'data.crop.crop' (FILE, line 1)"),
    ("<<: {seed: 1}", "unknown key '<<' (FILE, line 1)"),
    ("data: !!set {a}", "unknown key 'data.a' (FILE, line 1)"),
    ("seed: !!python/object/apply:os.mkdir [pwned]", "seed takes int"),
    ('name: "a\\0b"', "takes a text on one line"),
    ('name: "\\ud800"', "takes UTF-8 text"),
    ("seed: 1\n" + "#" * 2**17, "FILE has more than 131,072 characters: give a YAML file of settings"),
    ("hello", "FILE: a config file is a mapping of sections, not hello"),
]


@pytest.mark.parametrize("text, message", WRONG_FILES)
def test_wrong_files(recipe, text, message):
    path = recipe(text)
    with pytest.raises(UserError) as caught:
        load(Root, path)
    assert message.replace("FILE", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


def test_aliases_of_aliases_cost_nothing(recipe):
    lists = ["a: &a [x, x, x, x, x, x, x, x]"] + [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(UserError, match="data.mean takes .float, ..."):
        load(Root, recipe("data: {mean: " + f"[{', '.join(line.partition(': ')[2] for line in lists)}]" + "}"))


def test_paths_begin_at_the_home_folder(recipe, monkeypatch):
    """In a file and on the command line alike, also in lists; a text that is no path keeps its `~`."""
    monkeypatch.setenv("HOME", "/users/me")
    given = ["data.train=~/a b.beton", "data.paths=[~/c, ~, ./~/d, x/~]", "name=~/e"]
    with pytest.raises(UserError, match=r"data.paths takes"):  # YAML's null
        load(Root, recipe(), given)
    given[1] = "data.paths=[~/c, ./~/d, x/~]"
    by_line = load(Root, recipe(), given)
    by_file = load(Root, recipe("data: {train: ~/a b.beton, paths: [~/c, ./~/d, x/~]}\nname: ~/e"))
    for config in (by_line, by_file):
        assert config.data.train == "/users/me/a b.beton" and config.name == "~/e"
        assert config.data.paths == ["/users/me/c", "./~/d", "x/~"]
        assert load(Root, recipe(to_yaml(config))) == config


@pytest.mark.parametrize(
    "value, message",
    [
        (
            "~no_such_user/x",
            "~no_such_user is no home folder here; a file whose name begins with ~ is ./~no_such_user/x",
        ),
        ("''", "takes a path, which is not empty"),
        ("a/" + "b" * 256, "takes a path, in which no name is longer than 255 bytes"),
        ("é" * 128, "takes a path, in which no name is longer than 255 bytes"),
    ],
)
def test_paths_that_cannot_be(recipe, value, message):
    for override in (f"data.train={value}", f"data.paths=[{value}]"):
        with pytest.raises(UserError) as caught:
            load(Root, recipe(), [override])
        assert message in str(caught.value)
    assert load(Root, recipe(), [f"name={value}"])


def test_every_text_is_a_path_or_known_not_to_be_one():
    no_paths = {"model.name", "distill.teacher_arch", "track.project", "optim.no_decay"}
    texts = {name for name, key in keys(EvaluateConfig).items() if "str" in type_text(key.hint)}
    paths = {name for name, key in keys(EvaluateConfig).items() if key.is_path}
    assert texts - paths == no_paths and paths < texts


def test_a_value_that_must_be_given_may_come_from_the_command_line(recipe):
    assert load(Root, recipe("data:\n  train: ???\n"), ["data.train=a"]).data.train == "a"


def test_missing_and_unreadable_files(recipe, tmp_path):
    path = recipe()
    with pytest.raises(UserError, match=r"cannot read config file .*recpie.yaml: No such file.*nearest: .*recipe.yaml"):
        load(Root, tmp_path / "recpie.yaml")
    with pytest.raises(UserError, match="cannot read config file .*: Is a directory"):
        load(Root, tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        load(Root, path)


def _misspellings(key: str) -> list[str]:
    """The last name of a key with a letter doubled, two letters swapped, one lost."""
    section, dot, name = key.rpartition(".")
    spellings = [name[0] + name]
    if len(name) > 3:
        spellings += [name[:1] + name[2] + name[1] + name[3:], name[:-2] + name[-1]]
    return [section + dot + spelling for spelling in spellings if section + dot + spelling != key]


@pytest.mark.parametrize("key", list(keys(Config)))
def test_misspelt_keys_lead_to_the_right_one(recipe, key):
    for wrong in _misspellings(key):
        with pytest.raises(UserError) as caught:
            load(Config, recipe(), [f"{wrong}=1"])
        assert str(caught.value) == f"unknown key '{wrong}' (command line); nearest: {key}"


def test_nearest():
    known = ["optim.lr", "schedule.lr", "seed"]
    assert nearest("lr", known) in known[:2]
    assert nearest("shedule.lr", known) == "schedule.lr"
    assert nearest("training.sed", known) == "seed"
    assert nearest("zzz", known) is None


def test_the_whole_tree(recipe):
    """Every section's dataclass is one that this machinery can read, write, explain and compare."""
    config = load(Config, recipe())
    assert config == Config() and load(Config, recipe(to_yaml(config))) == config
    assert load(Config, recipe(), ["data.verify=off", "optim.lr=2e-1", "run=007"]).data.verify == "off"
    undocumented = [name for name, key in keys(Config).items() if not key.doc]
    assert undocumented == []
    with pytest.raises(UserError, match=r"^optim.nesterov=true with optim.momentum=0"):
        load(Config, recipe("optim: {momentum: 0, nesterov: true}"))


def test_diff():
    old, new = Root(), Root(optim=Optim(lr=0.2), data=Data(train="a", paths=["b"]))
    assert diff(old, new) == ["data.train: null -> a", "data.paths: [] -> [b]", "optim.lr: 0.1 -> 0.2"]
    assert diff(old, Root()) == []


def test_describe_shows_types_defaults_and_docs():
    text = describe(Root)
    assert "  data.crop.kind: center|pad|off = center\n      how the crop is cut\n" in text
    assert "  data.paths: [str, ...] = []\n      Several lines become one.\n" in text
    assert "  data.workers: int or null = null\n" in text
    assert "  data.pair: [int, int] = [1, 2]\n" in text
    assert "  optim.lr: float = 0.1\n      peak learning rate\n" in text
    assert all(f"  {key}: " in text for key in keys(Root))


@dataclass(kw_only=True)
class Needs:
    what: str
    "given by you"


def test_a_required_field():
    assert describe(Needs) == "  what: str = (must be given)\n      given by you"
    with pytest.raises(UserError, match="what must be given"):
        load(Needs, os.devnull)
    assert load(Needs, os.devnull, ["what=x"]).what == "x"


def test_parse_args(recipe, capsys):
    path = recipe("seed: 2")
    config, options = parse_args([str(path), "--dry-run", "optim.lr=1e-2"], "Trains.", Root)
    assert (config.seed, config.optim.lr) == (2, 0.01)
    assert (options.config, options.overrides, options.dry_run) == (path, ["optim.lr=1e-2"], True)
    assert not parse_args([str(path)], "Trains.", Root)[1].dry_run

    with pytest.raises(SystemExit) as left:
        parse_args([str(path), "--print-config", "seed=3"], "Trains.", Root)
    assert left.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 3

    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as left:
            parse_args([flag], "Trains a student.", Root)
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert "usage:" in shown and "Trains a student." in shown and describe(Root) in shown

    @dataclass(kw_only=True)
    class Evaluation(Root):
        split: str = "test"
        "which records"

    with pytest.raises(SystemExit):
        parse_args(["--help"], "Evaluates.", Evaluation, Words("RUN", "evaluate one batch"))
    shown = capsys.readouterr().out
    assert (
        "RUN [KEY=VALUE ...]" in shown and "--dry-run        evaluate one batch" in shown and "CONFIG.yaml" not in shown
    )
    assert (
        describe(Evaluation).splitlines()[0] == "  split: str = test"
        and describe(Evaluation).count("  split: str") == 1
    )

    with pytest.raises(SystemExit):
        parse_args(["--help"], "Predicts.", Evaluation, Words("RUN", dry_run=None))
    shown = capsys.readouterr().out
    assert "RUN [KEY=VALUE ...] [--print-config]" in shown and "--dry-run" not in shown


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "the first argument must be a config file"),
        (["optim.lr=3"], "must be a config file (.yaml), got 'optim.lr=3'"),
        (["FILE", "--dry-rnu"], "unknown flag '--dry-rnu'; nearest: --dry-run"),
        (["FILE", "--xyz", "0.1"], "unknown flag '--xyz'; allowed: --help, --print-config, --dry-run"),
        (
            ["FILE", "--optim.lr=0.1"],
            "unknown flag '--optim.lr=0.1'; settings have no dashes: type optim.lr=...",
        ),
        (["FILE", "optim.lr", "0.1"], "'optim.lr' is not a setting; type KEY=VALUE"),
    ],
)
def test_wrong_command_lines(recipe, argv, message):
    with pytest.raises(UserError) as caught:
        parse_args([str(recipe()) if arg == "FILE" else arg for arg in argv], "Trains.", Root)
    assert message in str(caught.value)
