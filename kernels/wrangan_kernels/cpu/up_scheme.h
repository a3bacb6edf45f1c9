// The transforms of conv_up.cpp: Winograd's F(4, 2) on the even rows and columns of a transposed convolution of
// stride 2 (Up), and the other way round (Down).
#pragma once

#include "winograd.h"

namespace wrangan {
namespace {

inline void data_transform(const vf d[5], int step, vf t[], int out) {  // Bᵀ
  const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
  const vf a = 0.5f * (d3 - d1), b = 0.5f * d2;
  t[0] = d0 - d2 + a;
  t[out] = d1 + b - 0.5f * d3;
  t[2 * out] = b - (1.f / 3) * d1 - (1.f / 6) * d3;
  t[3 * out] = (1.f / 3) * a;
  t[4 * out] = d4 - d2 - 4.f * a;
}

inline void result_transform(const vf m[5], int step, vf y[], int out) {  // Aᵀ
  const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], a = m1 + m2, b = m1 - m2;
  y[0] = m[0] + a + m3;
  y[out] = b + 2.f * m3;
  y[2 * out] = a + 4.f * m3;
  y[3 * out] = b + 8.f * m3 + m[4 * step];
}

inline void gradient_transform(const vf y[4], int step, vf t[], int out) {  // A
  const vf y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step], a = y0 + y2, b = y1 + y3;
  t[0] = y0;
  t[out] = a + b;
  t[2 * out] = a - b;
  t[3 * out] = y0 + 2.f * y1 + 4.f * y2 + 8.f * y3;
  t[4 * out] = y3;
}

inline void kernel_transform_of(float g0, float g1, float* t, int out) {  // G
  t[0] = g0;
  t[out] = g0 + g1;
  t[2 * out] = g0 - g1;
  t[3 * out] = g0 + 2.f * g1;
  t[4 * out] = g1;
}

inline void kernel_gradient_of(const vf m[5], int step, vf& g0, vf& g1) {  // Gᵀ
  const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step];
  g0 = m[0] + m1 + m2 + m3;
  g1 = m1 - m2 + 2.f * m3 + m[4 * step];
}

constexpr int EO = 25, OE = 45, OO = 65;  // first slots

// The enlarged plane, 2H + 1 by 2W + 1.
struct Large {
  int height, width;
  explicit Large(const Grid& grid) : height(2 * grid.height + 1), width(2 * grid.width + 1) {}
};

// Row 8t + r of the enlarged plane for every tile: its even samples 0, 2, 4, 6, 8 and odd ones 1, 3, 5, 7.
inline void read_row(const float* plane, const Grid& grid, int group, int r, vf even[5], vf odd[4]) {
  const Large large(grid);
  if (!grid.whole) {
    for (int l = 0; l < VL; l++) {
      const int tile = group * VL + l, ty = tile / grid.columns, tx = tile % grid.columns, y = ty * 8 + r;
      const bool inside = ty < grid.rows && y < large.height;
      for (int j = 0; j < 9; j++) {
        const int x = tx * 8 + j;
        const float value = inside && x < large.width ? plane[int64_t(y) * large.width + x] : 0.f;
        (j % 2 ? odd[j / 2] : even[j / 2])[l] = value;
      }
    }
    return;
  }
  vf e[4], o[4];
  for (int k = 0; k < 4; k++) {
    int row, x;
    place(grid, group, k, row, x);
    const int y = row * 8 + r;
    const bool inside = row < grid.rows && y < large.height;
    const float* const line = plane + int64_t(y) * large.width + 2 * x;
    const vf a = inside ? load(line) : vf{}, b = inside ? load(line + VL) : vf{};
    e[k] = evens(a, b);
    o[k] = odds(a, b);
  }
  pixels_to_tiles(e, even);
  pixels_to_tiles(o, odd);
  if (grid.columns >= VL) {
    int row, x;
    place(grid, group, 0, row, x);
    const int y = row * 8 + r;
    const bool inside = y < large.height;
    even[4] = from_right(even[0], inside ? plane[int64_t(y) * large.width + 2 * (x + 4 * VL)] : 0.f);
    return;
  }
  even[4] = from_right(even[0], 0.f);
  for (int l = grid.columns - 1; l < VL; l += grid.columns) {
    const int row = (group * VL + l) / grid.columns, y = row * 8 + r;
    even[4][l] = row < grid.rows && y < large.height ? plane[int64_t(y) * large.width + large.width - 1] : 0.f;
  }
}

