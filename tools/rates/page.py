"""What tools/find_lr.py writes and says: the picture of a sweep, its numbers, and the setting to type."""

from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tools.rates.sweep import Found, Reading, Sweep
from tools.reporting.style import COLOURS, shown
from train.optim import OptimConfig, scaled_lr
from train.watch.text import markdown_table

STEM = "lr"
SOURCE = "learning rate range test (Smith 2017, arXiv 1506.01186)"


class Rule(NamedTuple):
    """What is suggested for an optimizer: in words, and of the rates that were found."""

    words: str
    of: Callable[[Found], float]


# With ResNet-32 on CIFAR-100-LT, batch 128: 0.12 of SGD, whose recipe has 0.1, and 0.0004 of AdamW, for which 0.001 is usual. The
# other rule gives 0.001 and 0.05: AdamW's steps do not shrink with the gradient, and the loss still falls at rates far too high.
RULES = {
    "sgd": Rule("a tenth of the rate with the lowest smoothed loss", lambda found: found.minimum / 10),
    "adamw": Rule("the rate at which the smoothed loss falls fastest", lambda found: found.steepest),
}
NOTHING = "the loss did not fall in this range: give another --from and --to, or check data and settings"


def setting(lr: float, optim: OptimConfig) -> str:
    """The optim.lr that gives the optimizer this rate, with two digits: optim.lr_scale multiplies it."""
    return f"optim.lr={float(f'{lr * optim.lr / scaled_lr(optim):.2g}'):g}"


def suggested(found: Found, optim: OptimConfig) -> float:
    """The rate by the rule for this optimizer."""
    return RULES[optim.name].of(found)


def advice(reading: Reading, optim: OptimConfig) -> str:
    """The lines for the screen."""
    if (found := reading.found) is None:
        return NOTHING
    return (
        f"type: {setting(suggested(found, optim), optim)}\n"
        f"  {RULES[optim.name].words}; it falls fastest at {setting(found.steepest, optim)}, and is lowest at "
        f"{setting(found.minimum, optim)}\n"
        f"  for optim.name={optim.name} optim.batch={optim.batch}: another batch wants another rate (optim.lr_scale)"
    )


def as_json(done: Sweep, reading: Reading, optim: OptimConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Rates are those of the optimizer, which optim.lr_scale may have multiplied; `type` is the setting."""
    found = reading.found
    return {
        "type": setting(suggested(found, optim), optim) if found else None,
        "suggestion": suggested(found, optim) if found else None,
        "rule": RULES[optim.name].words if found else NOTHING,
        "minimum": found.minimum if found else None,
        "steepest": found.steepest if found else None,
        "diverged": done.diverged,
        "settings": settings,
        "lr": done.lrs.tolist(),
        "loss": done.losses.tolist(),
        "smoothed": reading.smoothed.tolist(),
    }


def markdown(reading: Reading, optim: OptimConfig, config: str) -> str:
    """The page beside the picture."""
    parts = [f"# Learning rate of {config}", f"A {SOURCE}; {optim.name}, batch {optim.batch}.", f"![loss]({STEM}.svg)"]
    if (found := reading.found) is None:
        return "\n\n".join([*parts, NOTHING]) + "\n"
    rates = {
        f"suggested: {RULES[optim.name].words}": suggested(found, optim),
        "where the smoothed loss falls fastest": found.steepest,
        "where it is lowest": found.minimum,
    }
    rows = [(words, f"{lr:.3g}", f"`{setting(lr, optim)}`") for words, lr in rates.items()]
    return "\n\n".join([*parts, markdown_table(("what", "rate", "type"), rows, right=("rate",))]) + "\n"


def draw(done: Sweep, reading: Reading, config: str) -> Figure:
    """Loss over rate, as measured and smoothed, with the suggestion."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(done.lrs, done.losses, ".", color=COLOURS[6], alpha=0.35, label="loss of a step")
    axes.plot(done.lrs, reading.smoothed, color=COLOURS[0], label="smoothed")
    if found := reading.found:
        axes.axvline(found.minimum / 10, color=COLOURS[1], label=f"minimum / 10: {found.minimum / 10:.2g}")
        axes.axvline(found.steepest, color=COLOURS[2], linestyle="--", label=f"steepest: {found.steepest:.2g}")
    low, high = reading.smoothed.min(), reading.smoothed.max()
    axes.set_ylim(low - 0.3 * (high - low) - 1e-3, high + 0.6 * (high - low) + 1e-3)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(shown(config).replace("$", r"\$"))
    axes.legend()
    return figure
