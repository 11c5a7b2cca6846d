// 3x3 convolutions and batch norms of ResNets for small images, for one thread of a CPU with AMX: images[B, H, W, C] in
// bfloat16, sums and weights in float32. amx_blocks.py builds this and compares it with torch. Stride 2 is stride 1 of
// which every second pixel counts: its gradient's image has zeros between the pixels.
#include <immintrin.h>
#include <sys/syscall.h>
#include <torch/extension.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

using at::Tensor;
typedef uint16_t bf16;

namespace {

struct __attribute__((packed)) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {0};
  uint16_t colsb[16] = {0};
  uint8_t rows[16] = {0};
  TileConfig() {
    for (int i = 0; i < 8; i++) colsb[i] = 64, rows[i] = 16;
  }
};

const bool permitted = [] {  // the kernel hands out the tiles' state on request only
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}();

struct Tiles {
  Tiles() {
    static const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

struct Aligned {
  std::vector<uint8_t> bytes;
  void* at;
  explicit Aligned(size_t size) : bytes(size + 64), at((void*)(((uintptr_t)bytes.data() + 63) / 64 * 64)) {}
};

template <class T>
T* scratch(int which, size_t count) {  // zero when it grows; each use keeps its own zeros
  static thread_local std::vector<std::pair<size_t, std::unique_ptr<Aligned>>> kept(64);
  auto& [size, memory] = kept[which];
  if (size < count * sizeof(T)) memory = std::make_unique<Aligned>(size = count * sizeof(T));
  return (T*)memory->at;
}

inline __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __mmask16 mask_of(int count) { return count >= 16 ? 0xffff : (1u << count) - 1; }
inline bf16 round1(float v) {
  uint32_t u;
  memcpy(&u, &v, 4);
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

// ---- convolution ----

// weights[O, C, 3, 3] float32 -> tiles [ky][kt][nt][16 pairs of k][16 o][2], k = kx * C + c. transposed: of the
// gradient's convolution
void pack(const float* w, bf16* to, int C, int O, bool transposed) {
  int KT = (3 * C + 31) / 32, NT = (O + 15) / 16;
  memset(to, 0, sizeof(bf16) * 3 * KT * NT * 512);
  for (int ky = 0; ky < 3; ky++)
    for (int kx = 0; kx < 3; kx++)
      for (int c = 0; c < C; c++) {
        int k = kx * C + c;
        bf16* tile = to + ((size_t)(ky * KT + k / 32) * NT) * 512 + (k % 32 / 2) * 32 + k % 2;
        for (int o = 0; o < O; o++) {
          float v = transposed ? w[((size_t)c * O + o) * 9 + (2 - ky) * 3 + 2 - kx]
                               : w[((size_t)o * C + c) * 9 + ky * 3 + kx];
          tile[(o / 16) * 512 + (o % 16) * 2] = round1(v);
        }
      }
}

struct Epilogue {
  const bf16* add = nullptr;                       // [B, H, W, O]: added
  double* sums = nullptr;                          // [2, O]: of the results and of their squares
  const float *scale = nullptr, *shift = nullptr;  // [O]: an affine map, and no less than 0
};

template <int MB, int NB>
void tiles_of(const bf16* const* a, long stride, const bf16* w, long row, int KT, float* out) {
  _tile_zero(0);
  if constexpr (MB * NB > 1) _tile_zero(1);
  if constexpr (MB * NB > 2) _tile_zero(2);
  if constexpr (MB * NB > 3) _tile_zero(3);
  for (int ky = 0; ky < 3; ky++)
    for (int kt = 0; kt < KT; kt++) {
      const bf16* b = w + (size_t)(ky * KT + kt) * NB * 512;
      long off = ky * row + kt * 32;
      if constexpr (MB == 4) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a[0] + off, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a[1] + off, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, a[2] + off, stride);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, a[3] + off, stride);
        _tile_dpbf16ps(3, 5, 6);
      } else if constexpr (MB == 2) {
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + 512, 64);
        _tile_loadd(4, a[0] + off, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a[1] + off, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      } else {
        _tile_loadd(4, a[0] + off, stride);
        _tile_loadd(5, b, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, b + 512, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, b + 1024, 64);
        _tile_dpbf16ps(2, 4, 7);
        if constexpr (NB == 4) {
          _tile_loadd(5, b + 1536, 64);
          _tile_dpbf16ps(3, 4, 5);
        }
      }
    }
  _tile_stored(0, out, 64);
  if constexpr (MB * NB > 1) _tile_stored(1, out + 256, 64);
  if constexpr (MB * NB > 2) _tile_stored(2, out + 512, 64);
  if constexpr (MB * NB > 3) _tile_stored(3, out + 768, 64);
}

