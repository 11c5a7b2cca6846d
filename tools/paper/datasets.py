"""The data sets and methods that tools/reproduce.py knows: how each is converted and trained, and what papers report of it.

Owns the papers' figures. A further data set or method is a further row here. Invariant: no two data sets share a `name` or a
`tag`; everything that is kept or reported by data set is filed under `name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAPER_SOURCE = "He, Wu, Wei, ICCV 2021 (arXiv 2103.15042), Table 1"
RIDE_SOURCE = (
    "Wang et al., ICLR 2021 (arXiv 2010.01809): with 3 experts 67.0 many, 49.9 medium, 25.7 few; best epoch on the test split. "
    "Views of the rows below those of Table 1 are also rotated by up to 15 degrees, as RIDE's are"
)


class Method(NamedTuple):
    """A row of the table. stem: of the configuration's name, before the data set's tag; settings: KEY=VALUE over that.

    teacher: the row whose run a student learns from; network: the row whose run the routers are of. Either is an earlier row.
    """

    title: str
    stem: str
    teacher: str | None = None
    network: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The row whose run this one needs."""
        return self.teacher or self.network


ROWS: dict[str, Method] = {  # by the name in --methods and of runs
    "ce": Method("CE", "ce"),
    "bsce": Method("BSCE", "bsce"),
    "dive": Method("DiVE", "dive", teacher="bsce"),
    "ldam_drw": Method("LDAM-DRW", "ldam_drw"),
    "ride3": Method("RIDE, 3 experts", "ride3"),
    "ride3_router": Method("RIDE, 3 experts, routers", "router", network="ride3"),
    "ride4": Method("RIDE, 4 experts", "ride3", settings=("model.experts=4",)),
    "ride6": Method("RIDE, 6 experts", "ride3", settings=("model.experts=6",)),
    "ride_kd4": Method("RIDE, 4 experts, distilled from 6", "ride_kd4", teacher="ride6"),
    "bsce6": Method("BSCE, 6 experts", "bsce6"),
    "ride_dive4": Method("RIDE-DiVE, 4 experts", "ride_dive4", teacher="bsce6"),
    "ride_dive4_router": Method(
        "RIDE-DiVE, 4 experts, routers", "router", network="ride_dive4", settings=("model.experts=4",)
    ),
}
METHODS = ("ce", "bsce", "dive")  # of Table 1
MORE = tuple(name for name in ROWS if name not in METHODS)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """tag: of its runs' and tasks' names; convert: arguments of tools/convert.py but those of places and workers.

    column, value: heading and cell that tell it from the other data sets of its table. configs: by method; settings: KEY=VALUE
    for all of its runs, where a configuration is of another data set; own: for those of a method. paper, public: top-1 in
    percent by method, of the method's paper and of its group's published code; each lacks some.
    """

    name: str
    tag: str
    column: str
    value: int | str
    convert: tuple[str, ...]
    configs: Mapping[str, Path]
    settings: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    public: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's name in a sentence, such as 'imbalance 100'."""
        return f"{self.column} {self.value}"

    @property
    def folder(self) -> str:
        """The folder of its records, below OUT."""
        return f"data/{self.name}"


def _cifar100_lt(
    imbalance: int,
    paper: tuple[float, float, float],
    public: Mapping[str, float] | None = None,
    ride: Mapping[str, float] | None = None,
) -> Dataset:
    """paper: of METHODS, ride: of RIDE, on CIFAR-100-LT, ResNet-32, 200 epochs.

    Only METHODS have a configuration for each imbalance; the others take that of imbalance 100, on the records of this one.
    """
    tag = f"if{imbalance}"
    name = f"cifar100_lt_{tag}"
    places = tuple(f"data.{split}=data/{name}/{split}.beton" for split in ("train", "test")) if imbalance != 100 else ()
    configs = {method: f"{row.stem}_{tag if method in METHODS else 'if100'}.yaml" for method, row in ROWS.items()}
    return Dataset(
        name=name,
        tag=tag,
        column="imbalance",
        value=imbalance,
        convert=("cifar100-lt", "--imbalance", str(imbalance)),
        configs={method: ROOT / "configs" / "cifar100_lt" / file for method, file in configs.items()},
        own={method: (*places, *ROWS[method].settings) for method in MORE},
        paper=dict(zip(METHODS, paper, strict=True)) | dict(ride or {}),
        public=public or {},
    )


CIFAR100_LT = {  # by imbalance factor
    100: _cifar100_lt(100, (38.35, 42.39, 45.35), {"dive": 45.52}, {"ride3": 48.6, "ride6": 50.2}),
    50: _cifar100_lt(50, (42.41, 47.60, 51.13), {"dive": 50.83}),
    10: _cifar100_lt(10, (56.51, 58.38, 62.00)),
}
