"""What is specific to the dali backend: reused pipelines, native threads, failures. The contract: test_loader.py."""

import copy
import importlib.util
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

if not importlib.util.find_spec("nvidia.dali"):  # an import would cost every process that collects the tests a second
    pytest.skip("DALI is not installed", allow_module_level=True)

from pipelines.augment.finish import Finish
from pipelines.augment.recipe import Recipe, ViewParams, view_params
from pipelines.augment.transforms import draw
from pipelines.backends import dali as dali_backend
from pipelines.backends.contract import Drawn
from pipelines.backends.dali import DaliBackend
from pipelines.backends.pixels import PixelSource, pixel_source
from pipelines.backends.reference import ReferenceBackend
from pipelines.batch import Plan
from pipelines.errors import UserError
from pipelines.loader import DataConfig, Loader
from pipelines.records.reader import Records
from pipelines.records.workers import Sample
from pipelines.records.writing import write_records

CPU = torch.device("cpu")
PARAMS = view_params(Recipe(size=24), 3)
N = 30


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Smooth pictures of 60 to 100 pixels; number 7 is 48 x 48."""
    folder, rng = tmp_path_factory.mktemp("dali"), np.random.default_rng(0)
    samples = []
    for i in range(N):
        height, width = (48, 48) if i == 7 else rng.integers(60, 100, 2)
        ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))[:, :, None] * rng.uniform(
            0.3, 1, 3
        )
        Image.fromarray(ramp.astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
        samples.append(Sample(f"{i}.jpg", 0, folder / f"{i}.jpg"))
    write_records(folder / "jpeg.beton", samples, ["a"], kind="test")
    return Records(folder / "jpeg.beton")


def drawn(records: Records, *sizes: int) -> list[Drawn]:
    ends = np.cumsum(sizes)
    plans = [Plan(np.arange(end - n, end) % N, np.zeros(n, np.int32)) for n, end in zip(sizes, ends, strict=True)]
    return [(plan, draw(PARAMS, records, plan)) for plan in plans]


def expected_of(records: Records, params: ViewParams, plan: Plan) -> np.ndarray:
    """The crops of the reference backend."""
    out = np.empty((len(plan.views), params.size, params.size, 3), np.uint8)
    ReferenceBackend(records, 1, "first").load(plan.positions, draw(params, records, plan).boxes, out)
    return out


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_batches_may_grow_within_a_stream(records: Records) -> None:
    backend = DaliBackend(records, PARAMS, 1, "first", CPU)
    sizes = (2, 9, 0, 30, 1, 5)
    found = [pixels for pixels, *_ in backend.crops(drawn(records, *sizes))]
    assert [len(pixels) for pixels in found] == list(sizes)
    alone = np.concatenate([pixels.numpy() for pixels, *_ in backend.crops(drawn(records, *[1] * N))])
    everything = np.concatenate([pixels.numpy() for pixels in found])
    np.testing.assert_array_equal(everything, np.tile(alone, (2, 1, 1, 1))[: sum(sizes)])


def test_pipelines_are_used_again(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = DaliBackend._build
    monkeypatch.setattr(DaliBackend, "_build", lambda self, batch: built.append(batch) or build(self, batch))
    backend = DaliBackend(records, PARAMS, 1, "first", CPU)
    for _ in range(4):
        assert sum(len(pixels) for pixels, *_ in backend.crops(drawn(records, 8, 8, 8, 6))) == N
    assert built == [8, 8], "two take turns"


def test_streams_closed_early_leave_no_native_thread(records: Records) -> None:
    def once() -> None:
        backend = DaliBackend(records, PARAMS, 2, "first", CPU)
        stream = backend.crops(drawn(records, 4, 4, 4, 4))
        next(stream)
        stream.close()

    once()  # starts what DALI starts only once
    before = native_threads()
    for _ in range(8):
        once()
    deadline = time.monotonic() + 20
    while native_threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert native_threads() <= before


def test_pad_crop_reaches_outside(records: Records) -> None:
    """Zeros outside, the stored picture inside, up to the difference between two JPEG decoders."""
    params = view_params(Recipe(crop="pad_crop", size=48, pad=6), 1)
    plan = Plan(np.full(12, 7), np.arange(12, dtype=np.int32))
    expected = expected_of(records, params, plan)
    [(found, *_)] = DaliBackend(records, params, 1, "first", CPU).crops([(plan, draw(params, records, plan))])
    assert np.abs(found.numpy().astype(int) - expected).max() <= 2
    corners = expected[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    outside = (corners == 0).all(axis=2)
    assert outside.any() and (found.numpy()[:, [0, 0, -1, -1], [0, -1, 0, -1]][outside] == 0).all()


def test_a_failure_of_dalis_own(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a GPU out of memory: the message is DALI's, and no picture is blamed wrongly."""
    backend = DaliBackend(records, PARAMS, 1, "first", CPU)
    pipe = backend._build(4)
    monkeypatch.setattr(pipe, "outputs", lambda: (_ for _ in ()).throw(RuntimeError("no memory left")))
    backend._idle = [pipe]
    with pytest.raises(UserError, match="data.backend=dali: DALI failed .*data.backend=ffcv: no memory left"):
        list(backend.crops(drawn(records, 4)))
    assert len(list(backend.crops(drawn(records, 4)))) == 1, "it goes on with new pipelines"


