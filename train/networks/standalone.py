"""load.py of an export: the network's definition and its loading in one file, which needs torch and safetensors alone.

Owns how modules of models/ become one text. That text is what a user can read, change and train further; a program of
torch.export is neither. Invariant: the file defines what models/ defines, word for word, and no name twice.
"""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType

from models.registry import MODELS, TIMM_PREFIX, ModelSpec

_OURS = "models"

_HEAD = '''"""The network {spec}, and its weights.

Needs torch and safetensors{more}.

    network = load()  # from the folder of this file; on the CPU, in eval mode

Images float32 [B, 3, {size}, {size}], RGB from 0 to 1, normalised by mean {mean} and std {std}, in;
logits [B, {classes}], in the order of class_names.txt, out.{freedom}
"""
'''
_LOAD = '''def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The network with the weights in `folder`, model.safetensors, on the CPU and in eval mode."""
    network = {network}
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()
'''


def standalone(spec: ModelSpec, mean: list[float], std: list[float], size: int) -> str:
    """The text of load.py. A network of timm is made by timm."""
    of_timm = spec.name.startswith(TIMM_PREFIX)
    head = _HEAD.format(
        spec=spec,
        more=", and timm" if of_timm else "",
        size=size,
        mean=mean,
        std=std,
        classes=spec.num_classes,
        freedom="" if of_timm else " The definition is that of the trainer's folder models/.",
    )
    imports = [("pathlib", "Path"), ("torch", "nn"), ("safetensors.torch", "load_file")]
    bodies = []
    if of_timm:
        imports.append(("timm", ""))
        network = f"timm.create_model({spec.name.removeprefix(TIMM_PREFIX)!r}, num_classes={spec.num_classes})"
    else:
        build = MODELS[spec.name].build
        for module in _needed(sys.modules[build.__module__]):
            own, body = _split(module)
            imports += own
            bodies.append(body)
        network = f"{build.__name__}({spec.num_classes}{_form(spec)})"
        if spec.head == "cosine":
            imports.append(("functools", "partial"))
    parts = [_imported(imports), *bodies, _LOAD.format(network=network)]
    return head + "\n" + "\n\n\n".join(part.strip() for part in parts) + "\n"


def _imported(names: list[tuple[str, str]]) -> str:
    """The lines that import names from modules, or modules ("", or " as ..."); Python's own modules first."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for module in sorted({module for module, _ in names}):
        own = lines[module.partition(".")[0] in sys.stdlib_module_names]
        wanted = sorted({name for of, name in names if of == module})
        own += [f"import {module}{name}" for name in wanted if name[:1] in ("", " ")]
        if values := [name for name in wanted if name[:1] not in ("", " ")]:
            own.append(f"from {module} import {', '.join(values)}")
    return "\n\n".join("\n".join(group) for group in (lines[True], lines[False]))


def _form(spec: ModelSpec) -> str:
    """The second argument of a network of another form than the plain one."""
    if spec.architecture == spec.name:
        return ""
    head = "nn.Linear" if spec.head == "linear" else f"partial(CosineHead, scale={float(spec.head_scale)})"
    return f", Form({head}, {spec.experts}, {float(spec.expert_width)}, {spec.router})"


def _needed(module: ModuleType) -> list[ModuleType]:
    """The modules of models/ that this one imports, directly or not, before it, and itself."""
    found: dict[str, ModuleType] = {}

    def visit(one: ModuleType) -> None:
        for node in ast.parse(_text(one)).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{_OURS}."):
                visit(importlib.import_module(str(node.module)))
        found.setdefault(one.__name__, one)

    visit(module)
    return list(found.values())


def _text(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def _split(module: ModuleType) -> tuple[list[tuple[str, str]], str]:
    """(its imports from elsewhere, as for `_imported`; the rest without its docstring)"""
    text = _text(module)
    lines, imports = text.splitlines(), []
    docstring, *body = ast.parse(text).body
    left_out = [docstring]
    for node in body:
        if isinstance(node, ast.Import):
            imports += [(alias.name, f" as {alias.asname}" if alias.asname else "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if not (node.module or "").startswith(f"{_OURS}."):
                imports += [(str(node.module), ast.unparse(alias)) for alias in node.names]
        else:
            continue
        left_out.append(node)
    for node in left_out:
        lines[node.lineno - 1 : node.end_lineno] = [""] * (int(node.end_lineno or 0) - node.lineno + 1)
    return imports, "\n".join(lines)
