"""Networks that do not take the images of a recipe are told by both shapes, and other errors stay what they were."""

import pytest
import torch
from torch import nn

from models import ModelSpec
from pipelines.errors import UserError
from train.networks.probe import explained, require_fit

RESNET = ModelSpec("resnet8", 5)


@pytest.mark.parametrize(("size", "images"), [(4, 2), (16, 1), (4, None), (16, 64)])
def test_what_fits_moves_no_random_numbers(size: int, images: int | None) -> None:
    network = nn.Sequential(RESNET.build(), nn.Dropout(0.5))
    random = torch.get_rng_state()
    require_fit(network, RESNET, size, "model.name=resnet8", images)
    assert torch.equal(torch.get_rng_state(), random)


def test_an_error_of_something_else_stays_what_it_was() -> None:
    with pytest.raises(RuntimeError, match="a fault"), explained(RESNET, 16, "X", images=4):
        raise RuntimeError("a fault")
    with pytest.raises(torch.OutOfMemoryError), explained(RESNET, 4, "X", images=1):
        raise torch.OutOfMemoryError("too little")
    with pytest.raises(UserError, match="X is trained on 1 image at a time"), explained(RESNET, 4, "X", images=1):
        RESNET.build()(torch.zeros(1, 3, 4, 4))


def test_batch_norm_over_one_value_names_the_settings() -> None:
    with pytest.raises(
        UserError, match=r"^optim.batch: model.name=resnet8 is trained on 1 image at a time .*size=4 leaves maps"
    ):
        require_fit(RESNET.build(), RESNET, 4, "model.name=resnet8", 1)


class Patches(nn.Module):
    """Takes 32 pixels and nothing else, as a vision transformer does."""

    def __init__(self, classes: int):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == 32, f"Input height ({images.shape[2]}) doesn't match model (32)."
        return self.head(images.mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Patches(5), r"X \(resnet8 with 5 classes\) does not take images of 16x16 pixels \(Input height \(16\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)),
            r"images of 16x16 pixels \(mat1 and mat2 shapes cannot",
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 17), nn.Flatten()), r"images of 16x16 pixels \(Calculated padded input size"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), r"gives outputs \[1, 4\] for 1 images, not \[1, 5\]"),
    ],
)
def test_other_shapes_are_named(network: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        require_fit(network, RESNET, 16, "X")
