// x · style and the inverse Haar transform in one pass, and its gradients in another, channels_last: of C
// channels at (H, W) the first C/4 are the low band, and for each of these three neighbours the high ones;
// they become C/4 channels at (2H, 2W).
#pragma once

#include "strips.cuh"

namespace wrangan {

// Of N channels of the low band from `channel` on: low, vertical, horizontal, both.
template <int N, typename T>
WRANGAN_HD void load_bands(const T* pixel, int channel, int quarter, float (&bands)[4][N]) {
  load(pixel + channel, bands[0]);
  WRANGAN_UNROLL
  for (int k = 0; k < 3; ++k) {
    float part[N];
    load(pixel + quarter + 3 * channel + k * N, part);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) bands[1 + (k * N + i) % 3][(k * N + i) / 3] = part[i];
  }
}

template <int N, typename T>
WRANGAN_HD void store_bands(T* pixel, int channel, int quarter, const float (&bands)[4][N]) {
  store(pixel + channel, bands[0]);
  WRANGAN_UNROLL
  for (int k = 0; k < 3; ++k) {
    float part[N];
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) part[i] = bands[1 + (k * N + i) % 3][(k * N + i) / 3];
    store(pixel + quarter + 3 * channel + k * N, part);
  }
}

// The first of the four pixels that one becomes; the maps of the strips are those of the low band.
WRANGAN_HD int64_t enlarged(const Maps& maps, int image, int line, int column, int channel) {
  const int64_t row = (static_cast<int64_t>(image) * maps.height + line) * 2;
  return ((row * maps.width + column) * 2) * maps.channels + channel;
}

template <typename T>
struct HaarUp {
  static constexpr int PHASES = 1;

  struct Arguments {
    Strips strips;
    const T* x;
    const float* style;  // (B, C)
    T* out;
  };

  const Arguments& a;
  Strip at;

  WRANGAN_HD HaarUp(const Arguments& arguments, int block, unsigned char*)
      : a(arguments), at(arguments.strips, block) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if (!at.has(a.strips, thread)) return;
    with_pack(a.strips, [&](auto width) { compute<decltype(width)::count>(thread); });
  }

 private:
  template <int N>
  WRANGAN_HD void compute(int thread) {
    const Maps& maps = a.strips.maps;
    const int quarter = maps.channels, channel = at.channel(a.strips, thread), column = at.column(a.strips, thread);
    const int64_t right_by = quarter, down_by = static_cast<int64_t>(2) * maps.width * quarter;
    float style[4][N];
    load_bands(a.style + static_cast<int64_t>(at.image) * 4 * quarter, channel, quarter, style);
    for (int line = at.begin; line < at.end; ++line) {
      float b[4][N], made[4][N];
      load_bands(a.x + maps.offset(at.image, 0, line * maps.width + column) * 4, channel, quarter, b);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) {
        WRANGAN_UNROLL
        for (int k = 0; k < 4; ++k) b[k][i] *= 0.5f * style[k][i];
        const float upper = b[0][i] + b[1][i], lower = b[0][i] - b[1][i];
        const float right = b[2][i] + b[3][i], corner = b[2][i] - b[3][i];
        made[0][i] = upper + right;
        made[1][i] = upper - right;
        made[2][i] = lower + corner;
        made[3][i] = lower - corner;
      }
      T* to = a.out + enlarged(maps, at.image, line, column, channel);
      store(to, made[0]);
      store(to + right_by, made[1]);
      store(to + down_by, made[2]);
      store(to + down_by + right_by, made[3]);
    }
  }
};

template <typename T>
struct HaarUpGrad {
  static constexpr int PHASES = 2;

  struct Arguments {
    Strips strips;
    const T* grad;
    const T* x;
    const float* style;
    T* grad_x;     // null: not wanted
    float* parts;  // (B, parts, C), of the style's gradient, to be added up; null: not wanted
  };

  const Arguments& a;
  Strip at;
  float* shared;

  WRANGAN_HD HaarUpGrad(const Arguments& arguments, int block, unsigned char* memory)
      : a(arguments), at(arguments.strips, block), shared(reinterpret_cast<float*>(memory)) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 1) {
      if (!a.parts) return;
      const int quarter = a.strips.maps.channels;
      float* to = a.parts + (static_cast<int64_t>(at.image) * a.strips.parts + at.part) * 4 * quarter;
      fold_sums<4>(a.strips, at, shared, thread, [&](int channel, int k, float sum) {
        to[k == 0 ? channel : quarter + 3 * channel + k - 1] = sum;
      });
    } else {
      with_pack(a.strips, [&](auto width) {
        constexpr int N = decltype(width)::count;
        gather_sums<4, N>(a.strips, at, shared, thread, a.parts != nullptr,
                          [&](float (&totals)[4][N]) { compute<N>(thread, totals); });
      });
    }
  }

 private:
  template <int N>
  WRANGAN_HD void compute(int thread, float (&totals)[4][N]) const {
    const Maps& maps = a.strips.maps;
    const int quarter = maps.channels, channel = at.channel(a.strips, thread), column = at.column(a.strips, thread);
    const int64_t right_by = quarter, down_by = static_cast<int64_t>(2) * maps.width * quarter;
    float style[4][N];
    load_bands(a.style + static_cast<int64_t>(at.image) * 4 * quarter, channel, quarter, style);
    for (int line = at.begin; line < at.end; ++line) {
      const T* from = a.grad + enlarged(maps, at.image, line, column, channel);
      const int64_t pixel = maps.offset(at.image, 0, line * maps.width + column) * 4;
      float g[4][N], v[4][N];
      load(from, g[0]);
      load(from + right_by, g[1]);
      load(from + down_by, g[2]);
      load(from + down_by + right_by, g[3]);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) {
        const float upper = g[0][i] + g[1][i], right = g[0][i] - g[1][i];
        const float lower = g[2][i] + g[3][i], corner = g[2][i] - g[3][i];
        v[0][i] = 0.5f * (upper + lower);
        v[1][i] = 0.5f * (upper - lower);
        v[2][i] = 0.5f * (right + corner);
        v[3][i] = 0.5f * (right - corner);
      }
      if (a.parts) {
        float seen[4][N];
        load_bands(a.x + pixel, channel, quarter, seen);
        WRANGAN_UNROLL
        for (int k = 0; k < 4; ++k) {
          WRANGAN_UNROLL
          for (int i = 0; i < N; ++i) totals[k][i] += v[k][i] * seen[k][i];
        }
      }
      if (!a.grad_x) continue;
      WRANGAN_UNROLL
      for (int k = 0; k < 4; ++k) {
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) v[k][i] *= style[k][i];
      }
      store_bands(a.grad_x + pixel, channel, quarter, v);
    }
  }
};

}  // namespace wrangan
