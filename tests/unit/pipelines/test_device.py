"""Copies to a device and back: values and order on a GPU that is busy; on a CPU, that nothing is copied."""

import threading

import numpy as np
import pytest
import torch

from pipelines.device import Lead, SideStream, stream_of, to_device, to_host

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor, beside = torch.arange(6).reshape(2, 3), SideStream(CPU, "batches")
    assert beside.move(tensor).arrived() is tensor
    with beside.after(beside.now()):
        assert np.shares_memory(to_host(tensor), tensor.numpy())


def test_a_cpu_has_no_lead() -> None:
    lead = Lead(CPU)
    for _ in range(2 * lead.AHEAD):
        lead.step()
    assert not lead._ends


@pytest.mark.gpu
def test_the_host_is_a_few_steps_ahead_of_the_gpu() -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    busy, lead, ends = torch.randn(4096, 4096, device=cuda), Lead(cuda), []
    for number in range(3 * lead.AHEAD):
        for _ in range(20):
            busy = busy @ busy * 1e-4
        ends.append(torch.cuda.current_stream(cuda).record_event())
        lead.step()
        assert number < lead.AHEAD or ends[number - lead.AHEAD].query(), "the step so many before is done"
        assert not ends[number].query(), "and this one is not waited for"


@pytest.mark.gpu
def test_a_use_has_one_stream() -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    again = [stream_of(cuda, "batches") for _ in range(40)]
    assert all(stream is again[0] for stream in again) and stream_of(cuda, "recording") != again[0]


def test_to_device_copies_what_is_not_contiguous() -> None:
    array = np.arange(12).reshape(3, 4).T
    assert to_device(array, CPU).tolist() == array.tolist()


@pytest.mark.gpu
def test_copies_beside_a_busy_stream_have_their_values() -> None:
    """Moved in another thread while this one's stream is busy, and back on the side stream, before later work is done."""
    cuda = torch.device("cuda", torch.cuda.current_device())
    beside, found = SideStream(cuda, "batches"), []
    busy = torch.randn(4096, 4096, device=cuda)

    def load() -> None:
        for number in range(20):
            found.append(beside.move(torch.full((64, 224, 224, 3), number, dtype=torch.uint8).pin_memory()))

    thread = threading.Thread(target=load)
    for _ in range(50):
        busy = busy @ busy * 1e-4
    thread.start()
    thread.join()
    sums = torch.stack([one.arrived().double().mean() for one in found])
    found.clear()
    computed = beside.now()
    for _ in range(50):
        busy = busy @ busy * 1e-4
    with beside.after(computed):
        assert to_host(sums).tolist() == list(range(20))
    assert not torch.cuda.current_stream(cuda).query(), "the later work is not waited for"