// x[B, H, W, C] (up: the convolved image is x with a zero after each pixel, 2H x 2W) -> y (every `stride`-th pixel of
// the result)
thread_local int padded_for[2][3] = {};  // the shape whose border is zero in the padded image

template <int MB, int NB, bool SUMS, bool ADD, bool AFFINE>
void convolve(const bf16* x, const bf16* w, bf16* y, int B, int H, int W, int C, int O, int up, int stride,
              const Epilogue& e) {
  int h_in = H, w_in = W;
  H *= up, W *= up;
  int W2 = W + 2, KT = (3 * C + 31) / 32, OH = H / stride, OW = W / stride;
  bf16* padded = scratch<bf16>(up == 2 ? 1 : 0, (size_t)(H + 2) * W2 * C + 4096);
  int* shape = padded_for[up == 2];
  if (shape[0] != H || shape[1] != W || shape[2] != C) {
    memset(padded, 0, sizeof(bf16) * ((size_t)(H + 2) * W2 * C + 4096));
    shape[0] = H, shape[1] = W, shape[2] = C;
  }
  struct Row {
    int from, to;  // row of the tile, and where in y its pixel lies
  };
  struct Place {
    int first, rows;  // first pixel in the padded image, and how many of the 16 count
    Row row[16];
  };
  std::vector<Place> places;
  auto place = [&](int first, int h, int v) {
    Place p{first, 0, {}};
    for (int r = 0; r < 16; r++, v++) {
      if (v == W2) v = 0, h++;
      if (v < W && h < H && v % stride == 0 && h % stride == 0)
        p.row[p.rows++] = {r * 16, (h / stride * OW + v / stride) * O};
    }
    places.push_back(p);
  };
  if (W < 16)
    for (int q = 0; q < H * W2; q += 16) place(q, q / W2, q % W2);
  else
    for (int h = 0; h < H; h += stride)
      for (int v = 0; v < W; v += 16) place(h * W2 + v, h, v);
  alignas(64) float out[MB * NB * 256];
  __m512 sum[NB], square[NB], scale[NB], shift[NB];
  __mmask16 mask[NB];
  for (int n = 0; n < NB; n++) {
    mask[n] = mask_of(O - 16 * n);
    if constexpr (AFFINE)
      scale[n] = _mm512_maskz_loadu_ps(mask[n], e.scale + 16 * n),
      shift[n] = _mm512_maskz_loadu_ps(mask[n], e.shift + 16 * n);
  }
  std::vector<double> sums(2 * NB * 16, 0.0);
  Tiles tiles;
  size_t count = places.size();
  for (int b = 0; b < B; b++) {
    const bf16* image = x + (size_t)b * h_in * w_in * C;
    if (up == 1)
      for (int h = 0; h < H; h++)
        memcpy(padded + ((size_t)(h + 1) * W2 + 1) * C, image + (size_t)h * W * C, sizeof(bf16) * W * C);
    else
      for (int h = 0; h < h_in; h++)
        for (int v = 0; v < w_in; v++) {
          bf16* to = padded + ((size_t)(2 * h + 1) * W2 + 2 * v + 1) * C;
          const bf16* from = image + ((size_t)h * w_in + v) * C;
          for (int c = 0; c < C; c += 8)
            _mm_storeu_si128((__m128i*)(to + c), _mm_loadu_si128((const __m128i*)(from + c)));
        }
    for (int n = 0; n < NB; n++) sum[n] = square[n] = _mm512_setzero_ps();
    bf16* result = y + (size_t)b * OH * OW * O;
    const bf16* add = ADD ? e.add + (size_t)b * OH * OW * O : nullptr;
    for (size_t m = 0; m < count; m += MB) {
      const bf16* a[MB];
      for (int i = 0; i < MB; i++) a[i] = padded + (size_t)places[std::min(m + i, count - 1)].first * C;
      tiles_of<MB, NB>(a, C * 2, w, (long)W2 * C, KT, out);
      for (int i = 0; i < MB && m + i < count; i++) {
        const Place& p = places[m + i];
        for (int r = 0; r < p.rows; r++) {
          const float* from = out + i * NB * 256 + p.row[r].from;
          int to = p.row[r].to;
#pragma GCC unroll 4
          for (int n = 0; n < NB; n++) {
            __m512 value = _mm512_load_ps(from + n * 256);
            if constexpr (AFFINE) value = _mm512_fmadd_ps(value, scale[n], shift[n]);
            if constexpr (ADD)
              value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask[n], add + to + 16 * n)));
            if constexpr (AFFINE) value = _mm512_max_ps(value, _mm512_setzero_ps());
            __m256i rounded = narrow(value);
            _mm256_mask_storeu_epi16(result + to + 16 * n, mask[n], rounded);
            if constexpr (SUMS) {
              value = widen(rounded);
              sum[n] = _mm512_add_ps(sum[n], value);
              square[n] = _mm512_fmadd_ps(value, value, square[n]);
            }
          }
        }
      }
    }
    if constexpr (SUMS) {
      alignas(64) float flushed[16];
      for (int n = 0; n < NB; n++)
        for (int which = 0; which < 2; which++) {
          _mm512_store_ps(flushed, which ? square[n] : sum[n]);
          for (int c = 0; c < 16; c++) sums[(which * NB + n) * 16 + c] += flushed[c];
        }
    }
  }
  if constexpr (SUMS)
    for (int which = 0; which < 2; which++)
      for (int o = 0; o < O; o++) e.sums[which * O + o] = sums[which * NB * 16 + o];
}

