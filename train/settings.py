"""Settings: from a YAML file and `a.b=c` overrides to typed dataclasses.

Owns the machinery that reads, checks, prints and compares a tree of settings; config.py has the tree itself, values.py what is
refused of single values. Scalars reach OmegaConf's structured mode as the text that was written, so the declared type alone
decides what they mean: `007` stays a name, `1e-3` is a number, `off` a choice. Invariant: what `load` returns has only known
keys and declared types, and loading its `to_yaml` gives an equal tree.
"""

import ast
import copy
import difflib
import functools
import inspect
import operator
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipelines.errors import UserError, first_line, quoted, where_to_look
from pipelines.files import home_expanded
from train.values import checked, has_shape, without_none

C = TypeVar("C")
COMMAND_LINE = "command line"
FLAGS = ("--help", "--print-config", "--dry-run")
_FILE_BYTES = 2**17  # of a config file; a full one has 5,000, and reading much more takes minutes


class Key(NamedTuple):
    """One setting: declared type, default (`dataclasses.MISSING` when it must be given) and explanation.

    is_path: whether it names a file or folder (or several), which the metadata of its field says: {"path": True}.
    """

    hint: Any
    default: Any
    doc: str
    is_path: bool


class Leaf(NamedTuple):
    """One value as written: only text, None, lists and dictionaries; `origin` is for error messages."""

    key: str
    value: Any
    origin: str


class Words(NamedTuple):
    """What differs between the programs in their --help: the first arguments, and what a dry run does (None: there is none)."""

    first: str = "CONFIG.yaml"
    dry_run: str | None = "check everything, train nothing, write nothing"


_OF_TRAININGS = Words()


@dataclass
class Options:
    """What the command line says besides settings."""

    config: Path
    overrides: list[str]
    dry_run: bool


