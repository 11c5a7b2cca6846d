"""The settings of a run: one tree for all entry scripts.

Every section's dataclass lives beside the component that it configures; settings.py reads, checks and prints them.
"""

from dataclasses import dataclass, field
from typing import Literal

from models.registry import ModelConfig
from pipelines.loader import DataConfig
from pipelines.logits.reader import CacheConfig
from train.ema import EmaConfig
from train.evaluation.counting import EvalConfig
from train.objectives.methods import METHODS, DistillConfig, hard_part, names_where
from train.optim import OptimConfig
from train.run.checkpoint import SaveConfig
from train.schedule import ScheduleConfig
from train.watch.profiling import ProfileConfig
from train.watch.tracking import TrackConfig


@dataclass(kw_only=True)
class Config:
    """The settings of a run; one tree for all entry scripts."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    run: str | None = field(default=None, metadata={"path": True})
    """name of the run, kept in runs/NAME; after ./, ../, / or ~ it is the folder itself; null = CONFIG's stem, the method
    unless the stem names it, and -s<seed>"""
    seed: int = 0
    "seed of the initialisation and of the order of images (the views have data.seed)"
    deterministic: bool = False
    "the same bits in every run on a GPU too, at some cost in speed"
    resume: str = field(default="auto", metadata={"path": True})
    """auto: continue the run if there is one; never: refuse then; PATH of a run or of a folder RUN/checkpoints/step_N: a new
    run begins from that checkpoint"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """arithmetic of the forward and backward pass, the teacher's too; weights are always fp32; auto = bf16 on a GPU that has it,
    else fp32"""
    compile: bool = False
    "torch.compile the networks"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    "mode of torch.compile; reduce-overhead uses CUDA graphs, which pays where steps are short (CIFAR)"
    cuda_graph: bool = False
    """record forward and backward pass, clipping and optimizer as one CUDA graph, which a single launch runs: for steps so short
    that launching their kernels limits the speed (CIFAR); with or without compile; on one GPU, not in fp16"""
    eval_only: bool = False
    "train nothing: evaluate the finished run, or the newest checkpoint of an unfinished one, on data.val and data.test"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be at least 0 and less than 2**63")
        part = METHODS[self.distill.method].part
        if part is not None and getattr(self.model, part) is None:
            raise ValueError(
                f"distill.method={self.distill.method} trains the {part} of a network, and this one has none: type "
                f"model.{part}=30 (for large data sets 50), and model.experts and the like as in the run that model.init names"
            )
        if self.data.recipe.mix is not None:
            self._check_mixtures()
        if self.compile and self.compile_mode in ("reduce-overhead", "max-autotune") and self.optim.accumulate > 1:
            raise ValueError(
                f"compile_mode={self.compile_mode} with optim.accumulate={self.optim.accumulate}: a CUDA graph's next run "
                "overwrites the gradients that are being summed; use compile_mode=default, or optim.accumulate=1"
            )

        if self.cuda_graph:
            self._check_graph()

    def _check_graph(self) -> None:
        """ValueError for settings with which a step is not recorded as one CUDA graph."""
        if self.compile and self.compile_mode in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compile_mode={self.compile_mode} with cuda_graph=true: it would record CUDA graphs of its own within that of "
                "the step; use compile_mode=default or max-autotune-no-cudagraphs, or leave cuda_graph out"
            )
        if self.precision == "fp16":
            raise ValueError(
                "precision=fp16 with cuda_graph=true: steps with a loss scaler are not recorded; use precision=bf16, or leave "
                "cuda_graph out"
            )

    def _check_mixtures(self) -> None:
        """ValueError where the method, or its hard term, does not take the two labels of a mixture."""
        for key, name in (("method", self.distill.method), ("hard", hard_part(self.distill))):
            if not METHODS[name].two_labels:
                raise ValueError(
                    f"data.recipe.mix={self.data.recipe.mix}: distill.{key}={name} takes one label for an image, not two; use "
                    f"data.recipe.mix=null, or distill.method={names_where(lambda row: row.two_labels)}"
                )
