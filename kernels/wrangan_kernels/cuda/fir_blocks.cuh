// The three kinds of blocks that filter:
//   TiledFir   contiguous maps. A tile of the input lies in shared memory as float32; each thread
//              sums ROWS outputs of one column in registers, so that an input number is read from
//              shared memory about TAPS·(ROWS + TAPS)/ROWS times, not TAPS² times.
//   DirectFir  channels_last. Neighbouring threads have neighbouring channels, four each: loads need
//              no tile to be wide. The sums are the same.
//   GatherFir  any factors and layouts, one output a thread: for what StyleGAN2 does not use.
#pragma once

#include "fir.cuh"

namespace wrangan {

// How outputs are shared out: a block has `planes` planes × (`strips` · ROWS) rows × `cols` columns.
struct TilePlan {
  int cols, strips, planes;
  int tile_height, pitch;  // of the input, per plane
  int tiles_x, tiles_y, groups;
  bool packed;  // the input's rows can be read in packs

  int blocks() const { return tiles_x * tiles_y * groups; }
  int shared_bytes() const {
    return static_cast<int>(sizeof(FirTaps)) + planes * tile_height * pitch * static_cast<int>(sizeof(float));
  }
};

template <int DOWN, int V>
constexpr int strip_rows() {
  return DOWN == 1 || (DOWN == 2 && V == 1) ? 8 : 4;
}

template <int UP, int DOWN, int TAPS, class Input, class End>
struct TiledFir {
  static constexpr int ROWS = strip_rows<DOWN, 1>();
  static constexpr int PHASES = TAPS > 4 ? 4 : 2;
  static constexpr int PACK = pack_size<typename Input::Type>();

  struct Arguments {
    FirShape shape;
    TilePlan plan;
    Input input;
    End end;
  };

  static TilePlan plan(const FirShape& shape, bool aligned_input) {
    TilePlan plan{};
    plan.packed = aligned_input && shape.in.width % PACK == 0;
    const auto sides = [&] {
      plan.tile_height = ((plan.strips * ROWS - 1) * DOWN + TAPS - 1) / UP + 2;
      const int width = ((plan.cols - 1) * DOWN + TAPS - 1) / UP + 2;
      plan.pitch = ceil_div(width + PACK - 1, PACK) * PACK;
    };
    plan.cols = power_of_two_from(shape.out.width);
    plan.cols = plan.cols < 8 ? 8 : (plan.cols > 64 ? 64 : plan.cols);
    plan.strips = power_of_two_from(ceil_div(shape.out.height, ROWS));
    if (plan.strips > THREADS / plan.cols) plan.strips = THREADS / plan.cols;
    plan.planes = THREADS / (plan.cols * plan.strips);
    // Four blocks or more are to fit into the shared memory of a multiprocessor of any kind.
    for (sides(); plan.shared_bytes() > SHARED_BYTES / 2; sides()) {
      if (plan.planes > 1) {
        plan.planes /= 2;
      } else if (plan.strips > 1) {
        plan.strips /= 2;
      } else {
        plan.cols /= 2;
      }
    }
    const int planes = shape.out.batch * shape.out.channels;
    plan.tiles_x = ceil_div(shape.out.width, plan.cols);
    plan.tiles_y = ceil_div(shape.out.height, plan.strips * ROWS);
    plan.groups = ceil_div(planes, plan.planes);
    return plan;
  }

  const Arguments& a;
  FirTaps& taps;
  float* tile;
  int tile_x, tile_y, first_plane, top, left;