template <bool SUMS, bool ADD, bool AFFINE>
void by_width(const bf16* x, const bf16* w, bf16* y, int B, int H, int W, int C, int O, int up, int stride,
              const Epilogue& e) {
  switch ((O + 15) / 16) {
    case 1:
      return convolve<4, 1, SUMS, ADD, AFFINE>(x, w, y, B, H, W, C, O, up, stride, e);
    case 2:
      return convolve<2, 2, SUMS, ADD, AFFINE>(x, w, y, B, H, W, C, O, up, stride, e);
    case 3:
      return convolve<1, 3, SUMS, ADD, AFFINE>(x, w, y, B, H, W, C, O, up, stride, e);
    case 4:
      return convolve<1, 4, SUMS, ADD, AFFINE>(x, w, y, B, H, W, C, O, up, stride, e);
  }
  TORCH_CHECK(false, "amx_blocks.py computes at most 64 channels: take its folder out of PYTHONPATH");
}

void convolve_any(const bf16* x, const bf16* w, bf16* y, int B, int H, int W, int C, int O, int up, int stride,
                  const Epilogue& e) {
  TORCH_CHECK(up == 1 || C % 8 == 0);
  if (e.sums) return by_width<true, false, false>(x, w, y, B, H, W, C, O, up, stride, e);
  if (e.scale)
    return e.add ? by_width<false, true, true>(x, w, y, B, H, W, C, O, up, stride, e)
                 : by_width<false, false, true>(x, w, y, B, H, W, C, O, up, stride, e);
  return e.add ? by_width<false, true, false>(x, w, y, B, H, W, C, O, up, stride, e)
               : by_width<false, false, false>(x, w, y, B, H, W, C, O, up, stride, e);
}

void check(const Tensor& x) {
  TORCH_CHECK(permitted, "this machine has no AMX: take the folder of amx_blocks.py out of PYTHONPATH");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "takes bfloat16 in channels_last");
}
Tensor image_like(const Tensor& x, long O, long H, long W) {
  return at::empty({x.size(0), O, H, W}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
}
const bf16* data(const Tensor& t) { return (const bf16*)t.const_data_ptr(); }

// y = conv(x, w), and sums[2, O] of y and y * y
std::tuple<Tensor, Tensor> conv_sums(const Tensor& x, const Tensor& w, int64_t stride) {
  check(x);
  int B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), O = w.size(0);
  Tensor y = image_like(x, O, H / stride, W / stride), sums = at::empty({2, O}, at::kDouble);
  bf16* packed = scratch<bf16>(2, 3 * ((3 * C + 31) / 32) * ((O + 15) / 16) * 512);
  pack(w.const_data_ptr<float>(), packed, C, O, false);
  Epilogue e;
  e.sums = sums.data_ptr<double>();
  convolve_any(data(x), packed, (bf16*)y.data_ptr(), B, H, W, C, O, 1, stride, e);
  return {y, sums};
}

