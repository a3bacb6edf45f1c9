// What the layers of separable convolutions are made of: planes whose channels lie side by side
// (channels_last), a vector being VL channels of one pixel. Channels are a multiple of VL.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace wrangan {

constexpr int PANEL = 4;  // vectors of a panel of weights, at most
#if defined(__AVX512F__)
constexpr int PIXELS = 6;  // pixels at a time: 24 sums, 4 weights and the pixel's value stay in registers
constexpr int WIDE = 4;    // vectors at a time
#else
constexpr int PIXELS = 6;
constexpr int WIDE = 2;
#endif

enum class Result { plain, added, activated };

struct Epilogue {
  const float* bias = nullptr;   // a number for each column
  const float* noise = nullptr;  // a number for each row, or none
  float slope = 1;
};

inline vf leaky(vf v, float slope) { return v > 0.f ? v : v * slope; }

// C (m, n·VL) = Σ_k a[m·am + k·ak] · b[k·bk …], added to C, or with bias, noise and activation. The sum runs over k
// in order, whatever surrounds it.
template <int m, int n, Result result>
__attribute__((noinline)) void block(const float* a, int64_t am, int64_t ak, const float* b, int64_t bk, int64_t count,
                                     float* c, int64_t cm, const Epilogue& after) {
  vf total[m][n];
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) total[i][j] = vf{};
  for (int64_t k = 0; k < count; k++) {
    vf right[n];
    for (int j = 0; j < n; j++) {
      right[j] = load(b + j * VL);
      keep(right[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
      const vf left = splat(a[i * am]);
#pragma GCC unroll 4
      for (int j = 0; j < n; j++) total[i][j] += left * right[j];
    }
    a += ak;
    b += bk;
  }
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      float* const place = c + i * cm + j * VL;
      vf v = total[i][j];
      if (result == Result::added) v += load(place);
      if (result == Result::activated) {
        v += load(after.bias + j * VL);
        if (after.noise) v += splat(after.noise[i]);
        v = leaky(v, after.slope);
      }
      store(place, v);
    }
}

// next: from PIXELS rows of A to the next ones.
template <int n, Result result>
void rows_of(int64_t rows, const float* a, int64_t am, int64_t ak, int64_t next, const float* b, int64_t bk,
             int64_t count, float* c, int64_t cm, Epilogue after) {
  int64_t i = 0;
  for (; i + PIXELS <= rows; i += PIXELS) {
    block<PIXELS, n, result>(a, am, ak, b, bk, count, c, cm, after);
    a += next;
    c += PIXELS * cm;
    if (after.noise) after.noise += PIXELS;
  }
  switch (rows - i) {
    case 5: block<5, n, result>(a, am, ak, b, bk, count, c, cm, after); break;
    case 4: block<4, n, result>(a, am, ak, b, bk, count, c, cm, after); break;
    case 3: block<3, n, result>(a, am, ak, b, bk, count, c, cm, after); break;
    case 2: block<2, n, result>(a, am, ak, b, bk, count, c, cm, after); break;
    case 1: block<1, n, result>(a, am, ak, b, bk, count, c, cm, after); break;
    default: break;
  }
}

// Some columns, a multiple of VL and at most PANEL·VL.
template <Result result>
void panel_of(int64_t rows, int64_t columns, const float* a, int64_t am, int64_t ak, int64_t next, const float* b,
              int64_t bk, int64_t count, float* c, int64_t cm, Epilogue after) {
  while (columns > 0) {
    const int64_t n = std::min<int64_t>(columns / VL, WIDE);
    if (n == 4) rows_of<4, result>(rows, a, am, ak, next, b, bk, count, c, cm, after);
    else if (n == 3) rows_of<3, result>(rows, a, am, ak, next, b, bk, count, c, cm, after);
    else if (n == 2) rows_of<2, result>(rows, a, am, ak, next, b, bk, count, c, cm, after);
    else rows_of<1, result>(rows, a, am, ak, next, b, bk, count, c, cm, after);
    columns -= n * VL;
    b += n * VL;
    c += n * VL;
    if (after.bias) after.bias += n * VL;
  }
}

// A matrix (count, columns) as panels: (panel, count, PANEL·VL), so that what is read together lies together.
struct Packed {
  int64_t count, columns;
  float* data;

