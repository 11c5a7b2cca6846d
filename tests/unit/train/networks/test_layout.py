"""How several processes share a network."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.networks.layout import DDP_OPTIONS, without_broadcasts


def test_running_statistics_are_not_sent(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert without_broadcasts(network) is network
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shared = DistributedDataParallel(network, **DDP_OPTIONS)
        shared(torch.randn(2, 3, 4, 4)).sum().backward()
        assert shared.will_sync_module_buffers()
        assert without_broadcasts(shared) is shared and not shared.will_sync_module_buffers()
        shared(torch.randn(2, 3, 4, 4)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
