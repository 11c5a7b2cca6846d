"""What tools/find_lr.py writes and says: the picture of a sweep, its numbers, and the setting to type."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tools.rates.sweep import Reading, Sweep
from tools.reporting.style import COLOURS, shown
from train.optim import OptimConfig, scaled_lr
from train.watch.text import markdown_table

STEM = "lr"
SOURCE = "learning rate range test (Smith 2017, arXiv 1506.01186)"
RULE = "a tenth of the rate with the lowest smoothed loss"
NOTHING = "the loss did not fall in this range: give another --from and --to, or check data and settings"


def setting(lr: float, optim: OptimConfig) -> str:
    """The optim.lr that gives the optimizer this rate, with two digits: optim.lr_scale multiplies it."""
    return f"optim.lr={float(f'{lr * optim.lr / scaled_lr(optim):.2g}'):g}"


def advice(reading: Reading, optim: OptimConfig) -> str:
    """The lines for the screen."""
    if (found := reading.found) is None:
        return NOTHING
    return (
        f"type: {setting(found.suggestion, optim)}\n"
        f"  {RULE}; the smoothed loss falls fastest at {setting(found.steepest, optim)}, the lowest that is worth a try\n"
        f"  for optim.name={optim.name} optim.batch={optim.batch}: another batch wants another rate (optim.lr_scale)"
    )


def as_json(done: Sweep, reading: Reading, optim: OptimConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Rates are those of the optimizer, which optim.lr_scale may have multiplied; `type` is the setting."""
    found = reading.found
    return {
        "type": setting(found.suggestion, optim) if found else None,
        "suggestion": found.suggestion if found else None,
        "rule": RULE if found else NOTHING,
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
    rates = {f"suggested: {RULE}": found.suggestion, "where the smoothed loss falls fastest": found.steepest}
    rows = [(words, f"{lr:.3g}", f"`{setting(lr, optim)}`") for words, lr in rates.items()]
    return "\n\n".join([*parts, markdown_table(("what", "rate", "type"), rows, right=("rate",))]) + "\n"


def draw(done: Sweep, reading: Reading, config: str) -> Figure:
    """Loss over rate, as measured and smoothed, with the suggestion."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(done.lrs, done.losses, ".", color=COLOURS[6], alpha=0.35, label="loss of a step")
    axes.plot(done.lrs, reading.smoothed, color=COLOURS[0], label="smoothed")
    if found := reading.found:
        axes.axvline(found.suggestion, color=COLOURS[1], label=f"minimum / 10: {found.suggestion:.2g}")
        axes.axvline(found.steepest, color=COLOURS[2], linestyle="--", label=f"steepest: {found.steepest:.2g}")
    low, high = reading.smoothed.min(), max(reading.smoothed[0], reading.smoothed.min())
    axes.set_ylim(low - 0.3 * (high - low) - 1e-3, high + 0.6 * (high - low) + 1e-3)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(shown(config).replace("$", r"\$"))
    axes.legend()
    return figure