// relu(conv(x, w) * scale + shift + add), in eval mode
Tensor conv_affine(const Tensor& x, const Tensor& w, int64_t stride, const Tensor& scale, const Tensor& shift,
                   const std::optional<Tensor>& add) {
  check(x);
  int B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), O = w.size(0);
  Tensor y = image_like(x, O, H / stride, W / stride);
  bf16* packed = scratch<bf16>(2, 3 * ((3 * C + 31) / 32) * ((O + 15) / 16) * 512);
  pack(w.const_data_ptr<float>(), packed, C, O, false);
  Epilogue e;
  e.scale = scale.const_data_ptr<float>(), e.shift = shift.const_data_ptr<float>();
  if (add) check(*add), e.add = data(*add);
  convolve_any(data(x), packed, (bf16*)y.data_ptr(), B, H, W, C, O, 1, stride, e);
  return y;
}

// the gradient of x, given that of conv(x, w), plus `add`
Tensor conv_back(const Tensor& dy, const Tensor& w, int64_t stride, const std::optional<Tensor>& add) {
  check(dy);
  int B = dy.size(0), O = dy.size(1), H = dy.size(2), W = dy.size(3), C = w.size(1);
  Tensor dx = image_like(dy, C, H * stride, W * stride);
  bf16* packed = scratch<bf16>(3, 3 * ((3 * O + 31) / 32) * ((C + 15) / 16) * 512);
  pack(w.const_data_ptr<float>(), packed, O, C, true);
  Epilogue e;
  if (add) check(*add), e.add = data(*add);
  convolve_any(data(dy), packed, (bf16*)dx.data_ptr(), B, H, W, O, C, stride, 1, e);
  return dx;
}

// ---- gradient of the weights ----

inline void transpose16(__m256i* r) {  // 16 x 16 of 16 bits
  __m256i t[16];
  for (int i = 0; i < 8; i++)
    t[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]),
          t[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm256_unpacklo_epi32(t[4 * i], t[4 * i + 2]),
          r[4 * i + 1] = _mm256_unpackhi_epi32(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi32(t[4 * i + 1], t[4 * i + 3]),
              r[4 * i + 3] = _mm256_unpackhi_epi32(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      t[8 * i + 2 * j] = _mm256_unpacklo_epi64(r[8 * i + j], r[8 * i + 4 + j]);
      t[8 * i + 2 * j + 1] = _mm256_unpackhi_epi64(r[8 * i + j], r[8 * i + 4 + j]);
    }
  // t[i] holds column i of rows 0-7 in its lower half and column i + 8 in its upper one, t[8 + i] those of rows 8-15
  for (int i = 0; i < 8; i++)
    r[i] = _mm256_permute2x128_si256(t[i], t[8 + i], 0x20), r[i + 8] = _mm256_permute2x128_si256(t[i], t[8 + i], 0x31);
}

// acc[3 kx][NB blocks of 16 o][16 o][16 c] += sum over pixels of dy[o] x[c, shifted by kx]
// dt: dy by o, then pixels; even, odd: x by pairs of pixels (2j, 2j + 1), and (2j + 1, 2j + 2)
template <int NB>
void accumulate(const bf16* dt, long rows, const bf16* even, const bf16* odd, int steps, const long* offsets,
                float* acc) {
  _tile_loadd(0, acc, 64);
  _tile_loadd(1, acc + 256, 64);
  _tile_loadd(2, acc + 512, 64);
  if constexpr (NB == 2) {
    _tile_loadd(3, acc + 768, 64);
    _tile_loadd(4, acc + 1024, 64);
    _tile_loadd(5, acc + 1280, 64);
  }
  for (int s = 0; s < steps; s++) {
    const bf16 *d = dt + (size_t)s * 32, *e = even + offsets[s], *o = odd + offsets[s];
    if constexpr (NB == 2) {
      const bf16* second = d + rows * 8;  // rows: bytes between two o
      _tile_loadd(7, e, 64);
      _tile_loadd(6, d, rows);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(6, second, rows);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, o, 64);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(6, d, rows);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(7, e + 32, 64);
      _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(6, second, rows);
      _tile_dpbf16ps(5, 6, 7);
    } else {
      _tile_loadd(6, d, rows);
      _tile_loadd(7, e, 64);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(5, o, 64);
      _tile_dpbf16ps(1, 6, 5);
      _tile_loadd(4, e + 32, 64);
      _tile_dpbf16ps(2, 6, 4);
    }
  }
  _tile_stored(0, acc, 64);
  _tile_stored(1, acc + 256, 64);
  _tile_stored(2, acc + 512, 64);
  if constexpr (NB == 2) {
    _tile_stored(3, acc + 768, 64);
    _tile_stored(4, acc + 1024, 64);
    _tile_stored(5, acc + 1280, 64);
  }
}

