"""Codecs: what is decoded, how far it may be off, and that the certificate never promises too much."""

import math
import struct

import numpy as np
import pytest
import torch

from pipelines.errors import UserError
from pipelines.logits.codec import CODECS, TEMPERATURES, certificate, certified_loss, decode, encode, payload_bytes

CLASSES = (2, 100, 1000, 8142)
ELSEWHERE = (0.05, 0.3, 0.7, 1.2, 1.5, 2.5, 4.0, 7.5, 9.1, 12.0, 19.9)  # temperatures between and below certified ones


def some_logits(rows: int, classes: int, scale: float = 4.0, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(offset, scale, (rows, classes))).astype(np.float32)


def encoded(logits: np.ndarray, codec: str) -> torch.Tensor:
    return encode(torch.from_numpy(logits), codec)


def certified(logits: np.ndarray, codec: str) -> np.ndarray:
    """The sums of the certificate of `encoded`."""
    return certificate(torch.from_numpy(logits), encoded(logits, codec), codec).numpy()


def stored(logits: np.ndarray, codec: str) -> np.ndarray:
    payload = encoded(logits, codec)
    assert payload.dtype == torch.uint8 and payload.shape == (len(logits), payload_bytes(codec, logits.shape[1]))
    return decode(payload, codec).numpy()


def kl(true: np.ndarray, other: np.ndarray | None, temperature: float) -> np.ndarray:
    """KL per row in extended precision, straight from the definition; other: None = uniform."""
    t = np.asarray(true, np.longdouble) / temperature
    p = np.exp(t - t.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    if other is None:
        log_q = np.full_like(t, -np.log(np.longdouble(t.shape[1])))
    else:
        o = np.asarray(other, np.longdouble) / temperature
        o = o - o.max(axis=1, keepdims=True)
        log_q = o - np.log(np.exp(o).sum(axis=1, keepdims=True))
    terms = np.zeros_like(p)
    some = p > 0
    terms[some] = p[some] * (np.log(p[some]) - log_q[some])
    return terms.sum(axis=1)


def true_loss(true: np.ndarray, other: np.ndarray, temperature: float) -> float:
    return float(kl(true, other, temperature).sum() / kl(true, None, temperature).sum())


@pytest.mark.parametrize("classes", CLASSES)
def test_round_trip(classes: int) -> None:
    logits = some_logits(20, classes)
    assert np.array_equal(stored(logits, "f32"), logits)
    assert np.array_equal(stored(logits, "f16"), logits.astype(np.float16).astype(np.float32))
    step = (logits.max(axis=1) - logits.min(axis=1)) / 255
    error = np.abs(stored(logits, "u8").astype(np.float64) - logits).max(axis=1)
    assert (error <= step / 2 + 1e-6 * np.abs(logits).max(axis=1)).all()
    assert (error > step / 10).all() or classes == 2  # so the bound is not trivial; with two classes both are ends


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e37])
@pytest.mark.parametrize("offset", [0.0, -1e3])
def test_u8_of_huge_and_tiny_ranges(scale: float, offset: float) -> None:
    """Half a step plus the limits of float32: its relative error, and a step below its smallest normal number."""
    logits = some_logits(50, 100, scale, offset)
    step = (logits.max(axis=1).astype(np.float64) - logits.min(axis=1)) / 255
    error = np.abs(stored(logits, "u8").astype(np.float64) - logits).max(axis=1)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(logits).max(axis=1) + 256 * np.finfo(np.float32).smallest_subnormal
    assert (error <= step / 2 + rounding).all()


@pytest.mark.parametrize("codec", CODECS)
def test_constant_rows_are_exact(codec: str) -> None:
    logits = np.repeat(np.array([[0.0], [-3.5], [1024.0], [2.0**-14]], np.float32), 7, axis=1)
    assert np.array_equal(stored(logits, codec), logits)
    sums = certified(logits, codec)
    assert [certified_loss(sums, t) for t in (0.1, 1.0, 5.0, 1e4)] == [0.0] * 4


@pytest.mark.parametrize("classes", [3, 9, 40, 1000])
def test_a_smallest_logit_of_zero_has_no_sign(classes: int) -> None:
    """Which of 0 and -0 is the minimum depends on the kernel, a block's bytes must not."""
    logits = torch.ones(2, classes)
    logits[0, :2], logits[1, :2] = torch.tensor([0.0, -0.0]), torch.tensor([-0.0, 0.0])
    assert not encode(logits, "u8")[:, :4].any()


