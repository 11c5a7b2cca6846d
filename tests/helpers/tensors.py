"""Tensors of every kind that a checkpoint may hold, and ways to damage and compare files of them."""

from pathlib import Path

import torch


def some_tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    tied = torch.randn(5)
    return {
        "model": {
            "conv.weight": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
            "bn.num_batches_tracked": torch.tensor(2**40 + seed),
            "half": torch.randn(7).bfloat16(),
            "mask": torch.tensor([True, False, True]),
            "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
            "tied.a": tied,
            "tied.b": tied,
            "slice": torch.arange(12.0).reshape(3, 4)[:, 1],
            "empty": torch.empty(0, 3),
        },
        "rng": {"cpu": torch.get_rng_state()},
        "nothing": {},
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    assert got.keys() == expected.keys()
    for group in expected:
        assert got[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert got[group][name].dtype == tensor.dtype and got[group][name].shape == tensor.shape
            assert bits(got[group][name]) == bits(tensor), name


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
