"""The time that routing saves: experts skipped against all experts run, python tests/studies/routing.py [--device cuda].

    --network NAME ...   resnet32 by default (also resnet50, resnext50_32x4d)
    --experts E ...      3 and 4 by default           --batch B    256
    --share S ...        0, 0.3, 0.6 and 1 by default: the images that go on after the first expert, and then through all
    --rounds N           triples of timings, 5        --precision bf16   autocast; fp32 by default

The routers are made so that these shares go on; they are run, and each mode gives the same answers, which is checked. In turns,
in eval mode: `skipping` (an expert runs on the images that need it), `masking` (all experts on all images, the others left out,
as under torch.compile) and `plain` (the network without routers). Prints milliseconds for a batch (median; on a CPU of processor
time), the ratios to `plain` (median, lowest, highest round), and the same ratio of the counted operations.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch
from torch import Tensor, nn

from models import ModelSpec, outputs_of
from models.experts import Experts
from models.router import Router, all_experts, experts_told
from train.evaluation.cost import operations
from train.networks.layout import channels_last

CLASSES = {"resnet32": 100}  # others: 1000
SIZES = {"resnet32": 32}  # others: 224


@torch.no_grad()
def divided(network: nn.Module, images: Tensor, share: float) -> None:
    """Make the routers so that this share of the images goes on after the first expert, and all of these after the others."""
    experts, router = network.get_submodule("experts"), network.get_submodule("router")
    assert isinstance(experts, Experts) and isinstance(router, Router)
    nn.init.zeros_(router.unit.weight)
    router.unit.weight[0, router.choices] = 1  # one number of the code decides
    nn.init.zeros_(router.unit.bias)
    one, *others = (code.get_parameter("bias") for code in router.codes)
    one[0] = 10  # no code is cut off at 0 yet
    for bias in others:
        bias[0] = 1e4
    first = outputs_of(experts(network.trunk(images), router)).router  # pyright: ignore[reportCallIssue]
    assert first is not None
    ranked, going = first[:, 0].sort(descending=True).values, round(share * len(images))
    edges = torch.cat([ranked[:1] + 1, ranked, ranked[-1:] - 1])
    one[0] -= (edges[going] + edges[going + 1]) / 2


def measure(name: str, count: int, share: float, options: argparse.Namespace) -> str:
    """One line of the table."""
    device = torch.device(options.device)
    classes, size = CLASSES.get(name, 1000), SIZES.get(name, 224)
    torch.manual_seed(0)
    network = ModelSpec(name, classes, "cosine", experts=count, router=30 if classes == 100 else 50).build().to(device)
    plain = ModelSpec(name, classes, "cosine", experts=count).build().to(device)
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if not key.startswith("router.")})
    network, plain = channels_last(network).eval(), channels_last(plain).eval()
    images = torch.randn(options.batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    divided(network, images, share)

    def masking() -> Tensor:
        with all_experts(network):
            return network(images)

    modes: dict[str, Callable[[], Tensor]] = {
        "skipping": lambda: network(images),
        "masking": masking,
        "plain": lambda: plain(images),
    }

    def seconds(run: Callable[[], Tensor]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if device.type == "cuda" else time.process_time  # load of others does not count
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    with torch.no_grad():
        with experts_told(network):
            used = outputs_of(network(images)).used
        assert used is not None
        shares = [float((used > i).float().mean()) for i in range(count)]
        assert abs(shares[1] - share) < 0.01 and shares[1] == shares[-1], shares
        apart = float((network(images) - masking()).abs().max())
        assert apart < 1e-4, f"the two modes differ by {apart}"
        for run in modes.values():
            seconds(run)
        rounds = [{mode: seconds(run) for mode, run in modes.items()} for _ in range(options.rounds)]
    counted = operations(network, size, device)
    words = [f"{name} batch {options.batch}, {count} experts, {share:.0%} go on: plain {_ms(rounds, 'plain')}"]
    for mode in ("skipping", "masking"):
        ratios = sorted(one[mode] / one["plain"] for one in rounds)
        words.append(
            f"{mode} {_ms(rounds, mode)} = {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    words.append(f"operations {counted.routed(shares) / counted.without_routing:.2f}; differ by {apart:.1e}")
    return ", ".join(words)


def _ms(rounds: list[dict[str, float]], mode: str) -> str:
    return f"{1000 * statistics.median(one[mode] for one in rounds):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", nargs="+", default=["resnet32"])
    parser.add_argument("--experts", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--share", nargs="+", type=float, default=[0.0, 0.3, 0.6, 1.0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # as in trainings
    for name in options.network:
        for experts in options.experts:
            for share in options.share:
                print(measure(name, experts, share, options), flush=True)


if __name__ == "__main__":
    main()