def test_u8_bytes_are_the_documented_ones() -> None:
    """float32 low and step, little-endian, then one byte per class: caches outlive the code."""
    low, high = np.float32(-1.0), np.float32(254.0)
    payload = encode(torch.tensor([[-1.0, 254.0, 99.0, 99.4, 99.6, 0.49]]), "u8")
    assert payload.numpy().tobytes() == struct.pack("<ff", low, (high - low) / 255) + bytes([0, 255, 100, 100, 101, 1])


def test_rows_are_decoded_one_by_one() -> None:
    """Any selection in any order, from memory of any strides, gives the rows it names."""
    logits = some_logits(30, 17)
    order = np.random.default_rng(1).integers(0, 30, 50)
    for codec in CODECS:
        payload = encoded(logits, codec)
        whole = decode(payload, codec)
        assert torch.equal(decode(payload[order], codec), whole[order])
        wide = torch.cat([torch.zeros(30, 5, dtype=torch.uint8), payload], dim=1)
        assert torch.equal(decode(wide[:, 5:], codec), whole)
        for i in range(30):
            assert torch.equal(decode(wide[i : i + 1, 5:], codec), whole[i : i + 1])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 9.0, 20.0])
def test_u8_keeps_within_the_bound_of_its_step(classes: int, temperature: float) -> None:
    """KL(true || stored) <= step^2 / (8 T^2) in every row: the bound of docs/method.md, from the decoded values alone."""
    logits = some_logits(40, classes, scale=5.0)
    step = (logits.max(axis=1).astype(np.float64) - logits.min(axis=1)) / 255
    found = kl(logits, stored(logits, "u8"), temperature)
    assert (found <= step**2 / (8 * temperature**2) * (1 + 1e-3)).all()
    assert found.max() > 0


def test_u8_loses_less_than_seven_hundredths_of_a_percent() -> None:
    for classes, scale in ((100, 6.0), (1000, 4.0), (8142, 3.0)):
        logits = some_logits(30, classes, scale)
        assert max(true_loss(logits, stored(logits, "u8"), t) for t in TEMPERATURES) < 7e-4


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("classes", (2, 100, 1000))
def test_certificate_is_the_sum_by_definition(codec: str, classes: int) -> None:
    """A thousand classes, more rows than are certified at a time; some very confident, some nearly flat."""
    logits = some_logits(150, classes) * np.geomspace(0.01, 5, 150, dtype=np.float32)[:, None]
    other, sums = stored(logits, codec), certified(logits, codec)
    assert sums.dtype == np.float64 and sums.shape == (len(TEMPERATURES), 3)
    ranges = np.ptp(logits.astype(np.float64) - other, axis=1)
    for (lost, information, bound), temperature in zip(sums, TEMPERATURES, strict=True):
        assert lost == pytest.approx(float(kl(logits, other, temperature).sum()), rel=1e-6, abs=1e-12)
        assert information == pytest.approx(float(kl(logits, None, temperature).sum()), rel=1e-9)
        assert bound == pytest.approx((ranges**2).sum() / (8 * temperature**2), rel=1e-9)
        assert lost <= bound * (1 + 1e-9)
    if codec == "f32":
        assert not sums[:, [0, 2]].any()


