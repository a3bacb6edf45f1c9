// The plane of one channel, cut into tiles of 4×4 pixels; VL of them, in row-major order, are a group.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace wrangan {

constexpr int SIDE = 4;  // pixels of a tile

struct Grid {
  int height, width;  // of the plane
  int rows, columns;  // of tiles
  int groups;
  bool whole;  // each vector of pixels lies in one row of the plane, and holds whole tiles

  Grid(int64_t h, int64_t w)
      : height(h), width(w), rows((h + SIDE - 1) / SIDE), columns((w + SIDE - 1) / SIDE) {
    groups = (rows * columns + VL - 1) / VL;
    whole = w % SIDE == 0 && w % VL == 0 && (columns % VL == 0 || VL % columns == 0);
  }
};

// Where the k-th of a group's four pixel vectors begins: row of tiles, and column of pixels.
inline void place(const Grid& grid, int group, int k, int& row, int& x) {
  const int pixel = group * VL * SIDE + k * VL;  // counted along the rows of tiles
  row = pixel / grid.width;
  x = pixel % grid.width;
}

// d[r][1 + j]: pixel j of row r of every tile, r = 0…rows-1 from `top` rows above the tile; j = -1…4
// where `around`, else 0…3. Zero outside of the plane.
template <int rows, bool around>
inline void read_group(const float* plane, const Grid& grid, int group, int top, vf d[][6]) {
  if (!grid.whole) {
    for (int l = 0; l < VL; l++) {
      const int tile = group * VL + l, ty = tile / grid.columns, tx = tile % grid.columns;
      for (int r = 0; r < rows; r++) {
        const int y = ty * SIDE - top + r;
        const bool inside = ty < grid.rows && y >= 0 && y < grid.height;
        for (int j = around ? -1 : 0; j < (around ? 5 : 4); j++) {
          const int x = tx * SIDE + j;
          d[r][1 + j][l] = inside && x >= 0 && x < grid.width ? plane[int64_t(y) * grid.width + x] : 0.f;
        }
      }
    }
    return;
  }
  int row[4], x[4];
  for (int k = 0; k < 4; k++) place(grid, group, k, row[k], x[k]);
  const bool many = grid.columns < VL;  // rows of tiles in a group
  vf left = splat(1.f), right = splat(1.f);
  if (many)
    for (int l = 0; l < VL; l++) {
      left[l] = l % grid.columns != 0;
      right[l] = l % grid.columns != grid.columns - 1;
    }
  for (int r = 0; r < rows; r++) {
    vf a[4];
    for (int k = 0; k < 4; k++) {
      const int y = row[k] * SIDE - top + r;
      const bool inside = row[k] < grid.rows && y >= 0 && y < grid.height;
      a[k] = inside ? load(plane + int64_t(y) * grid.width + x[k]) : vf{};
    }
    pixels_to_tiles(a, d[r] + 1);
    if (!around) continue;
    const int y = row[0] * SIDE - top + r;
    const bool inside = !many && y >= 0 && y < grid.height;
    const float* line = plane + int64_t(y) * grid.width;
    const int end = x[0] + VL * SIDE;
    d[r][0] = from_left(d[r][4], inside && x[0] > 0 ? line[x[0] - 1] : 0.f);
    d[r][5] = from_right(d[r][1], inside && end < grid.width ? line[end] : 0.f);
    if (many) {
      d[r][0] *= left;
      d[r][5] *= right;
    }
  }
}

// The inverse for 4×4 pixels: what lies outside of the plane is dropped.
inline void write_group(float* plane, const Grid& grid, int group, const vf y[4][4]) {
  if (!grid.whole) {
    for (int l = 0; l < VL; l++) {
      const int tile = group * VL + l, ty = tile / grid.columns, tx = tile % grid.columns;
      if (ty >= grid.rows) return;
      const int bottom = std::min(SIDE, grid.height - ty * SIDE), right = std::min(SIDE, grid.width - tx * SIDE);
      for (int r = 0; r < bottom; r++)
        for (int j = 0; j < right; j++)
          plane[int64_t(ty * SIDE + r) * grid.width + tx * SIDE + j] = y[r][j][l];
    }
    return;
  }
  for (int r = 0; r < SIDE; r++) {
    vf a[4];
    tiles_to_pixels(y[r], a);
    for (int k = 0; k < 4; k++) {
      int row, x;
      place(grid, group, k, row, x);
      const int py = row * SIDE + r;
      if (row < grid.rows && py < grid.height) store(plane + int64_t(py) * grid.width + x, a[k]);
    }
  }
}

}  // namespace wrangan