// Row 8t + r of the enlarged plane: its first four even and odd samples, but for the last row and column.
inline void write_row(float* plane, const Grid& grid, int group, int r, const vf even[4], const vf odd[4]) {
  const Large large(grid);
  if (!grid.whole) {
    for (int l = 0; l < VL; l++) {
      const int tile = group * VL + l, ty = tile / grid.columns, tx = tile % grid.columns, y = ty * 8 + r;
      if (ty >= grid.rows || y >= large.height - 1) continue;
      for (int j = 0; j < 8 && tx * 8 + j < large.width - 1; j++)
        plane[int64_t(y) * large.width + tx * 8 + j] = (j % 2 ? odd : even)[j / 2][l];
    }
    return;
  }
  vf e[4], o[4];
  tiles_to_pixels(even, e);
  tiles_to_pixels(odd, o);
  for (int k = 0; k < 4; k++) {
    int row, x;
    place(grid, group, k, row, x);
    const int y = row * 8 + r;
    if (row >= grid.rows || y >= large.height - 1) continue;
    float* const line = plane + int64_t(y) * large.width + 2 * x;
    store(line, zip_low(e[k], o[k]));
    store(line + VL, zip_high(e[k], o[k]));
  }
}

struct Both {
  static constexpr int SLOTS = 81, KERNELS = 36;
  static int kernel_of(int slot) {
    return slot < EO ? slot : slot < OE ? 25 + (slot - EO) / 4 : slot < OO ? 30 + (slot - OE) / 4 : 35;
  }
  static int64_t small_area(const Grid& grid) { return int64_t(grid.height) * grid.width; }
  static int64_t large_area(const Grid& grid) { return int64_t(2 * grid.height + 1) * (2 * grid.width + 1); }

  // first, second: the taps (0, 2) in the order in which they meet the samples.
  static void kernels(const float g[9][MR], int first, int second, float u[KERNELS][MR]) {
    for (int m = 0; m < MR; m++) {
      float t[3][5];  // G along the columns, for each column of the kernel
      for (int k = 0; k < 3; k++) kernel_transform_of(g[first * 3 + k][m], g[second * 3 + k][m], t[k], 1);
      for (int i = 0; i < 5; i++) {
        kernel_transform_of(t[first][i], t[second][i], &u[i * 5][m], MR);
        u[25 + i][m] = t[1][i];
      }
      kernel_transform_of(g[3 + first][m], g[3 + second][m], &u[30][m], MR);
      u[35][m] = g[4][m];
    }
  }
};

struct Up : Both {
  static int64_t data_area(const Grid& grid) { return small_area(grid); }
  static int64_t result_area(const Grid& grid) { return large_area(grid); }
  static void kernel_transform(const float g[9][MR], float u[KERNELS][MR]) { kernels(g, 2, 0, u); }

  static void write_data(const float* plane, const Grid& grid, int group, float scale, float* out, int64_t step) {
    vf d[5][6], t[5][5], v[5];  // rows and columns -1…3
    read_group<5, true>(plane, grid, group, 1, d);
    for (auto& line : d)
      for (int j = 0; j < 5; j++) line[j] *= scale;
    for (int j = 0; j < 5; j++) data_transform(&d[0][j], 6, &t[0][j], 5);
    for (int i = 0; i < 5; i++) {
      data_transform(t[i], 1, v, 1);
      for (int j = 0; j < 5; j++) store(out + (i * 5 + j) * step, v[j]);
      for (int m = 0; m < 4; m++) store(out + (EO + i * 4 + m) * step, t[i][1 + m]);
    }
    for (int n = 0; n < 4; n++) {
      data_transform(d[1 + n], 1, v, 1);
      for (int j = 0; j < 5; j++) store(out + (OE + j * 4 + n) * step, v[j]);
      for (int m = 0; m < 4; m++) store(out + (OO + n * 4 + m) * step, d[1 + n][1 + m]);
    }
  }

  static void write_result(const float* in, int64_t step, float scale, float* plane, const Grid& grid, int group) {
    vf m[5], column[4], t[4][5], even[4][4], odd[4];
    for (int j = 0; j < 5; j++) {
      for (int i = 0; i < 5; i++) m[i] = scale * load(in + (i * 5 + j) * step);
      result_transform(m, 1, column, 1);
      for (int n = 0; n < 4; n++) t[n][j] = column[n];
    }
    for (int k = 0; k < 4; k++) {
      for (int i = 0; i < 5; i++) m[i] = scale * load(in + (EO + i * 4 + k) * step);
      result_transform(m, 1, column, 1);
      for (int n = 0; n < 4; n++) even[n][k] = column[n];
    }
    for (int n = 0; n < 4; n++) {
      result_transform(t[n], 1, column, 1);
      write_row(plane, grid, group, 2 * n, column, even[n]);
      for (int j = 0; j < 5; j++) m[j] = scale * load(in + (OE + j * 4 + n) * step);
      result_transform(m, 1, column, 1);
      for (int k = 0; k < 4; k++) odd[k] = scale * load(in + (OO + n * 4 + k) * step);
      write_row(plane, grid, group, 2 * n + 1, column, odd);
    }
  }

