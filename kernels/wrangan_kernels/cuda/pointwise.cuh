// fir_act and its backward pass where there is no FIR: one pack of numbers a thread.
#pragma once

#include "act.cuh"

namespace wrangan {

// Where a thread's pack lies. Along pixels in contiguous maps, along channels in channels_last.
struct PackPlan {
  Maps maps;
  int blocks_per_image;
  bool packed;

  static PackPlan make(const Maps& maps, int pack, bool aligned_all) {
    const int line = maps.channels_last ? maps.channels : maps.pixels();
    PackPlan plan{maps, 0, aligned_all && line % pack == 0};
    const int64_t threads = static_cast<int64_t>(maps.channels) * maps.pixels() / (plan.packed ? pack : 1);
    plan.blocks_per_image = static_cast<int>((threads + THREADS - 1) / THREADS);
    return plan;
  }
  int blocks() const { return blocks_per_image * maps.batch; }
};

struct Place {
  int image, channel, pixel;
  int64_t offset;
  bool inside;
};

template <int N>
WRANGAN_HD Place place_of(const PackPlan& plan, int block, int thread) {
  const Maps& maps = plan.maps;
  Place at;
  at.image = block / plan.blocks_per_image;
  const int64_t index = (static_cast<int64_t>(block % plan.blocks_per_image) * THREADS + thread) * N;
  const int64_t numbers = static_cast<int64_t>(maps.channels) * maps.pixels();
  at.inside = index < numbers;
  const int in_image = static_cast<int>(index), line = maps.channels_last ? maps.channels : maps.pixels();
  const int outer = in_image / line, inner = in_image - outer * line;
  at.channel = maps.channels_last ? inner : outer;
  at.pixel = maps.channels_last ? outer : inner;
  at.offset = at.image * numbers + index;
  return at;
}

template <typename T>
struct PointwiseAct {
  static constexpr int PHASES = 1;
  static constexpr int PACK = pack_size<T>();

  struct Arguments {
    PackPlan plan;
    const T* x;
    ActEnd<T> end;
  };

  const Arguments& a;
  int block;

  WRANGAN_HD PointwiseAct(const Arguments& arguments, int block_, unsigned char*) : a(arguments), block(block_) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if (a.plan.packed) {
      compute<PACK>(thread);
    } else {
      compute<1>(thread);
    }
  }

 private:
  template <int N>
  WRANGAN_HD void compute(int thread) {
    const Place at = place_of<N>(a.plan, block, thread);
    if (!at.inside) return;
    float v[N];
    load(a.x + at.offset, v);
    if (a.plan.maps.channels_last || N == 1) {
      const auto terms = a.end.template prepare<N>(a.plan.maps, at.image, at.channel);
      a.end(terms, at.offset, at.pixel, v);
      return;
    }
    const auto terms = a.end.template prepare<1>(a.plan.maps, at.image, at.channel);
    float noisy[N];
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) noisy[i] = 0;
    if (terms.noise) load(terms.noise + at.pixel, noisy);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) {
      v[i] = a.end.act(terms.scale[0] * v[i] + terms.strength * noisy[i] + terms.bias[0]);
    }
    store(a.end.out + at.offset, v);
  }
};

template <typename T>
struct PointwiseActGrad {
  static constexpr int PHASES = 1;
  static constexpr int PACK = pack_size<T>();

  struct Arguments {
    PackPlan plan;
    const T* grad;
    const T* y;
    T* grad_pre;
    T* grad_x;           // scale · grad_pre; null: not wanted
    const float* scale;  // (B, C) or null
    Activation act;
    float limit;
  };

  const Arguments& a;
  int block;

  WRANGAN_HD PointwiseActGrad(const Arguments& arguments, int block_, unsigned char*)
      : a(arguments), block(block_) {}
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if (a.plan.packed) {
      compute<PACK>(thread);
    } else {
      compute<1>(thread);
    }
  }

 private:
  template <int N>
  WRANGAN_HD void compute(int thread) {
    const Place at = place_of<N>(a.plan, block, thread);
    if (!at.inside) return;
    float v[N], y[N];
    load(a.grad + at.offset, v);
    load(a.y + at.offset, y);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) v[i] *= a.act.derivative(y[i], a.limit);
    store(a.grad_pre + at.offset, v);
    if (!a.grad_x) return;
    const float* scale = a.scale ? a.scale + static_cast<int64_t>(at.image) * a.plan.maps.channels : nullptr;
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) {
      if (scale) v[i] *= read(scale + at.channel + (a.plan.maps.channels_last ? i : 0));
    }
    store(a.grad_x + at.offset, v);
  }
};

}  // namespace wrangan