// the gradient of w[O, C, 3, 3], float32
Tensor conv_weight(const Tensor& x, const Tensor& dy, int64_t stride) {
  check(x), check(dy);
  int B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), O = dy.size(1), W2 = W + 2, OW = W / stride;
  int NA = (C + 15) / 16, NO = (O + 15) / 16;
  int PK = (H * W2 + 31) / 32 * 32, LX = ((H + 2) * W2 + 64 + 31) / 32 * 32;  // pixels of dy and x with their borders
  int G = std::max(1, std::min(B, 400000 / (2 * (2 * NA + NO) * 16 * LX)));
  long RS = (long)G * PK + 32;  // not a multiple of 4096 bytes
  size_t x_size = (size_t)NA * G * LX * 16, d_size = (size_t)NO * 16 * RS;
  bf16* even = scratch<bf16>(4, x_size);
  bf16* odd = scratch<bf16>(7, x_size);
  bf16* dt = scratch<bf16>(5, d_size);
  static thread_local std::array<int, 6> last{};
  std::array<int, 6> shape{C, O, H, W, (int)stride, G};
  if (last != shape) memset(even, 0, x_size * 2), memset(odd, 0, x_size * 2), memset(dt, 0, d_size * 2), last = shape;
  int accs = 3 * NA * 3 * NO * 256;
  float* acc = scratch<float>(6, accs);
  memset(acc, 0, sizeof(float) * accs);
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 16; i++) order[2 * i] = i, order[2 * i + 1] = 32 + i;
  const __m512i interleave = _mm512_load_si512(order);
  auto pair = [&](__m256i one, __m256i two) {
    return _mm512_permutex2var_epi16(_mm512_castsi256_si512(one), interleave, _mm512_castsi256_si512(two));
  };
  std::vector<long> offsets((size_t)G * PK / 32);
  for (int g = 0; g < G; g++)
    for (int s = 0; s < PK / 32; s++) offsets[(size_t)g * (PK / 32) + s] = ((long)g * LX + s * 32) * 16;
  Tiles tiles;
  for (int b0 = 0; b0 < B; b0 += G) {
    int count = std::min(G, B - b0);
    for (int g = 0; g < count; g++) {
      const bf16* image = data(x) + (size_t)(b0 + g) * H * W * C;
      for (int a = 0; a < NA; a++) {
        __mmask16 mask = mask_of(C - 16 * a);
        for (int h = 0; h < H; h++) {
          const bf16* from = image + (size_t)h * W * C + 16 * a;
          size_t row = (((size_t)a * G + g) * LX + (h + 1) * W2) * 16;
          __m256i before = _mm256_setzero_si256();
          for (int v = 0; v < W; v += 2) {
            __m256i one = _mm256_maskz_loadu_epi16(mask, from + (size_t)v * C),
                    two = _mm256_maskz_loadu_epi16(mask, from + (size_t)(v + 1) * C);
            _mm512_store_si512(even + row + (size_t)v * 16, pair(before, one));
            _mm512_store_si512(odd + row + (size_t)v * 16, pair(one, two));
            before = two;
          }
          _mm512_store_si512(even + row + (size_t)W * 16, pair(before, _mm256_setzero_si256()));
        }
      }
      const bf16* grads = data(dy) + (size_t)(b0 + g) * (H / stride) * OW * O;
      for (int n = 0; n < NO; n++) {
        __mmask16 mask = mask_of(O - 16 * n);
        for (int h = 0; h < H / stride; h++)
          for (int v = 0; v < OW; v += 16) {
            __m256i r[16];
            int pixels = std::min(16, OW - v);
            const bf16* from = grads + ((size_t)h * OW + v) * O + 16 * n;
            for (int i = 0; i < pixels; i++) r[i] = _mm256_maskz_loadu_epi16(mask, from + (size_t)i * O);
            for (int i = pixels; i < 16; i++) r[i] = _mm256_setzero_si256();
            transpose16(r);
            bf16* to = dt + (size_t)16 * n * RS + (size_t)g * PK + (h * W2 + v) * stride;
            if (stride == 1)
              for (int c = 0; c < 16; c++) _mm256_mask_storeu_epi16(to + c * RS, mask_of(pixels), r[c]);
            else
              for (int c = 0; c < 16; c++)
                _mm512_mask_storeu_epi32(to + c * RS, mask_of(pixels), _mm512_cvtepu16_epi32(r[c]));
          }
      }
    }
    int steps = count * (PK / 32);
    for (int a = 0; a < NA; a++)
      for (int ky = 0; ky < 3; ky++) {
        size_t from = ((size_t)a * G * LX + ky * W2) * 16;
        for (int n = 0; n < NO; n += 2) {
          float* to = acc + ((size_t)(a * 3 + ky) * NO + n) * 3 * 256;  // [a][ky][pairs of n][kx][n in its pair]
          if (n + 1 < NO)
            accumulate<2>(dt + (size_t)16 * n * RS, RS * 2, even + from, odd + from, steps, offsets.data(), to);
          else
            accumulate<1>(dt + (size_t)16 * n * RS, RS * 2, even + from, odd + from, steps, offsets.data(), to);
        }
      }
  }
  Tensor dw = at::empty({O, C, 3, 3}, at::kFloat);
  float* w = dw.data_ptr<float>();
  for (int o = 0; o < O; o++)
    for (int c = 0; c < C; c++)
      for (int ky = 0; ky < 3; ky++)
        for (int kx = 0; kx < 3; kx++) {
          int n = o / 16, first = n / 2 * 2, width = first + 1 < NO ? 2 : 1;
          const float* block = acc + ((size_t)(c / 16 * 3 + ky) * NO + first) * 3 * 256;
          w[((size_t)o * C + c) * 9 + ky * 3 + kx] =
              block[((size_t)kx * width + n - first) * 256 + (o % 16) * 16 + c % 16];
        }
  return dw;
}

