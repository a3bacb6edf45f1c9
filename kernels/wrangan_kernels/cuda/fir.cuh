// upfirdn2d: insert zeros, pad or crop, convolve with up to 8×8 taps, keep every `down`-th sample
// (StyleGAN2, Karras et al. 2020, appendix B); and its fused forms, which differ in what they read
// (FirInput) and in how a sum is stored (act.cuh).
// Sums are float32. Taps beyond the kernel are zeros that are multiplied like others, so a number
// that is not finite may reach 3 px (8 taps: 7) further than it would by the definition.
#pragma once

#include "act.cuh"

namespace wrangan {

constexpr int MAX_TAPS = 8;

// The kernel as it is laid over the signal, in shared memory. `full` always; for 8 taps also
// full = inverse · row ⊗ col where `separable()`: where it is of rank one.
struct alignas(32) FirTaps {  // what follows it in shared memory is stored in packs
  float full[MAX_TAPS][MAX_TAPS];
  float row[MAX_TAPS], col[MAX_TAPS];
  float inverse;
  int row_fits[MAX_TAPS];

  // flip: a true convolution; without it, its transpose.
  WRANGAN_HD void load(int thread, const float* kernel, int taps, bool flip) {
    if (thread < MAX_TAPS * MAX_TAPS) {
      const int i = thread / MAX_TAPS, j = thread % MAX_TAPS;
      const int from = flip ? (taps - 1 - i) * taps + taps - 1 - j : i * taps + j;
      full[i][j] = i < taps && j < taps ? read(kernel + from) : 0.0f;
    }
  }
  WRANGAN_HD void sum(int thread) {
    if (thread >= 2 * MAX_TAPS) return;
    const int k = thread % MAX_TAPS;
    float total = 0;
    for (int i = 0; i < MAX_TAPS; ++i) total += thread < MAX_TAPS ? full[k][i] : full[i][k];
    (thread < MAX_TAPS ? row : col)[k] = total;
  }
  // A kernel of rank one is row ⊗ col / Σ, unless Σ = 0: then it counts as not separable. Each row has
  // its thread and its flag.
  WRANGAN_HD void test(int thread, int taps) {
    if (thread >= MAX_TAPS) return;
    float total = 0;
    for (int k = 0; k < MAX_TAPS; ++k) total += row[k];
    const float allowed = 4e-6f * (total < 0 ? -total : total) / static_cast<float>(taps * taps);
    bool same = true;
    for (int j = 0; j < MAX_TAPS; ++j) {
      const float error = full[thread][j] - row[thread] * (col[j] / total);
      same = same && error <= allowed && -error <= allowed;
    }
    row_fits[thread] = same;
    if (thread == 0) inverse = 1.0f / total;
  }
  WRANGAN_HD bool separable() const {
    bool all = true;
    WRANGAN_UNROLL
    for (int k = 0; k < MAX_TAPS; ++k) all = all && row_fits[k] != 0;
    return all;
  }
};

// Output numbers of ROWS rows of one column. `source(i, m, v)` gives V numbers of the input row
// `first_row + i` and column `first_col + m`, where the first are those that an upsampled signal meets
// first at the output's place; zeros outside the image.
template <int UP, int DOWN, int TAPS, int ROWS, int V, bool SEPARABLE, class Source>
WRANGAN_HD void fir_strip(const FirTaps& taps, int row_phase, int col_phase, const Source& source,
                          float (&sums)[ROWS][V]) {
  constexpr int ACROSS = TAPS / UP;      // columns that an output has taps for
  constexpr int TABLE = TAPS + UP - 1;   // row taps, whatever the phase
  constexpr int HEIGHT = ((ROWS - 1) * DOWN + TAPS - 1) / UP + 1;
  static_assert(TAPS % UP == 0, "a phase has the same number of taps as any other");
  constexpr int WIDE = SEPARABLE ? 1 : ACROSS;
  float table[TABLE][WIDE], across[ACROSS];
  WRANGAN_UNROLL
  for (int q = 0; q < TABLE; ++q) {
    const int t = q - (UP - 1) + row_phase;
    const bool inside = t >= 0 && t < TAPS;
    WRANGAN_UNROLL
    for (int m = 0; m < WIDE; ++m) {
      if (SEPARABLE) {
        table[q][m] = inside ? taps.row[t] * taps.inverse : 0.0f;
      } else {
        table[q][m] = inside ? taps.full[t][col_phase + m * UP] : 0.0f;
      }
    }
  }
  WRANGAN_UNROLL
  for (int m = 0; m < ACROSS; ++m) across[m] = SEPARABLE ? taps.col[col_phase + m * UP] : 0.0f;
  WRANGAN_UNROLL
  for (int o = 0; o < ROWS; ++o) {
    WRANGAN_UNROLL
    for (int c = 0; c < V; ++c) sums[o][c] = 0;
  }
  WRANGAN_UNROLL
  for (int i = 0; i < HEIGHT; ++i) {
    float values[ACROSS][V];
    WRANGAN_UNROLL
    for (int m = 0; m < ACROSS; ++m) source(i, m, values[m]);
    if (SEPARABLE) {
      WRANGAN_UNROLL
      for (int c = 0; c < V; ++c) {
        float line = 0;
        WRANGAN_UNROLL
        for (int m = 0; m < ACROSS; ++m) line += across[m] * values[m][c];
        values[0][c] = line;
      }
    }
    WRANGAN_UNROLL
    for (int o = 0; o < ROWS; ++o) {
      const int q = i * UP - o * DOWN + UP - 1;
      if (q < 0 || q >= TABLE) continue;  // known when compiled
      WRANGAN_UNROLL
      for (int m = 0; m < WIDE; ++m) {
        WRANGAN_UNROLL
        for (int c = 0; c < V; ++c) sums[o][c] += table[q][m] * values[m][c];
      }
    }
  }
}

// Which taps the strip takes: those of rank one only where 8 taps make it worth the test.
template <int UP, int DOWN, int TAPS, int ROWS, int V, class Source>
WRANGAN_HD void fir_sums(const FirTaps& taps, int row_phase, int col_phase, const Source& source,
                         float (&sums)[ROWS][V]) {
  if constexpr (TAPS > 4) {
    if (taps.separable()) {
      fir_strip<UP, DOWN, TAPS, ROWS, V, true>(taps, row_phase, col_phase, source, sums);
      return;
    }
  }
  fir_strip<UP, DOWN, TAPS, ROWS, V, false>(taps, row_phase, col_phase, source, sums);
}

struct FirShape {
  Maps in, out;
  int taps, before;
  bool flip;
  const float* kernel;
};

// What is read: numbers as they are.
template <typename T>
struct PlainInput {
  using Type = T;
  const T* x;

  template <int N>
  WRANGAN_HD void operator()(int64_t offset, bool /*own*/, float (&v)[N]) const {
    load(x + offset, v);
  }
};

// What is read by the backward pass of fir_act: the gradient at the activation's input, which is
// stored too by the one block that owns the place.
template <typename T>
struct ActGradInput {
  using Type = T;
  const T* grad;
  const T* y;
  T* grad_pre;
  Activation act;
  float limit;

  template <int N>
  WRANGAN_HD void operator()(int64_t offset, bool own, float (&v)[N]) const {
    float value[N];
    load(grad + offset, v);
    load(y + offset, value);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) v[i] *= act.derivative(value[i], limit);
    if (own) store(grad_pre + offset, v);
  }
};

}  // namespace wrangan
