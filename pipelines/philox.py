"""Counter-based random draws, the same on every machine, addressed by sample, view, lane and draw number.

Philox4x32-10 with key = data.seed and counter = (key low, key high, view, lane << 16 | draw). One lane per transform, so that
adding a transform never changes another's draws. Only integers, + - * /, sqrt and comparisons, compiled without fastmath.
"""

import numpy as np

from pipelines.compiled import exact

LANE_CROP, LANE_FLIP = 0, 1
LANE_COLOUR_ORDER, LANE_BRIGHTNESS, LANE_CONTRAST, LANE_SATURATION = 2, 3, 4, 5  # 6 is reserved for hue
LANE_ROTATION, LANE_POLICY, LANE_CUTOUT, LANE_GREY, LANE_MIX, LANE_ERASING = 7, 8, 9, 10, 11, 12
# Lanes of order.py, for the order of an epoch and the partners of a mixture: far from those of transforms.
LANE_ORDER, LANE_CLASS_BALANCED, LANE_PARTNER = 0xFFFF, 0xFFFE, 0xFFFD


@exact
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit counter words and two key words to four 32-bit words."""
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = np.uint64(c0) & mask, np.uint64(c1) & mask, np.uint64(c2) & mask, np.uint64(c3) & mask
    k0, k1 = np.uint64(k0) & mask, np.uint64(k1) & mask
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return c0, c1, c2, c3


@exact
def draw(seed, key, view, lane, index):
    """Four 32-bit words (as uint64) of draw number `index` of `lane` for one view of one sample."""
    shift = np.uint64(32)
    key64, seed64 = np.uint64(key), np.uint64(seed)
    last = np.uint64(lane) << np.uint64(16) | np.uint64(index)
    return philox(key64, key64 >> shift, np.uint64(view), last, seed64, seed64 >> shift)


@exact
def uniform(word, low, high):
    return low + (high - low) * (np.float64(word) * 2.0**-32)


@exact
def below(word, n):
    """An integer in 0 .. n-1 from a 32-bit word (multiply and shift; n < 2**31)."""
    return np.int64((np.uint64(word) * np.uint64(n)) >> np.uint64(32))


@exact
def exp(x):
    """exp for |x| < 2.5 by its Taylor series: libm's last bit differs between machines, + * / do not."""
    total = 1.0
    for k in range(24, 0, -1):
        total = 1.0 + x * total / k
    return total


@exact
def log(x):
    """log for 0.1 <= x <= 10 as 2 atanh((x-1)/(x+1)), for the same reason as `exp`."""
    z = (x - 1.0) / (x + 1.0)
    total = 0.0
    for k in range(199, 0, -2):
        total = total * (z * z) + 1.0 / k
    return 2.0 * z * total


_LN2 = 0.6931471805599453


@exact
def wide_log(x):
    """log for any normal x > 0, in at most a thousand halvings or doublings, which are exact."""
    twos = 0.0
    while x > 1.5:
        x, twos = x * 0.5, twos + 1.0
    while x < 0.75:
        x, twos = x * 2.0, twos - 1.0
    return log(x) + twos * _LN2


@exact
def wide_exp(x):
    """exp for |x| < 700."""
    twos = np.floor(x / _LN2 + 0.5)
    out = exp(x - twos * _LN2)
    for _ in range(np.int64(abs(twos))):
        out *= 2.0 if twos > 0.0 else 0.5
    return out


@exact
def beta(seed, key, view, lane, first, alpha):
    """A draw from Beta(alpha, alpha), 0.05 <= alpha <= 100, from the draws `first`, `first` + 1, ... of a lane.

    Algorithm BA (Cheng, Generating beta variates with nonintegral shape parameters, CACM 21, 1978), with a = b: more than one
    attempt in four succeeds, so that the last of 1000 is never needed.
    """
    slope = np.sqrt((2.0 * alpha - 2.0) / (2.0 * alpha * alpha - 2.0 * alpha)) if alpha > 1.0 else 1.0 / alpha
    gamma = alpha + 1.0 / slope
    w = 0.0
    for n in range(1000):
        a, b, _c, _d = draw(seed, key, view, lane, first + n)
        u, v = (np.float64(a) + 0.5) * 2.0**-32, (np.float64(b) + 0.5) * 2.0**-32
        odds = slope * wide_log(u / (1.0 - u))
        w = alpha * wide_exp(odds)
        if 2.0 * alpha * wide_log(2.0 * alpha / (alpha + w)) + gamma * odds - 2.0 * _LN2 >= wide_log(u * u * v):
            break
    return w / (alpha + w)