// ---- the shortcut without parameters: every `stride`-th pixel, zeros for the missing channels on both sides ----

Tensor shortcut(const Tensor& x, int64_t O, int64_t stride) {
  check(x);
  int B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), skip = (O - C) / 2, OH = H / stride, OW = W / stride;
  Tensor out = image_like(x, O, OH, OW);
  bf16* to = (bf16*)out.data_ptr();
  memset(to, 0, out.numel() * 2);
  for (int b = 0; b < B; b++)
    for (int h = 0; h < OH; h++)
      for (int v = 0; v < OW; v++)
        memcpy(to + (((size_t)b * OH + h) * OW + v) * O + skip,
               data(x) + (((size_t)b * H + h * stride) * W + v * stride) * C, C * 2);
  return out;
}

// dx += the gradient of the shortcut's input
void shortcut_back(Tensor dx, const Tensor& dout, int64_t stride) {
  check(dx), check(dout);
  int B = dx.size(0), C = dx.size(1), H = dx.size(2), W = dx.size(3), O = dout.size(1), skip = (O - C) / 2,
      OH = H / stride, OW = W / stride;
  for (int b = 0; b < B; b++)
    for (int h = 0; h < OH; h++)
      for (int v = 0; v < OW; v++) {
        bf16* to = (bf16*)dx.data_ptr() + (((size_t)b * H + h * stride) * W + v * stride) * C;
        const bf16* from = data(dout) + (((size_t)b * OH + h) * OW + v) * O + skip;
        for (int c = 0; c < C; c += 16) {
          __mmask16 mask = mask_of(C - c);
          __m512 sum = _mm512_add_ps(widen(_mm256_maskz_loadu_epi16(mask, to + c)),
                                     widen(_mm256_maskz_loadu_epi16(mask, from + c)));
          _mm256_mask_storeu_epi16(to + c, mask, narrow(sum));
        }
      }
}

// ---- batch norm ----

int period_of(int C) { return std::lcm(C, 16); }