@pytest.mark.parametrize("classes", (5, 1000, 8142, 32_767))
def test_a_certificate_does_not_depend_on_the_number_of_threads(classes: int) -> None:
    """To the bit, as it is part of a block's bytes."""
    logits = some_logits({5: 20_000, 32_767: 10}.get(classes, 150), classes)
    alone = certified(logits, "u8")
    before = torch.get_num_threads()
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert np.array_equal(certified(logits, "u8"), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("codec", CODECS)
def test_a_gpu_encodes_the_same_bytes(codec: str) -> None:
    """More logits than are certified at a time; rows that are constant, huge, tiny, half-way between two codes, or of zeros."""
    logits = torch.from_numpy(some_logits(1200, 8142))
    logits[::100] = 2.5
    places = torch.arange(8142)
    hard = torch.stack(
        [logits[1] * 1e-38, logits[1] * 1e-42, (places % 511) / 2, torch.where(places % 2 == 0, 0.0, -0.0)]
    )
    hard = hard if codec == "f16" else torch.cat([hard, logits[1:2] * 1e36])
    assert torch.equal(encode(hard.cuda(), codec).cpu(), encode(hard, codec))
    payload = encode(logits.cuda(), codec)
    assert torch.equal(payload.cpu(), encode(logits, codec))
    sums = certificate(logits.cuda(), payload, codec)
    torch.testing.assert_close(sums.cpu(), certificate(logits, payload.cpu(), codec), rtol=1e-9, atol=1e-12)
    assert torch.equal(sums, certificate(logits.cuda(), payload, codec))


def hostile_logits(kind: str, codec: str) -> np.ndarray:
    """Teachers whose rounding matters most away from the certified temperatures."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (60, 50)).astype(np.float32)
    if kind == "tie":  # all mass on two classes, a whole step apart after rounding: lost at low T, invisible at high T
        logits[:, 0] = 40
        logits[:, 1] = np.float32(40 - 41 / 255 * 0.51)
    elif kind == "spike":  # one class far above: information falls steeply once T is high enough
        logits[:, 0] = 60
    elif kind == "pit":  # one class far below: the steps are wide and the rest share a few of them
        logits[:, 0] = -30
    elif kind == "scales":  # groups that melt at different temperatures
        logits[:, :2] += 60
        logits[:, 2:12] += 25
    return logits


@pytest.mark.parametrize("codec", ["u8", "f16"])
@pytest.mark.parametrize("kind", ["normal", "tie", "spike", "pit", "scales"])
def test_certified_loss_is_never_too_small(kind: str, codec: str) -> None:
    logits = hostile_logits(kind, codec)
    other, sums = stored(logits, codec), certified(logits, codec)
    for temperature in TEMPERATURES:
        found = true_loss(logits, other, temperature)
        assert certified_loss(sums, temperature) == pytest.approx(found, rel=1e-6, abs=1e-12)
    for temperature in ELSEWHERE:
        assert certified_loss(sums, temperature) >= true_loss(logits, other, temperature) * (1 - 1e-9)
    assert certified_loss(sums, TEMPERATURES[-1] + 0.1) == math.inf
    for tau, p, t in ((9.8, 0.49, 20.0), (2.1, 0.7, 3.0), (4.2, 0.7, 6.0)):  # their quotient is not exactly t
        assert tau / p != t and certified_loss(sums, tau / p) == certified_loss(sums, t)


def test_certified_loss_is_not_absurdly_large() -> None:
    """For a realistic teacher, u8 keeps within 1 % wherever it is certified, also between the certified temperatures."""
    for classes, scale in ((5, 4.0), (100, 6.0), (1000, 3.0)):
        logits = some_logits(100, classes, scale)
        sums = certified(logits, "u8")
        assert all(0 < certified_loss(sums, t) < 0.01 for t in (*TEMPERATURES, *ELSEWHERE) if t >= 0.3)


def test_f32_loses_nothing_at_any_temperature() -> None:
    logits = some_logits(9, 30)
    sums = certified(logits, "f32")
    assert [certified_loss(sums, t) for t in (0.01, 1.0, 5.0, 20.0, 1e6)] == [0.0] * 5


def test_a_teacher_that_says_almost_nothing() -> None:
    """Rows flat except for the last bits: no division by zero, no negative loss."""
    logits = np.full((10, 20), 3.0, np.float32)
    logits[:, 0] = np.nextafter(np.float32(3), np.float32(4))
    for codec in ("u8", "f16"):
        sums = certified(logits, codec)
        assert all(certified_loss(sums, t) >= 0 for t in (0.5, 1.0, 5.0, 20.0))


@pytest.mark.parametrize(("codec", "value"), [("f16", 65520.0), ("f16", -1e5), ("u8", 3e38)])
def test_logits_that_a_codec_cannot_hold_are_refused(codec: str, value: float) -> None:
    logits = np.array([[0.0, 1.0, 2.0], [value, -value, 1.0]], np.float32)
    with pytest.raises(UserError, match=f"cache.codec={codec} holds: use cache.codec=f32"):
        encoded(logits, codec)
    assert np.array_equal(stored(logits, "f32"), logits)
    assert np.isfinite(stored(np.array([[65504.0, -65504.0]], np.float32), codec)).all()