  WRANGAN_HD TiledFir(const Arguments& arguments, int block, unsigned char* shared)
      : a(arguments),
        taps(*reinterpret_cast<FirTaps*>(shared)),
        tile(reinterpret_cast<float*>(shared + sizeof(FirTaps))) {
    const TilePlan& p = a.plan;
    tile_x = block % p.tiles_x;
    tile_y = block / p.tiles_x % p.tiles_y;
    first_plane = block / p.tiles_x / p.tiles_y * p.planes;
    top = ceil_div(tile_y * p.strips * ROWS * DOWN - a.shape.before, UP);
    left = ceil_div(tile_x * p.cols * DOWN - a.shape.before, UP);
    if (p.packed) left = floor_div(left, PACK) * PACK;
  }

  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 0) {
      taps.load(thread, a.shape.kernel, a.shape.taps, a.shape.flip);
      if (a.plan.packed) {
        stage<PACK>(thread);
      } else {
        stage<1>(thread);
      }
    } else if constexpr (P == PHASES - 1) {
      compute(thread);
    } else if constexpr (P == 1) {
      taps.sum(thread);
    } else {
      taps.test(thread, a.shape.taps);
    }
  }

 private:
  // Every thread takes each THREADS-th pack of the tile, row by row.
  template <int N>
  WRANGAN_HD void stage(int thread) {
    const Maps& in = a.shape.in;
    const int height = a.plan.tile_height, packs = a.plan.pitch / N;
    const int row_step = THREADS / packs, pack_step = THREADS % packs;
    const int total_rows = a.plan.planes * height;
    const int planes = in.batch * in.channels;
    int row = thread / packs, pack = thread % packs;
    int plane = row / height;
    row -= plane * height;
    WRANGAN_UNROLL_4
    for (int done = thread; done < total_rows * packs; done += THREADS) {
      const int y = top + row, x = left + pack * N;
      float v[N];
      if (first_plane + plane < planes && y >= 0 && y < in.height && x >= 0 && x < in.width) {
        const int64_t offset = static_cast<int64_t>(first_plane + plane) * in.pixels() + y * in.width + x;
        a.input(offset, owned(y, x), v);
      } else {
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) v[i] = 0;
      }
      store(tile + (plane * height + row) * a.plan.pitch + pack * N, v);
      row += row_step;
      pack += pack_step;
      if (pack >= packs) {
        pack -= packs;
        ++row;
      }
      while (row >= height) {
        row -= height;
        ++plane;
      }
    }
  }

  // Tiles overlap; this says for each place of the input which one tile it belongs to: the one whose
  // own outputs begin there, or the last (UP = DOWN = 1, before ≥ 0).
  WRANGAN_HD bool owned(int y, int x) const {
    const TilePlan& p = a.plan;
    return own_tile((y + a.shape.before) / (p.strips * ROWS), p.tiles_y) == tile_y &&
           own_tile((x + a.shape.before) / p.cols, p.tiles_x) == tile_x;
  }
  WRANGAN_HD static int own_tile(int tile, int tiles) { return tile < tiles ? tile : tiles - 1; }

  struct Source {
    const float* from;
    int pitch;
    WRANGAN_HD void operator()(int i, int m, float (&v)[1]) const { v[0] = from[i * pitch + m]; }
  };

  WRANGAN_HD void compute(int thread) {
    const TilePlan& p = a.plan;
    const Maps& out = a.shape.out;
    const int inner_col = thread % p.cols, strip = thread / p.cols % p.strips;
    const int inner_plane = thread / p.cols / p.strips;
    const int plane = first_plane + inner_plane;
    const int row = (tile_y * p.strips + strip) * ROWS, col = tile_x * p.cols + inner_col;
    if (inner_plane >= p.planes || plane >= out.batch * out.channels || col >= out.width || row >= out.height)
      return;
    const int start_row = row * DOWN - a.shape.before, start_col = col * DOWN - a.shape.before;
    const int first_row = ceil_div(start_row, UP), first_col = ceil_div(start_col, UP);
    const Source source{
        tile + (inner_plane * p.tile_height + first_row - top) * p.pitch + first_col - left, p.pitch};
    float sums[ROWS][1];
    fir_sums<UP, DOWN, TAPS>(taps, first_row * UP - start_row, first_col * UP - start_col, source, sums);
    const int image = plane / out.channels;
    const auto terms = a.end.template prepare<1>(out, image, plane - image * out.channels);
    const int64_t base = static_cast<int64_t>(plane) * out.pixels();
    WRANGAN_UNROLL
    for (int o = 0; o < ROWS; ++o) {
      if (row + o >= out.height) break;
      const int pixel = (row + o) * out.width + col;
      a.end(terms, base + pixel, pixel, sums[o]);
    }
  }
};

// channels_last: a block has `lanes` packs of four channels × `cols` columns × one strip of rows.
struct DirectPlan {
  int lanes, cols;
  int groups, tiles_x, tiles_y, images;

  int blocks() const { return groups * tiles_x * tiles_y * images; }
};

template <int UP, int DOWN, int TAPS, class Input, class End>
struct DirectFir {
  static constexpr int V = 4;
  static constexpr int ROWS = strip_rows<DOWN, V>();
  static constexpr int PHASES = TAPS > 4 ? 4 : 2;

  struct Arguments {
    FirShape shape;
    DirectPlan plan;
    Input input;
    End end;
  };

  static DirectPlan plan(const FirShape& shape) {
    DirectPlan plan{};
    const int packs = shape.out.channels / V;
    plan.lanes = power_of_two_from(packs);
    if (plan.lanes > 32) plan.lanes = 32;
    plan.cols = THREADS / plan.lanes;
    plan.groups = ceil_div(packs, plan.lanes);
    plan.tiles_x = ceil_div(shape.out.width, plan.cols);
    plan.tiles_y = ceil_div(shape.out.height, ROWS);
    plan.images = shape.out.batch;
    return plan;
  }