  static int64_t size(int64_t count, int64_t columns) {
    return (columns + PANEL * VL - 1) / (PANEL * VL) * PANEL * VL * count;
  }
  void fill(const float* from, int64_t row, int64_t column) const {
    for (int64_t first = 0; first < columns; first += PANEL * VL) {
      const int64_t width = std::min<int64_t>(PANEL * VL, columns - first);
      float* const to = data + first * count;
      // Read as it lies: a panel, which is written, fits in the cache.
      if (column == 1) {
        for (int64_t k = 0; k < count; k++)
          for (int64_t j = 0; j < width; j++) to[k * PANEL * VL + j] = from[k * row + first + j];
      } else {
        for (int64_t j = 0; j < width; j++)
          for (int64_t k = 0; k < count; k++) to[k * PANEL * VL + j] = from[k * row + (first + j) * column];
      }
    }
  }
  // C (rows, columns) = A (rows, count) · this.
  template <Result result>
  void product(int64_t rows, const float* a, float* c, Epilogue after = {}) const {
    for (int64_t j = 0; j < columns; j += PANEL * VL) {
      const int64_t width = std::min<int64_t>(PANEL * VL, columns - j);
      panel_of<result>(rows, width, a, count, 1, PIXELS * count, data + j * count, PANEL * VL, count, c + j, columns,
                       after);
      if (after.bias) after.bias += PANEL * VL;
    }
  }
};

// Sums of outer products: C (rows, columns) += Aᵀ · B over `count` pixels, A (count, rows), B (count, columns).
// Both are copied first, so that what a block reads lies together: rows that are a power of two apart would fall
// on the same few lines of the first cache. room: floats, `outer_room` of them.
inline int64_t outer_room(int64_t rows, int64_t count) {
  return (rows + PIXELS - 1) / PIXELS * PIXELS * count + count * PANEL * VL;
}
inline void add_outer(int64_t rows, int64_t columns, const float* a, const float* b, int64_t count, float* c,
                      float* room) {
  float* const left = room;  // (blocks of rows, count, PIXELS)
  float* const right = room + (rows + PIXELS - 1) / PIXELS * PIXELS * count;
  for (int64_t first = 0; first < rows; first += PIXELS) {
    const int64_t taken = std::min<int64_t>(PIXELS, rows - first);
    for (int64_t k = 0; k < count; k++)
      for (int64_t i = 0; i < taken; i++) left[first * count + k * PIXELS + i] = a[k * rows + first + i];
  }
  for (int64_t j = 0; j < columns; j += PANEL * VL) {
    const int64_t width = std::min<int64_t>(PANEL * VL, columns - j);
    for (int64_t k = 0; k < count; k++)
      for (int64_t v = 0; v < width; v += VL) store(right + k * PANEL * VL + v, load(b + k * columns + j + v));
    panel_of<Result::added>(rows, width, left, 1, PIXELS, PIXELS * count, right, PANEL * VL, count, c + j, columns,
                            {});
  }
}

// The depthwise 3×3 convolution of one line of pixels: lines above, here and below, each (width, channels); taps
// (9, channels).
inline void depthwise_line(const float* const lines[3], const float* taps, int64_t width, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; c += VL) {
    vf k[9];
    for (int t = 0; t < 9; t++) k[t] = load(taps + t * channels + c);
    const float *above = lines[0] + c, *here = lines[1] + c, *below = lines[2] + c;
    float* to = out + c;
    // What the pixels seen so far give to the result at the one before, and at this one.
    vf before{}, now{};
    for (int64_t x = 0; x < width; x++) {
      const vf a = load(above), b = load(here), d = load(below);
      before += a * k[2] + b * k[5] + d * k[8];
      if (x > 0) {
        store(to, before);
        to += channels;
      }
      before = now + a * k[1] + b * k[4] + d * k[7];
      now = a * k[0] + b * k[3] + d * k[6];
      above += channels, here += channels, below += channels;
    }
    store(to, before);
  }
}

// sums (9, channels) += Σ_x grad[x] · line[x + dx] for each tap.
inline void depthwise_taps_line(const float* grad, const float* const lines[3], int64_t width, int64_t channels,
                                float* sums) {
  for (int64_t c = 0; c < channels; c += VL) {
    vf total[9];
    for (int t = 0; t < 9; t++) total[t] = load(sums + t * channels + c);
    const float *above = lines[0] + c, *here = lines[1] + c, *below = lines[2] + c, *from = grad + c;
    vf left{}, middle = load(from);  // gradients at x - 1 and x
    for (int64_t x = 0; x < width; x++) {
      from += channels;
      const vf right = x + 1 < width ? load(from) : vf{};
      const vf a = load(above), b = load(here), d = load(below);
      // The pixel x is one to the right of x - 1: the tap 2 of its row there.
      total[0] += right * a, total[1] += middle * a, total[2] += left * a;
      total[3] += right * b, total[4] += middle * b, total[5] += left * b;
      total[6] += right * d, total[7] += middle * d, total[8] += left * d;
      left = middle, middle = right;
      above += channels, here += channels, below += channels;
    }
    for (int t = 0; t < 9; t++) store(sums + t * channels + c, total[t]);
  }
}

}  // namespace wrangan