def test_a_pipeline_that_does_not_start(records: Records) -> None:
    """Such as one that needs a driver where there is none."""
    backend = DaliBackend(records, PARAMS, 1, "first", CPU)
    backend._decoder = {"device": "mixed"}
    with pytest.raises(UserError, match="data.backend=dali: DALI failed"):
        list(backend.crops(drawn(records, 4)))


def test_torchs_own_lack_of_memory_is_not_dalis(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(array: np.ndarray) -> torch.Tensor:
        raise torch.OutOfMemoryError

    backend = DaliBackend(records, PARAMS, 1, "first", CPU)
    monkeypatch.setattr(dali_backend.torch, "from_numpy", full)
    with pytest.raises(torch.OutOfMemoryError):
        list(backend.crops(drawn(records, 4)))


def test_the_hardware_decoder_is_part_of_the_pixels_name(records: Records) -> None:
    """Its pixels are others; the default takes none of a batch, so that a view's pixels do not depend on the rest."""
    cuda = torch.device("cuda")
    from nvidia.dali import __version__ as dali_version

    default = DataConfig().hw_decoder_load
    assert str(pixel_source("dali", records, cuda, default)) == f"dali mixed {dali_version}"
    shared = pixel_source("dali", records, cuda, 0.65)
    assert str(shared) == f"dali mixed {dali_version} hardware 0.65" and shared.backend == "dali"
    assert PixelSource.parse(str(shared)) == shared and PixelSource.parse(str(shared)).hw_decoder_load == 0.65
    assert PixelSource.parse(f"dali mixed {dali_version}").hw_decoder_load == 0 == PixelSource("ffcv").hw_decoder_load
    assert pixel_source("dali", records, CPU, 0.65) == pixel_source("dali", records, CPU), "only a GPU has one"


@pytest.mark.parametrize("ffcv", [True, False])
def test_dali_never_sees_what_does_not_decode(records: Records, monkeypatch: pytest.MonkeyPatch, ffcv: bool) -> None:
    """It would kill the process every second time: DALI never receives the batch with the bad record."""
    if not ffcv:
        monkeypatch.setattr(dali_backend, "library_path", lambda: None)
    elif dali_backend.library_path() is None:
        pytest.skip("FFCV is not installed")
    fed: list[int] = []
    feed = DaliBackend._feed
    monkeypatch.setattr(
        DaliBackend, "_feed", lambda self, pipe, *rest: fed.append(len(rest[0])) or feed(self, pipe, *rest)
    )
    data = records.data.copy()
    data[records.offsets[9] : records.offsets[9] + 200] = 0
    data.flags.writeable = False  # as a file's: for bytes that can be written all would be compiled once more
    damaged = copy.copy(records)
    damaged.data = data
    for verify, words in (("off", "does not decode|is damaged: CRC-32"), ("first", "is damaged: CRC-32")):
        fed.clear()
        stream = DaliBackend(damaged, PARAMS, 2, verify, CPU).crops(drawn(records, 4, 4, 4, 4))
        assert [len(next(stream)[0]) for _ in range(2)] == [4, 4]
        with pytest.raises(UserError, match=rf"record 9 \(key {records.keys[9]}, 9.jpg\) ({words})"):
            next(stream)
        assert fed == [4, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("hw_decoder_load", [0.0, 1.0])
def test_a_gpu_decodes_nearly_the_same_pixels(records: Records, hw_decoder_load: float) -> None:
    """On the device, in any batch, with work queued before it; compared with the CPU's decoder."""
    cuda = torch.device("cuda")
    finish = Finish([0.5] * 3, [0.2] * 3, cuda, channels_last=True)
    positions, views = np.arange(N), np.arange(N, dtype=np.int32)
    reference = expected_of(records, PARAMS, Plan(positions, views))
    busy, shown = torch.ones(4096, 4096, device=cuda), []
    for batch in (4, 30):
        loader = Loader(
            records,
            Recipe(size=24),
            seed=3,
            backend="dali",
            finish=finish,
            device=cuda,
            hw_decoder_load=hw_decoder_load,
        )
        found = []
        for item in loader.batches(positions, views, batch):
            assert item.pixels.is_cuda and item.pixels.shape[1:] == (24, 24, 3)
            busy = busy @ busy * 1e-4  # keeps torch's stream behind DALI's
            found.append(item.pixels)
        shown.append(torch.cat(found).cpu().numpy())
    np.testing.assert_array_equal(shown[0], shown[1])
    error = ((shown[0].astype(float) - reference) ** 2).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / np.maximum(error, 1e-6)) > 30).all()