  const Arguments& a;
  FirTaps& taps;
  int block;

  WRANGAN_HD DirectFir(const Arguments& arguments, int block_, unsigned char* shared)
      : a(arguments), taps(*reinterpret_cast<FirTaps*>(shared)), block(block_) {}

  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 0) {
      taps.load(thread, a.shape.kernel, a.shape.taps, a.shape.flip);
    } else if constexpr (P == PHASES - 1) {
      compute(thread);
    } else if constexpr (P == 1) {
      taps.sum(thread);
    } else {
      taps.test(thread, a.shape.taps);
    }
  }

 private:
  struct Source {
    const Input& input;
    const Maps& in;
    int64_t base;  // of the image, at the channel
    int row, col;
    WRANGAN_HD void operator()(int i, int m, float (&v)[V]) const {
      const int y = row + i, x = col + m;
      if (y >= 0 && y < in.height && x >= 0 && x < in.width) {
        input(base + static_cast<int64_t>(y * in.width + x) * in.channels, false, v);
      } else {
        WRANGAN_UNROLL
        for (int c = 0; c < V; ++c) v[c] = 0;
      }
    }
  };

  WRANGAN_HD void compute(int thread) {
    const DirectPlan& p = a.plan;
    const Maps &in = a.shape.in, &out = a.shape.out;
    int rest = block;
    const int channel = (rest % p.groups * p.lanes + thread % p.lanes) * V;
    rest /= p.groups;
    const int col = rest % p.tiles_x * p.cols + thread / p.lanes;
    rest /= p.tiles_x;
    const int row = rest % p.tiles_y * ROWS, image = rest / p.tiles_y;
    if (channel >= out.channels || col >= out.width) return;
    const int start_row = row * DOWN - a.shape.before, start_col = col * DOWN - a.shape.before;
    const int first_row = ceil_div(start_row, UP), first_col = ceil_div(start_col, UP);
    const Source source{a.input, in, in.offset(image, channel, 0), first_row, first_col};
    float sums[ROWS][V];
    fir_sums<UP, DOWN, TAPS>(taps, first_row * UP - start_row, first_col * UP - start_col, source, sums);
    const auto terms = a.end.template prepare<V>(out, image, channel);
    WRANGAN_UNROLL
    for (int o = 0; o < ROWS; ++o) {
      if (row + o >= out.height) break;
      const int pixel = (row + o) * out.width + col;
      a.end(terms, out.offset(image, channel, pixel), pixel, sums[o]);
    }
  }
};

// One output a thread, straight from the definition.
template <class Input, class End>
struct GatherFir {
  static constexpr int PHASES = 2;

  struct Arguments {
    FirShape shape;
    int up, down;
    int blocks_per_image;
    Input input;
    End end;

    int blocks() const { return blocks_per_image * shape.out.batch; }
  };

  const Arguments& a;
  FirTaps& taps;
  int block;

  WRANGAN_HD GatherFir(const Arguments& arguments, int block_, unsigned char* shared)
      : a(arguments), taps(*reinterpret_cast<FirTaps*>(shared)), block(block_) {}

  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 0) {
      taps.load(thread, a.shape.kernel, a.shape.taps, a.shape.flip);
    } else {
      compute(thread);
    }
  }

 private:
  WRANGAN_HD void compute(int thread) {
    const Maps &in = a.shape.in, &out = a.shape.out;
    const int image = block / a.blocks_per_image;
    // In the order of memory, so that neighbours write to neighbours.
    const int64_t place = static_cast<int64_t>(block % a.blocks_per_image) * THREADS + thread;
    if (place >= static_cast<int64_t>(out.channels) * out.pixels()) return;
    const int index = static_cast<int>(place);
    const int channel = out.channels_last ? index % out.channels : index / out.pixels();
    const int pixel = out.channels_last ? index / out.channels : index % out.pixels();
    const int start_row = pixel / out.width * a.down - a.shape.before;
    const int start_col = pixel % out.width * a.down - a.shape.before;
    float sum[1] = {0};
    for (int y = ceil_div(start_row, a.up), t = y * a.up - start_row; t < a.shape.taps; ++y, t += a.up) {
      if (y < 0 || y >= in.height) continue;
      for (int x = ceil_div(start_col, a.up), s = x * a.up - start_col; s < a.shape.taps; ++x, s += a.up) {
        if (x < 0 || x >= in.width) continue;
        float v[1];
        a.input(in.offset(image, channel, y * in.width + x), false, v);
        sum[0] += taps.full[t][s] * v[0];
      }
    }
    const auto terms = a.end.template prepare<1>(out, image, channel);
    a.end(terms, out.offset(image, channel, pixel), pixel, sum);
  }
};

}  // namespace wrangan
