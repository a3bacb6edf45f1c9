// The depthwise 3×3 convolution of a separable layer, with zero padding, and the gradient of its taps. With
// the taps turned by half a turn the first is also the gradient in x. channels_last.
#pragma once

#include "strips.cuh"

namespace wrangan {

// Three neighbours in a line, zeros beyond the edges.
template <typename T, int N>
WRANGAN_HD void load_three(const Maps& maps, const T* x, int image, int line, int column, int channel,
                           float (&v)[3][N]) {
  WRANGAN_UNROLL
  for (int j = 0; j < 3; ++j) {
    const int at = column + j - 1;
    if (line >= 0 && line < maps.height && at >= 0 && at < maps.width) {
      load(x + maps.offset(image, channel, line * maps.width + at), v[j]);
    } else {
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) v[j][i] = 0;
    }
  }
}

template <typename T>
struct Depthwise {
  static constexpr int PHASES = 1;

  struct Arguments {
    Strips strips;
    const T* x;
    const float* taps;  // (1 or B, C, 3, 3)
    bool taps_per_image, turned;
    T* out;
  };

  const Arguments& a;
  Strip at;

  WRANGAN_HD Depthwise(const Arguments& arguments, int block, unsigned char*)
      : a(arguments), at(arguments.strips, block) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if (!at.has(a.strips, thread)) return;
    with_pack(a.strips, [&](auto width) { compute<decltype(width)::count>(thread); });
  }

 private:
  template <int N>
  WRANGAN_HD void load_taps(int channel, float (&taps)[9][N]) const {
    const int64_t set = a.taps_per_image ? at.image : 0;
    const float* from = a.taps + (set * a.strips.maps.channels + channel) * 9;
    float flat[9 * N];
    WRANGAN_UNROLL
    for (int k = 0; k < 9; ++k) {
      float part[N];
      load(from + k * N, part);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) flat[k * N + i] = part[i];
    }
    WRANGAN_UNROLL
    for (int k = 0; k < 9; ++k) {
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) taps[k][i] = a.turned ? flat[i * 9 + 8 - k] : flat[i * 9 + k];
    }
  }
  // Each line is read once, and added to the results of the line below, its own and the line above, in which
  // order each result gets its nine terms.
  template <int N>
  WRANGAN_HD void compute(int thread) {
    const Maps& maps = a.strips.maps;
    const int channel = at.channel(a.strips, thread), column = at.column(a.strips, thread);
    float taps[9][N], own[N], below[N];
    load_taps(channel, taps);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) own[i] = below[i] = 0;
    for (int line = at.begin - 1; line <= at.end; ++line) {
      float v[3][N], done[N];
      load_three(maps, a.x, at.image, line, column, channel, v);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) {
        done[i] = own[i] + v[0][i] * taps[6][i] + v[1][i] * taps[7][i] + v[2][i] * taps[8][i];
        own[i] = below[i] + v[0][i] * taps[3][i] + v[1][i] * taps[4][i] + v[2][i] * taps[5][i];
        below[i] = v[0][i] * taps[0][i] + v[1][i] * taps[1][i] + v[2][i] * taps[2][i];
      }
      if (line <= at.begin) continue;
      store(a.out + maps.offset(at.image, channel, (line - 1) * maps.width + column), done);
    }
  }
};

// Σ grad[p] · x[p + tap] over the pixels of a block, as parts that are to be added up.
template <typename T>
struct DepthwiseTaps {
  static constexpr int PHASES = 2;

  struct Arguments {
    Strips strips;
    const T* x;
    const T* grad;
    float* parts;  // (B, parts, C, 3, 3)
  };

  const Arguments& a;
  Strip at;
  float* shared;

  WRANGAN_HD DepthwiseTaps(const Arguments& arguments, int block, unsigned char* memory)
      : a(arguments), at(arguments.strips, block), shared(reinterpret_cast<float*>(memory)) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 1) {
      const int channels = a.strips.maps.channels;
      float* to = a.parts + (static_cast<int64_t>(at.image) * a.strips.parts + at.part) * channels * 9;
      fold_sums<9>(a.strips, at, shared, thread, [&](int channel, int k, float sum) { to[channel * 9 + k] = sum; });
    } else {
      with_pack(a.strips, [&](auto width) {
        constexpr int N = decltype(width)::count;
        gather_sums<9, N>(a.strips, at, shared, thread, true,
                          [&](float (&totals)[9][N]) { add<N>(thread, totals); });
      });
    }
  }

 private:
  // Each line of x meets the gradients of the line below, of its own and of the line above, if they are in the strip.
  template <int N>
  WRANGAN_HD void add(int thread, float (&totals)[9][N]) const {
    const Maps& maps = a.strips.maps;
    const int channel = at.channel(a.strips, thread), column = at.column(a.strips, thread);
    float grads[3][N];  // by the tap's row: below, own, above
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) grads[0][i] = grads[1][i] = 0;
    for (int line = at.begin - 1; line <= at.end; ++line) {
      float v[3][N];
      load_three(maps, a.x, at.image, line, column, channel, v);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) {
        grads[2][i] = grads[1][i];
        grads[1][i] = grads[0][i];
        grads[0][i] = 0;
      }
      if (line + 1 < at.end) {
        load(a.grad + maps.offset(at.image, channel, (line + 1) * maps.width + column), grads[0]);
      }
      WRANGAN_UNROLL
      for (int k = 0; k < 9; ++k) {
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) totals[k][i] += v[k % 3][i] * grads[k / 3][i];
      }
    }
  }
};

}  // namespace wrangan