def _is_section(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


@functools.cache  # evaluating the annotations of all sections takes a tenth of the time of `load`
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def keys(cls: type, prefix: str = "") -> dict[str, Key]:
    """Every dotted key below a dataclass, in declaration order."""
    docs, hints, found = _field_docs(cls), _hints(cls), {}
    for item in fields(cls):
        hint = hints[item.name]
        if _is_section(hint):
            found |= keys(hint, f"{prefix}{item.name}.")
        else:
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            doc = item.metadata.get("doc", docs.get(item.name, ""))
            found[prefix + item.name] = Key(hint, default, doc, item.metadata.get("path", False))
    return found


@functools.cache  # reading and parsing the source takes a tenth of a second
def _field_docs(cls: type) -> dict[str, str]:
    """The bare strings under the fields of a dataclass and its bases, each as one line."""
    docs = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = ast.literal_eval(following.value)
                docs[ast.unparse(statement.target)] = " ".join(text.split())
    return docs


def type_text(hint: Any) -> str:
    """A type in the words of the help: `float`, `a|b`, `[str, ...] or null`."""
    hint, optional = without_none(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        text = "|".join(map(str, args))
    elif origin is list or (origin is tuple and args[-1] is Ellipsis):
        text = f"[{type_text(args[0])}, ...]"
    elif origin is tuple:
        text = f"[{', '.join(map(type_text, args))}]"
    elif origin is dict:
        text = f"{{{type_text(args[0])}: {type_text(args[1])}, ...}}"
    else:
        text = hint.__name__
    return f"{text} or null" if optional else text


def value_text(value: Any) -> str:
    """A value as a user would type it."""
    if value is MISSING:
        return "(must be given)"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _as_given(value: Any) -> str:
    """A value that is still text, without the quotes that tell text from a number."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_given, value))}]"
    return value if isinstance(value, str) else value_text(value)


def describe(cls: type) -> str:
    """Every key with its type, default and explanation, for --help; those that a program adds to the tree come first."""
    lines, section, known = [], "", keys(cls)
    added = {} if cls.__base__ is object else {name: known[name] for name in cls.__annotations__ if name in known}
    for name, key in (added | known).items():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines.append("")
        lines.append(f"  {name}: {type_text(key.hint)} = {value_text(key.default)}")
        lines += textwrap.wrap(key.doc, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def nearest(given: str, known: list[str]) -> str | None:
    """The key that was probably meant: the same last name elsewhere, else the closest spelling."""
    last = given.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last]
    close = difflib.get_close_matches(given, same, n=1, cutoff=0) or difflib.get_close_matches(given, known, n=1)
    if not close:
        by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
        close = [by_last[name] for name in difflib.get_close_matches(last, list(by_last), n=1)]
    return close[0] if close else None


def _plain(node: yaml.Node, origin: str) -> Any:
    """A YAML node, which has the shape of its setting's type, as text, None, lists and dictionaries."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, origin) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {name: _plain(item, origin) for name, item in _pairs(node, origin)}
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:float" and re.fullmatch(r"[-+]?\.(inf|nan)", node.value, re.IGNORECASE):
        return node.value.replace(".", "")  # YAML's spelling of infinity -> Python's
    return node.value


def _pairs(node: yaml.MappingNode, origin: str) -> Iterator[tuple[str, yaml.Node]]:
    """Names and values of a YAML mapping; a repeated name is an error, where YAML would drop the first."""
    seen = set()
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise UserError(f"{origin}: a key must be a plain name")
        if name.value in seen:
            raise UserError(f"'{name.value}' is given twice ({_at(origin, name)}); leave one")
        seen.add(name.value)
        yield name.value, value


def _at(origin: str, node: yaml.Node) -> str:
    return origin if origin == COMMAND_LINE else f"{origin}, line {node.start_mark.line + 1}"


def _given(node: yaml.Node) -> str:
    """A YAML node as it was written."""
    start, end = node.start_mark, node.end_mark
    return quoted(" ".join((start.buffer or "")[start.pointer : end.pointer].split()))


@functools.lru_cache(64)  # a plan of many runs reads the same files again and again; nodes are only read
def _compose(text: str, what: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise UserError(
            f"{what}: nested too deeply; settings are sections, single values and lists of these"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise UserError(f"{what}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{what}: not valid YAML: {first_line(error)}") from error


def _unknown(key: str, origin: str, cls: type) -> UserError:
    known = list(keys(cls))
    if key in known:  # only a file can cause this: `optim.lr: 1` instead of a section
        section, _, name = key.rpartition(".")
        return UserError(f"'{key}' ({origin}): a file is nested; write `{section}:` and `{name}: ...` below it")
    sections = list(dict.fromkeys(parent for name in known for parent in _parents(name)))
    close = nearest(key, known + sections) if len(key) < 100 else None
    hint = f"nearest: {close}" if close else "--help lists all keys"
    return UserError(f"unknown key '{quoted(key)}' ({origin}); {hint}")


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _leaves(root: type, section: type, prefix: str, node: yaml.Node, origin: str) -> Iterator[Leaf]:
    """The settings in a YAML mapping that stands for the dataclass `section`, at `prefix` below `root`."""
    if node.tag == "tag:yaml.org,2002:null":
        return  # `optim:` with everything below it commented out
    if not isinstance(node, yaml.MappingNode):
        name = prefix.rstrip(".")
        raise UserError(
            f"{name}={_given(node)} ({_at(origin, node)}): {name} is a section; its keys: "
            + ", ".join(keys(section, prefix))
            if name
            else f"{origin}: a config file is a mapping of sections, not {_given(node)}"
        )
    hints = _hints(section)
    for name, child in _pairs(node, origin):
        if name not in hints:
            raise _unknown(prefix + name, _at(origin, child), root)
        if _is_section(hints[name]):
            yield from _leaves(root, hints[name], f"{prefix}{name}.", child, origin)
        else:
            yield _leaf(prefix + name, child, hints[name], _at(origin, child))


def _leaf(key: str, node: yaml.Node, hint: Any, origin: str) -> Leaf:
    if not has_shape(node, hint):
        raise UserError(f"{key}={_given(node)} ({origin}): {key} takes {type_text(hint)}")
    return Leaf(key, _plain(node, origin), origin)


def _file_leaves(cls: type, path: Path) -> Iterator[Leaf]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_FILE_BYTES + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"config file {path} is not UTF-8 text") from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        there = where_to_look(path, lambda name: name.endswith(".yaml")) if missing else []
        raise UserError("; ".join([f"cannot read config file {path}: {error.strerror}", *there])) from error
    if len(text) > _FILE_BYTES:
        raise UserError(f"config file {path} has more than {_FILE_BYTES:,} characters: give a YAML file of settings")
    node = _compose(text, str(path))
    return iter(()) if node is None else _leaves(cls, cls, "", node, str(path))


def _override_leaves(cls: type, override: str) -> Iterator[Leaf]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{quoted(override)}' is not a setting; type KEY=VALUE, e.g. seed=1 or optim.lr=0.1")
    hint = _hint_at(cls, key)
    if hint is None:
        raise _unknown(key, COMMAND_LINE, cls)
    if _is_section(hint):
        node = _compose(text, f"{quoted(override)} ({COMMAND_LINE})")
        return iter(()) if node is None else _leaves(cls, hint, f"{key}.", node, COMMAND_LINE)
    inner, _ = without_none(hint)
    if (inner is str or get_origin(inner) is Literal) and text[:1] not in ("'", '"'):
        # Not parsed as YAML: a path or a name may hold any character.
        return iter([Leaf(key, None if text in ("", "~", "null") else text, COMMAND_LINE)])
    node = _compose(text, f"{quoted(override)} ({COMMAND_LINE})")
    return iter([Leaf(key, None, COMMAND_LINE) if node is None else _leaf(key, node, hint, COMMAND_LINE)])


def keys_of(cls: type, overrides: list[str]) -> list[str]:
    """The keys that `a.b=c` overrides set."""
    return [leaf.key for override in overrides for leaf in _override_leaves(cls, override)]


def _hint_at(cls: type, key: str) -> Any:
    """The declared type of a dotted key (a dataclass for a section); None when there is no such key."""
    hint: Any = cls
    for name in key.split("."):
        if not _is_section(hint) or name not in (item.name for item in fields(hint)):
            return None
        hint = _hints(hint)[name]
    return hint


@functools.cache  # making it takes several times as long as copying it
def _empty_tree(cls: type) -> Any:
    return OmegaConf.structured(cls)


@functools.cache
def _defaults(cls: type) -> Any:
    """The tree of values of an empty file; None where one must be given."""
    try:
        return OmegaConf.to_container(_empty_tree(cls), throw_on_missing=True)
    except MissingMandatoryValue:
        return None


@functools.cache
def _single(hint: Any) -> type:
    """A dataclass with the one field `value` of a declared type."""
    return make_dataclass("Single", [("value", hint)])


@functools.lru_cache(4096)
def _alone(hint: Any, text: str | tuple[str | None, ...] | None) -> Any:
    """A value converted to its declared type; texts come again in file after file."""
    tree = copy.deepcopy(_empty_tree(_single(hint)))
    OmegaConf.update(tree, "value", list(text) if isinstance(text, tuple) else text)
    return OmegaConf.to_container(tree)["value"]  # pyright: ignore


def _is_alone(leaf: Leaf) -> bool:
    """Whether a setting's value depends on nothing else: `${...}` is read from the tree, ??? marks a missing value, and a
    mapping adds to the one before it."""
    items = leaf.value if isinstance(leaf.value, list) else [leaf.value]
    return all(item is None or (isinstance(item, str) and "${" not in item and item != "???") for item in items)


def load(cls: type[C], path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> C:
    """A YAML file with `a.b=c` overrides on top; a UserError names the key at fault and its origin."""
    leaves = list(_file_leaves(cls, Path(path)))
    for override in overrides:
        leaves += _override_leaves(cls, override)
    known, given = keys(cls), {leaf.key: leaf for leaf in leaves}
    in_tree = _defaults(cls) is None or not all(map(_is_alone, leaves))
    values = _of_tree(cls, leaves, known, path) if in_tree else _of_each(cls, leaves, known)
    for leaf in given.values():
        _check(values, leaf, known[leaf.key])
    return _build(cls, values, "")


def _of_each(cls: type, leaves: list[Leaf], known: dict[str, Key]) -> Any:
    """The values where none depends on another: what `_of_tree` gives, in a fifth of the time."""
    values = copy.deepcopy(_defaults(cls))
    for leaf in leaves:
        *sections, name = leaf.key.split(".")
        text = tuple(leaf.value) if isinstance(leaf.value, list) else leaf.value
        try:
            value = _alone(known[leaf.key].hint, text)
        except OmegaConfBaseException as error:
            raise _rejected(leaf, known[leaf.key]) from error
        functools.reduce(operator.getitem, sections, values)[name] = copy.copy(value)
    return values


def _of_tree(cls: type, leaves: list[Leaf], known: dict[str, Key], path: Path | str) -> Any:
    given, tree = {}, copy.deepcopy(_empty_tree(cls))
    for leaf in leaves:
        given[leaf.key] = leaf
        try:
            # "???" marks a value that the user of the file must give.
            OmegaConf.update(tree, leaf.key, leaf.value)
        except OmegaConfBaseException as error:
            raise _rejected(leaf, known[leaf.key]) from error
    try:
        return OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given; type {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        key = re.sub(r"\[.*", "", error.full_key or "")
        origin = given[key].origin if key in given else path
        raise UserError(f"{key} ({origin}): {first_line(error)}") from error


def _check(values: Any, leaf: Leaf, key: Key) -> None:
    """Put the checked value of a setting into the tree of values."""
    *sections, name = leaf.key.split(".")
    section = functools.reduce(operator.getitem, sections, values)
    try:
        section[name] = checked(section[name], key.hint, key.is_path)
    except ValueError as error:
        raise UserError(f"{leaf.key}={quoted(_as_given(leaf.value))} ({leaf.origin}): {error}") from error


def _rejected(leaf: Leaf, known: Key) -> UserError:
    inner, _ = without_none(known.hint)
    listed = get_origin(inner) is list
    element = get_args(inner)[0] if listed else inner
    choices = [str(arg) for arg in get_args(element)] if get_origin(element) is Literal else []
    items = leaf.value if isinstance(leaf.value, list) else [leaf.value]
    close = [near for item in items for near in difflib.get_close_matches(str(item), choices, n=1)]
    meant = f"; did you mean {leaf.key}={_as_given(close if listed else close[0])}?" if close else ""
    if listed and not close and leaf.value is not None and not isinstance(leaf.value, list):
        meant = f"; did you mean {leaf.key}=[{_as_given(leaf.value)}]?"
    if leaf.value is None and known.default is not MISSING:
        meant = f"; its default is {value_text(known.default)}"
    given = quoted(_as_given(leaf.value))
    return UserError(f"{leaf.key}={given} ({leaf.origin}): {leaf.key} takes {type_text(known.hint)}{meant}")


def _build(cls: type[C], values: Any, prefix: str) -> C:
    """The dataclass, its sections first; what a `__post_init__` refuses becomes a UserError."""
    hints = _hints(cls)
    arguments = {
        name: _build(hints[name], value, f"{prefix}{name}.") if _is_section(hints[name]) else value
        for name, value in values.items()
    }
    try:
        return cls(**arguments)
    except ValueError as error:
        section = prefix.rstrip(".")
        raise UserError(str(error) if section in str(error) else f"{section}: {error}") from error


class _Dumper(yaml.SafeDumper):
    """Writes sections below each other, and lists on one line."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def to_yaml(config: Any) -> str:
    """The resolved settings as a config file."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def flatten(config: Any) -> dict[str, Any]:
    """{dotted key: value}"""
    return {key: _value_at(config, key) for key in keys(type(config))}


def _value_at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def diff(old: C, new: C) -> list[str]:
    """`key: old -> new` for every setting that differs."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {value_text(before[key])} -> {value_text(after[key])}" for key in before if before[key] != after[key]
    ]


def parse_args(argv: list[str], description: str, cls: type[C], words: Words = _OF_TRAININGS) -> tuple[C, Options]:
    """Settings and options of an entry script; --help and --print-config print and raise SystemExit(0)."""
    flags = {arg for arg in argv if arg.startswith("-")}
    rest = [arg for arg in argv if not arg.startswith("-")]
    if flags & {"--help", "-h"}:
        print(_usage(description, cls, words))
        raise SystemExit(0)
    for flag in sorted(flags - set(FLAGS)):
        raise _unknown_flag(flag, cls)
    if not rest or ("=" in rest[0] and not os.path.exists(rest[0])):
        given = f", got '{quoted(rest[0])}'" if rest else ""
        raise UserError(f"the first argument must be a config file (.yaml){given}; --help explains")
    try:
        path = Path(home_expanded(rest[0]))
    except ValueError as error:
        raise UserError(f"config file {error}") from error
    options = Options(path, rest[1:], "--dry-run" in flags)
    config = load(cls, options.config, options.overrides)
    if "--print-config" in flags:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config, options


def _usage(description: str, cls: type, words: Words) -> str:
    flag, line = ("", "") if words.dry_run is None else ("[--dry-run] ", f"  --dry-run        {words.dry_run}\n")
    return (
        f"usage: {sys.argv[0]} {words.first} [KEY=VALUE ...] {flag}[--print-config] [--help]\n\n"
        f"{description.strip()}\n\n"
        "  --print-config   print all settings, the overrides applied, and stop\n"
        f"{line}\n"
        f"Keys, their types and defaults:\n\n{describe(cls)}"
    )


def _unknown_flag(flag: str, cls: type) -> UserError:
    setting = flag.lstrip("-")
    if _hint_at(cls, setting.partition("=")[0]) is not None:
        return UserError(f"unknown flag '{flag}'; settings have no dashes: type {setting.partition('=')[0]}=...")
    close = difflib.get_close_matches(flag, FLAGS, n=1)
    hint = f"nearest: {close[0]}" if close else f"allowed: {', '.join(FLAGS)}"
    return UserError(f"unknown flag '{flag}'; {hint}")
