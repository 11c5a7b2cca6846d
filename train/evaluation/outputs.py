"""What train/evaluate.py is asked for, and where it goes.

Owns the settings of that program, and the places of its files. Invariant: what could not be written after an evaluation is
refused before it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError
from pipelines.files import check_file_place, check_folder_place, temporary_path
from train.config import Config
from train.evaluation.subject import Kind
from train.networks.export import check_exportable
from train.networks.programs import Format, Takes, check_formats


@dataclass(kw_only=True)
class EvaluateConfig(Config):
    split: Literal["test", "val"] = "test"
    "which records to evaluate: data.test or data.val"
    weights: Kind = "raw"
    "which weights: those trained last, their moving average, or the checkpoint that save.keep_best kept"
    predictions: str | None = field(default=None, metadata={"path": True})
    "file for keys int64 [n], labels int64 [n], logits float32 [n, C] and the names of samples and classes, as numpy .npz"
    features: str | None = field(default=None, metadata={"path": True})
    "file for the same and the features float32 [n, D], the input of the last layer; it may be given beside predictions"
    export: str | None = field(default=None, metadata={"path": True})
    "new folder for the finished network with all that is needed to use it, and these figures: weights, settings, model card"
    format: list[Format] = field(default_factory=list)
    "programs to add to the export: torch_export (model.pt2), onnx (model.onnx, which needs `bash tools/setup.sh export`)"
    program_input: Takes = "uint8"
    "the images that these programs take: uint8, 0 to 255, or normalised by data.mean and data.std"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format and self.export is None:
            raise ValueError(f"format=[{','.join(self.format)}] goes with export=DIR; leave it out, or give the folder")
        if self.program_input != "uint8" and not self.format:
            raise ValueError(f"program_input={self.program_input} goes with format; leave it out, or give the format")
        for name in ("predictions", "features"):
            if (place := getattr(self, name)) is not None and Path(place).suffix != ".npz":
                raise ValueError(
                    f"{name}={place}: a name that ends with .npz expected, by which the tools know such a file"
                )
        if self.predictions is not None and self.features is not None and Path(self.predictions) == Path(self.features):
            raise ValueError(
                f"predictions={self.predictions} and features name one file; the file of features holds both"
            )


def check_places(config: EvaluateConfig, folder: Path, figures: Path) -> bool:
    """Refuse, before the work, what could not be written after it; whether the run's folder can keep the figures.

    Of a run that belongs to someone else the predictions and the export can be written all the same.
    """
    if config.export is not None:
        check_exportable(Path(config.export), folder, config)
        check_formats(config.format)
        check_folder_place(Path(config.export), f"export={config.export}")
        try:
            temporary_path(Path(config.export)).exists()  # where it is written first; its name is longer
        except OSError as error:
            raise UserError(
                f"export={config.export}: cannot be written ({error.strerror}); give another name"
            ) from error
    for name in ("predictions", "features"):
        if (place := getattr(config, name)) is not None:
            check_file_place(Path(place), f"{name}={place}")
    try:
        check_file_place(figures, f"run {folder}")
    except UserError as error:
        if config.export is None and config.predictions is None and config.features is None:
            raise
        print(f"note: {error}; the figures are only printed")
        return False
    return True