template <int V>
void apply_rows(const bf16* y, const bf16* add, bf16* out, size_t groups, const float* scale, const float* shift) {
  __m512 s[V], t[V];
  for (int i = 0; i < V; i++) s[i] = _mm512_loadu_ps(scale + 16 * i), t[i] = _mm512_loadu_ps(shift + 16 * i);
  for (size_t g = 0; g < groups; g++)
    for (int i = 0; i < V; i++) {
      size_t at = (g * V + i) * 16;
      __m512 value = _mm512_fmadd_ps(widen(_mm256_loadu_si256((const __m256i*)(y + at))), s[i], t[i]);
      if (add) value = _mm512_add_ps(value, widen(_mm256_loadu_si256((const __m256i*)(add + at))));
      _mm256_storeu_si256((__m256i*)(out + at), narrow(_mm512_max_ps(value, _mm512_setzero_ps())));
    }
}

template <int V>
void sums_back(const bf16* dout, const bf16* y, const bf16* out, size_t groups, const float* mean, double* to) {
  // to: [2][16 * V]: sum of g = dout where out > 0, and of g * (y - mean)
  __m512 m[V];
  for (int i = 0; i < V; i++) m[i] = _mm512_loadu_ps(mean + 16 * i);
  std::fill(to, to + 32 * V, 0.0);
  for (size_t start = 0; start < groups; start += 1024) {
    __m512 a[V], b[V];
    for (int i = 0; i < V; i++) a[i] = b[i] = _mm512_setzero_ps();
    for (size_t g = start; g < std::min(groups, start + 1024); g++)
      for (int i = 0; i < V; i++) {
        size_t at = (g * V + i) * 16;
        __mmask16 on = _mm256_test_epi16_mask(_mm256_loadu_si256((const __m256i*)(out + at)), _mm256_set1_epi16(-1));
        __m512 grad = widen(_mm256_maskz_loadu_epi16(on, dout + at));
        a[i] = _mm512_add_ps(a[i], grad);
        b[i] = _mm512_fmadd_ps(grad, _mm512_sub_ps(widen(_mm256_loadu_si256((const __m256i*)(y + at))), m[i]), b[i]);
      }
    alignas(64) float flushed[16];
    for (int i = 0; i < V; i++)
      for (int which = 0; which < 2; which++) {
        _mm512_store_ps(flushed, which ? b[i] : a[i]);
        for (int c = 0; c < 16; c++) to[(which * V + i) * 16 + c] += flushed[c];
      }
  }
}

template <int V>
void rows_back(const bf16* dout, const bf16* y, const bf16* out, bf16* dy, bf16* dadd, size_t groups, const float* p,
               const float* q, const float* r) {
  // dy = p * g + q * y + r
  __m512 vp[V], vq[V], vr[V];
  for (int i = 0; i < V; i++)
    vp[i] = _mm512_loadu_ps(p + 16 * i), vq[i] = _mm512_loadu_ps(q + 16 * i), vr[i] = _mm512_loadu_ps(r + 16 * i);
  for (size_t g = 0; g < groups; g++)
    for (int i = 0; i < V; i++) {
      size_t at = (g * V + i) * 16;
      __mmask16 on = _mm256_test_epi16_mask(_mm256_loadu_si256((const __m256i*)(out + at)), _mm256_set1_epi16(-1));
      __m256i grad = _mm256_maskz_loadu_epi16(on, dout + at);
      __m512 value = _mm512_fmadd_ps(widen(_mm256_loadu_si256((const __m256i*)(y + at))), vq[i], vr[i]);
      _mm256_storeu_si256((__m256i*)(dy + at), narrow(_mm512_fmadd_ps(widen(grad), vp[i], value)));
      if (dadd) _mm256_storeu_si256((__m256i*)(dadd + at), grad);
    }
}

#define BY_PERIOD(V, CALL)                                                                                        \
  switch (V) {                                                                                                    \
    case 1: {                                                                                                     \
      constexpr int N = 1;                                                                                        \
      CALL;                                                                                                       \
      break;                                                                                                      \
    }                                                                                                             \
    case 2: {                                                                                                     \
      constexpr int N = 2;                                                                                        \
      CALL;                                                                                                       \
      break;                                                                                                      \
    }                                                                                                             \
    case 3: {                                                                                                     \
      constexpr int N = 3;                                                                                        \
      CALL;                                                                                                       \
      break;                                                                                                      \
    }                                                                                                             \
    case 4: {                                                                                                     \
      constexpr int N = 4;                                                                                        \
      CALL;                                                                                                       \
      break;                                                                                                      \
    }                                                                                                             \
    default:                                                                                                      \
      TORCH_CHECK(false,                                                                                          \
                  "amx_blocks.py has norms of 16, 24, 32, 48 or 64 channels: take its folder out of PYTHONPATH"); \
  }