  // Of the results' gradient, without its last row and column.
  static void write_gradient(const float* plane, const Grid& grid, int group, float scale, float* out, int64_t step) {
    const Large large(grid);
    vf even[8][5], odd[8][4], t[5], column[5][4];
    for (int r = 0; r < 8; r++) {
      read_row(plane, grid, group, r, even[r], odd[r]);
      for (int j = 0; j < 4; j++) even[r][j] *= scale, odd[r][j] *= scale;
    }
    cut(large, grid, group, even, odd);
    for (int m = 0; m < 4; m++) {
      gradient_transform(&even[0][m], 10, &column[0][m], 4);
      gradient_transform(&odd[0][m], 8, t, 1);
      for (int i = 0; i < 5; i++) store(out + (EO + i * 4 + m) * step, t[i]);
    }
    for (int i = 0; i < 5; i++) {
      gradient_transform(column[i], 1, t, 1);
      for (int j = 0; j < 5; j++) store(out + (i * 5 + j) * step, t[j]);
    }
    for (int n = 0; n < 4; n++) {
      gradient_transform(even[2 * n + 1], 1, t, 1);
      for (int j = 0; j < 5; j++) store(out + (OE + j * 4 + n) * step, t[j]);
      for (int m = 0; m < 4; m++) store(out + (OO + n * 4 + m) * step, odd[2 * n + 1][m]);
    }
  }

  // Where tiles hang over the edge, the last row and column would be in them.
  static void cut(const Large& large, const Grid& grid, int group, vf even[8][5], vf odd[8][4]) {
    if (grid.whole && grid.height % SIDE == 0) return;
    for (int l = 0; l < VL; l++) {
      const int tile = group * VL + l, ty = tile / grid.columns, tx = tile % grid.columns;
      for (int r = 0; r < 8; r++)
        for (int j = 0; j < 4; j++) {
          if (ty * 8 + r < large.height - 1 && tx * 8 + 2 * j < large.width - 1) continue;
          even[r][j][l] = 0.f;
          odd[r][j][l] = 0.f;
        }
    }
  }

  static void kernel_gradient(const vf m[KERNELS], vf g[9]) {
    vf t[2][5];
    for (int j = 0; j < 5; j++) kernel_gradient_of(m + j, 5, t[0][j], t[1][j]);
    kernel_gradient_of(t[0], 1, g[8], g[6]);
    kernel_gradient_of(t[1], 1, g[2], g[0]);
    kernel_gradient_of(m + 25, 1, g[7], g[1]);
    kernel_gradient_of(m + 30, 1, g[5], g[3]);
    g[4] = m[35];
  }
};

struct Down : Both {
  static int64_t data_area(const Grid& grid) { return large_area(grid); }
  static int64_t result_area(const Grid& grid) { return small_area(grid); }
  static void kernel_transform(const float g[9][MR], float u[KERNELS][MR]) { kernels(g, 0, 2, u); }

  static void write_data(const float* plane, const Grid& grid, int group, float scale, float* out, int64_t step) {
    vf even[9][5], odd[9][4], t[5][5], v[5];
    for (int r = 0; r < 9; r++) {
      read_row(plane, grid, group, r, even[r], odd[r]);
      for (int j = 0; j < 5; j++) even[r][j] *= scale;
      for (int j = 0; j < 4; j++) odd[r][j] *= scale;
    }
    for (int j = 0; j < 5; j++) data_transform(&even[0][j], 10, &t[0][j], 5);
    for (int i = 0; i < 5; i++) {
      data_transform(t[i], 1, v, 1);
      for (int j = 0; j < 5; j++) store(out + (i * 5 + j) * step, v[j]);
    }
    for (int m = 0; m < 4; m++) {
      data_transform(&odd[0][m], 8, v, 1);
      for (int i = 0; i < 5; i++) store(out + (EO + i * 4 + m) * step, v[i]);
    }
    for (int n = 0; n < 4; n++) {
      data_transform(even[2 * n + 1], 1, v, 1);
      for (int j = 0; j < 5; j++) store(out + (OE + j * 4 + n) * step, v[j]);
      for (int m = 0; m < 4; m++) store(out + (OO + n * 4 + m) * step, odd[2 * n + 1][m]);
    }
  }

  static void write_result(const float* in, int64_t step, float scale, float* plane, const Grid& grid, int group) {
    vf m[5], column[4], t[4][5], y[4][4];
    for (int j = 0; j < 5; j++) {
      for (int i = 0; i < 5; i++) m[i] = load(in + (i * 5 + j) * step);
      result_transform(m, 1, column, 1);
      // Before the other axis is transformed, the slots that are transformed along it alone join.
      for (int n = 0; n < 4; n++) t[n][j] = column[n] + load(in + (OE + j * 4 + n) * step);
    }
    for (int n = 0; n < 4; n++) result_transform(t[n], 1, y[n], 1);
    for (int k = 0; k < 4; k++) {
      for (int i = 0; i < 5; i++) m[i] = load(in + (EO + i * 4 + k) * step);
      result_transform(m, 1, column, 1);
      for (int n = 0; n < 4; n++) y[n][k] = scale * (y[n][k] + column[n] + load(in + (OO + n * 4 + k) * step));
    }
    write_group(plane, grid, group, y);
  }
};

}  // namespace
}  // namespace wrangan
