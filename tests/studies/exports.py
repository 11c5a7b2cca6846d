"""Whether export folders load into torchvision's and timm's networks: python tests/studies/exports.py EXPORT_DIR ...

For an environment with torchvision or timm; the trainer needs neither. Each export is loaded by `load_network` and,
with strict=True, into every network of the same name that is installed; all are run on the same random images in float32.
Prints one line for each, and fails where logits differ by more than TOLERANCE times the largest.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch
from safetensors.torch import load_file
from torch import nn

from models import load_network
from models.registry import TIMM_PREFIX, in_torchvision

TOLERANCE = 1e-5
IMAGES = 8


def counterparts(architecture: str, classes: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """(package with version, constructor) of the networks of that name in installed packages; timm has torchvision's too."""
    plain = architecture.removeprefix(TIMM_PREFIX)
    if in_torchvision(architecture) and importlib.util.find_spec("torchvision"):
        torchvision = importlib.import_module("torchvision")
        maker = getattr(torchvision.models, plain)
        yield f"torchvision {torchvision.__version__}", lambda: maker(num_classes=classes)
    if (in_torchvision(architecture) or plain != architecture) and importlib.util.find_spec("timm"):
        timm = importlib.import_module("timm")
        yield f"timm {timm.__version__}", lambda: timm.create_model(plain, num_classes=classes)


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, size: int) -> float:
    """Largest difference between their logits on random images, as a share of the largest logit."""
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, found = ours.eval()(images), theirs.eval()(images)
    return float((found - expected).abs().max() / expected.abs().max())


def check(folder: Path, size: int | None = None) -> bool:
    """Print how the export compares with each counterpart; returns whether there was one and all are equal."""
    ours, meta = load_network(folder)
    size = size or meta["input_size"]
    results = []
    for package, make in counterparts(meta["architecture"], len(meta["class_names"])):
        theirs = make()
        theirs.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        apart = difference(ours, theirs, size)
        results.append(apart <= TOLERANCE)
        print(
            f"{folder}: {meta['architecture']} in {package} (torch {torch.__version__}), {size} pixels: {apart:.1e} apart"
        )
    if not results:
        print(f"{folder}: nothing installed has a network named {meta['architecture']}")
    return all(results) and bool(results)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, metavar="EXPORT_DIR")
    parser.add_argument(
        "--size", type=int, help="side of the random images, in pixels; default: the export's input size"
    )
    args = parser.parse_args(argv)
    done = [check(folder, args.size) for folder in args.exports]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