// mean[C] and 1 / standard deviation[C] from the sums; running figures are updated as torch does
std::tuple<Tensor, Tensor> bn_moments(const Tensor& sums, int64_t count, double eps, double momentum,
                                      Tensor running_mean, Tensor running_var) {
  int C = sums.size(1);
  Tensor mean = at::empty({C}, at::kFloat), inverse = at::empty({C}, at::kFloat);
  const double* s = sums.const_data_ptr<double>();
  float *rm = running_mean.data_ptr<float>(), *rv = running_var.data_ptr<float>();
  for (int c = 0; c < C; c++) {
    double m = s[c] / count, var = std::max(0.0, s[C + c] / count - m * m);
    mean.data_ptr<float>()[c] = m;
    inverse.data_ptr<float>()[c] = 1 / std::sqrt(var + eps);
    rm[c] = (1 - momentum) * rm[c] + momentum * m;
    rv[c] = (1 - momentum) * rv[c] + momentum * var * count / (count - 1.0);
  }
  return {mean, inverse};
}

// relu((y - mean) * inverse * weight + bias + add)
Tensor bn_relu(const Tensor& y, const Tensor& mean, const Tensor& inverse, const Tensor& weight, const Tensor& bias,
               const std::optional<Tensor>& add) {
  check(y);
  if (add) check(*add);
  int C = y.size(1), period = period_of(C), V = period / 16;
  std::vector<float> scale(period), shift(period);
  for (int i = 0; i < period; i++) {
    int c = i % C;
    scale[i] = inverse.const_data_ptr<float>()[c] * weight.const_data_ptr<float>()[c];
    shift[i] = bias.const_data_ptr<float>()[c] - mean.const_data_ptr<float>()[c] * scale[i];
  }
  Tensor out = at::empty_like(y);
  size_t groups = y.numel() / period;
  TORCH_CHECK(groups * period == (size_t)y.numel());
  BY_PERIOD(
      V, apply_rows<N>(data(y), add ? data(*add) : nullptr, (bf16*)out.data_ptr(), groups, scale.data(), shift.data()));
  return out;
}

// gradients of y, of the addend (empty unless asked for), of weight and bias
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_relu_back(const Tensor& dout, const Tensor& y, const Tensor& out,
                                                        const Tensor& mean, const Tensor& inverse, const Tensor& weight,
                                                        bool added) {
  check(dout), check(y), check(out);
  int C = y.size(1), period = period_of(C), V = period / 16;
  size_t groups = y.numel() / period;
  std::vector<float> m(period), p(period), q(period), r(period);
  std::vector<double> sums(2 * period);
  for (int i = 0; i < period; i++) m[i] = mean.const_data_ptr<float>()[i % C];
  BY_PERIOD(V, sums_back<N>(data(dout), data(y), data(out), groups, m.data(), sums.data()));
  Tensor dweight = at::empty({C}, at::kFloat), dbias = at::empty({C}, at::kFloat);
  double count = (double)y.numel() / C;
  for (int c = 0; c < C; c++) {
    double g = 0, gx = 0, inv = inverse.const_data_ptr<float>()[c];
    for (int i = c; i < period; i += C) g += sums[i], gx += sums[period + i];
    dbias.data_ptr<float>()[c] = g;
    dweight.data_ptr<float>()[c] = gx * inv;
    double a = weight.const_data_ptr<float>()[c] * inv, slope = -a * gx * inv * inv / count;
    for (int i = c; i < period; i += C) p[i] = a, q[i] = slope, r[i] = -a * g / count - slope * m[i];
  }
  Tensor dy = at::empty_like(y), dadd = added ? at::empty_like(y) : at::empty({0}, y.options());
  BY_PERIOD(V, rows_back<N>(data(dout), data(y), data(out), (bf16*)dy.data_ptr(),
                            added ? (bf16*)dadd.data_ptr() : nullptr, groups, p.data(), q.data(), r.data()));
  return {dy, dadd, dweight, dbias};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("conv_sums", &conv_sums);
  m.def("conv_affine", &conv_affine);
  m.def("conv_back", &conv_back);
  m.def("conv_weight", &conv_weight);
  m.def("shortcut", &shortcut);
  m.def("shortcut_back", &shortcut_back);
  m.def("bn_moments", &bn_moments);
  m.def("bn_relu", &bn_relu);
  m.def("bn_relu_back", &bn_relu_back);
}
