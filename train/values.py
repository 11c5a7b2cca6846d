"""Single values of settings: what is refused or made uniform whatever a setting means.

Owns the shape that a declared type gives a value, and the numbers, texts and paths that no setting can use; settings.py reads
trees of values, and each section's dataclass refuses what makes no sense for its own keys. Invariant: after `checked`, floats are
finite, integers fit into 64 bits, texts can be printed and stored, and no path begins with `~`.
"""

import os
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from pipelines.files import NAME_BYTES, home_expanded

_BOOLEANS = re.compile("true|false|on|off|yes|no|y|n|1|0|null|~|", re.IGNORECASE)
_MOST = 1e30  # beyond 3e38, which a product of settings must not reach, float32 ends
_TEXT_BYTES = 4095  # the longest path of Linux


def without_none(hint: Any) -> tuple[Any, bool]:
    """`Optional[T]` as (T, True), anything else as (hint, False)."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def has_shape(node: yaml.Node, hint: Any) -> bool:
    """Whether a YAML node is a list, a mapping or a single value where the declared type has one.

    Looks no deeper than the type does, so that neither nesting nor aliases of aliases cost anything.
    """
    inner, _ = without_none(hint)
    origin, args = get_origin(inner), get_args(inner)
    if isinstance(node, yaml.SequenceNode):
        return origin in (list, tuple) and all(has_shape(item, args[0]) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        return origin is dict and all(has_shape(item, args[1]) for _, item in node.value)
    # OmegaConf would take any number above 0 for true.
    return inner is not bool or node.value.startswith("${") or bool(_BOOLEANS.fullmatch(node.value))


def checked(value: Any, hint: Any, is_path: bool) -> Any:
    """The value, its `~` expanded if it is a path; ValueError, which completes "KEY: ", where it can never make sense.

    value: as converted to the declared type.
    """
    inner, _ = without_none(hint)
    args = get_args(inner)
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return type(value)(checked(item, args[0], is_path) for item in value)
    if isinstance(value, dict):
        return {name: checked(item, args[1], is_path) for name, item in value.items()}
    if get_origin(inner) is Literal and value not in args:  # an interpolation is not converted
        raise ValueError(f"takes {'|'.join(map(str, args))}")
    if isinstance(value, float) and not abs(value) <= _MOST:  # NaN compares to nothing
        raise ValueError(f"takes finite numbers, of at most {_MOST:g}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("takes integers below 2**63")
    if isinstance(value, str):
        _check_text(value)
        return path_text(value) if is_path else value
    return value


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError("takes UTF-8 text, this holds other bytes; rename the file") from error
    if size > _TEXT_BYTES:
        raise ValueError(f"takes a text of at most {_TEXT_BYTES} bytes, this has {size:,}")
    # A tab is the one control character that file names are known to have.
    if odd := next((character for character in text if ord(character) < 32 and character != "\t"), None):
        raise ValueError(f"takes a text on one line, without control characters; this holds {odd!r}")


def path_text(text: str) -> str:
    """The path with its `~` expanded; ValueError, which completes "KEY: ", where no file can have it."""
    if not text.strip():
        raise ValueError("takes a path, which is not empty; leave the setting out, or name the current folder by ./")
    if max(len(os.fsencode(name)) for name in text.split("/")) > NAME_BYTES:
        raise ValueError(f"takes a path, in which no name is longer than {NAME_BYTES} bytes")
    return home_expanded(text)
