// How kernels over channels_last maps share out the work, and sums over what a block has seen.
//
// A thread has a pack of channels of one column and walks down the lines of a strip: what belongs to the
// channels (taps, styles, sums) stays in registers. Neighbours have neighbouring packs, up to 16 of them, and
// then the next column, so whole cache lines are read, and columns that are read twice (3×3) come from the L1.
#pragma once

#include "common.cuh"

#include <cstddef>
#include <initializer_list>

namespace wrangan {

constexpr int STRIP_PACK = 4;
constexpr int MOST_WIDE = 16;  // packs beside each other in a block
// Lines of a strip: few where there are few of them, and more where each block writes sums.
constexpr int LINES = 8, LINES_OF_SMALL = 4, SMALL = 32, LINES_SUMMED = 16;

// Whether all of these may be read and written by packs; null pointers do not matter.
inline bool packs_fit(std::size_t number_bytes, std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (!aligned(pointer, STRIP_PACK * static_cast<int>(number_bytes))) return false;
  }
  return true;
}

struct Strips {
  Maps maps;    // channels: of those that packs are made of
  bool packed;  // four channels a thread, or one
  int wide, lines, groups, column_groups, parts;

  static Strips make(const Maps& maps, bool aligned_all, int lines) {
    Strips s{maps, aligned_all && maps.channels % STRIP_PACK == 0, 1, lines, 1, 1, 1};
    const int packs = ceil_div(maps.channels, s.pack());
    s.wide = packs < MOST_WIDE ? power_of_two_from(packs) : MOST_WIDE;
    s.groups = ceil_div(packs, s.wide);
    s.column_groups = ceil_div(maps.width, s.columns());
    s.parts = s.column_groups * ceil_div(maps.height, lines);
    return s;
  }
  static Strips of_maps(const Maps& maps, bool aligned_all) {
    return make(maps, aligned_all, maps.height >= SMALL ? LINES : LINES_OF_SMALL);
  }
  static Strips of_sums(const Maps& maps, bool aligned_all) { return make(maps, aligned_all, LINES_SUMMED); }

  WRANGAN_HD int pack() const { return packed ? STRIP_PACK : 1; }
  WRANGAN_HD int columns() const { return THREADS / wide; }
  int blocks() const { return maps.batch * parts * groups; }
  // Of the sums of a block, `numbers` for each channel.
  int shared_bytes(int numbers) const {
    return numbers * pack() * THREADS * static_cast<int>(sizeof(float));
  }
};

template <int N>
struct Width {
  static constexpr int count = N;
};

// work(Width) with as many channels as a thread has.
template <class Work>
WRANGAN_HD void with_pack(const Strips& s, const Work& work) {
  if (s.packed) {
    work(Width<STRIP_PACK>{});
  } else {
    work(Width<1>{});
  }
}

// Where a block is.
struct Strip {
  int image, part, first_channel, first_column, begin, end;  // lines from begin to before end

  WRANGAN_HD Strip(const Strips& s, int block) {
    const int group = block % s.groups, rest = block / s.groups;
    image = rest / s.parts;
    part = rest - image * s.parts;
    first_channel = group * s.wide * s.pack();
    first_column = part % s.column_groups * s.columns();
    begin = part / s.column_groups * s.lines;
    end = begin + s.lines < s.maps.height ? begin + s.lines : s.maps.height;
  }
  WRANGAN_HD int channel(const Strips& s, int thread) const {
    return first_channel + thread % s.wide * s.pack();
  }
  WRANGAN_HD int column(const Strips& s, int thread) const { return first_column + thread / s.wide; }
  WRANGAN_HD bool has(const Strips& s, int thread) const {
    return channel(s, thread) < s.maps.channels && column(s, thread) < s.maps.width;
  }
};

// Sums over a block's pixels, K numbers for each channel, in two steps with a barrier between them: each
// thread leaves its own, and then those of all columns are added in their order.
template <int K, int N>
WRANGAN_HD void leave_sums(float* shared, int thread, const float (&totals)[K][N]) {
  WRANGAN_UNROLL
  for (int k = 0; k < K; ++k) {
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) shared[(k * N + i) * THREADS + thread] = totals[k][i];
  }
}

// add(totals) where the thread has a place; what it adds up is left for `fold_sums`, if that is `wanted`.
template <int K, int N, class Add>
WRANGAN_HD void gather_sums(const Strips& s, const Strip& at, float* shared, int thread, bool wanted, const Add& add) {
  float totals[K][N];
  WRANGAN_UNROLL
  for (int k = 0; k < K; ++k) {
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) totals[k][i] = 0;
  }
  if (at.has(s, thread)) add(totals);
  if (wanted) leave_sums(shared, thread, totals);
}

// put(channel, k, sum).
template <int K, class Put>
WRANGAN_HD void fold_sums(const Strips& s, const Strip& at, const float* shared, int thread, const Put& put) {
  const int pack = s.pack();
  for (int n = thread; n < K * pack * s.wide; n += THREADS) {
    const int beside = n % s.wide, row = n / s.wide, k = row / pack;
    const int channel = at.first_channel + beside * pack + row - k * pack;
    if (channel >= s.maps.channels) continue;
    float total = 0;
    for (int column = 0; column < s.columns(); ++column) total += shared[row * THREADS + column * s.wide + beside];
    put(channel, k, total);
  }
}

}  // namespace wrangan
