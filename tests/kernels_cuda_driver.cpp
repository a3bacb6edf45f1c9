// Runs the bodies of kernels/cuda on the CPU: blocks one after the other, in each phase the threads
// one after the other. Built by tests/kernels_cuda_host.py, called through ctypes.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#include "dispatch.cuh"

using namespace wrangan;

namespace {

// 1: threads from first to last; -1: from last to first. What comes out must not depend on it.
int order = 1;
int blocks_run = 0;
char last_error[128] = "";

struct HostLauncher {
  template <class Block, int P>
  static void phases(Block& block, int round) {
    if constexpr (P < Block::PHASES) {
      for (int i = 0; i < THREADS; ++i) {
        block.template phase<P>(order > 0 ? i : THREADS - 1 - i, round);
      }
      phases<Block, P + 1>(block, round);
    }
  }

  template <class Block>
  void run(const typename Block::Arguments& arguments, int blocks, int shared_bytes) const {
    if (shared_bytes > SHARED_BYTES) std::abort();
    // Behind it lies a part that no thread may touch.
    const int guard = 256, numbers = shared_bytes / 4;
    auto* shared = static_cast<float*>(::operator new(shared_bytes + guard * 4, std::align_val_t{32}));
    const float poison = std::numeric_limits<float>::signaling_NaN();
    for (int i = 0; i < blocks; ++i) {
      const int place = order > 0 ? i : blocks - 1 - i;
      std::fill(shared, shared + numbers, poison);
      std::fill(shared + numbers, shared + numbers + guard, 12345.0f);
      Block block(arguments, place, reinterpret_cast<unsigned char*>(shared));
      for (int round = 0; round < block.rounds(); ++round) phases<Block, 0>(block, round);
      for (int k = 0; k < guard; ++k) {
        if (shared[numbers + k] != 12345.0f) std::snprintf(last_error, sizeof last_error, "shared memory overrun");
      }
    }
    blocks_run += blocks;
    ::operator delete(shared, std::align_val_t{32});
  }
};

struct Geometry {
  int batch, channels, in_height, in_width, out_height, out_width, channels_last, taps, before, flip;
};

FirShape shape_of(const Geometry& g, const float* kernel) {
  const bool last = g.channels_last != 0;
  return {{g.batch, g.channels, g.in_height, g.in_width, last},
          {g.batch, g.channels, g.out_height, g.out_width, last},
          g.taps, g.before, g.flip != 0, kernel};
}

template <class Visit>
void typed(int kind, Visit visit) {
  with_type(static_cast<Kind>(kind), [&](auto type) { visit(typename decltype(type)::type{}); });
}

}  // namespace

extern "C" {

struct Act {
  float slope, gain, clamp;
};

struct Weights {
  const float *mu, *std;
  const void* epsilon;
  const float* style;
  int epsilon_kind, epsilon_per_image, batch, outputs, inputs, area;
  float scale;
};

void set_order(int value) { order = value; }
int count_blocks() { return std::exchange(blocks_run, 0); }
const char* error() { return last_error; }

void run_upfirdn2d(int kind, const Geometry* g, const float* kernel, int up, int down, const void* x,
                   const float* scale, void* out) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    upfirdn2d(launcher, shape_of(*g, kernel), up, down, static_cast<const T*>(x), scale, static_cast<T*>(out));
  });
}

void run_add_upsampled(int kind, const Geometry* g, const float* kernel, const void* y, const void* skip, void* out) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    add_upsampled(launcher, shape_of(*g, kernel), static_cast<const T*>(y), static_cast<const T*>(skip),
                  static_cast<T*>(out));
  });
}

void run_fir_act(int kind, const Geometry* g, const float* kernel, const void* x, const float* scale,
                 const float* bias, const float* noise, const float* strength, int noise_per_image,
                 const Act* act, void* out) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    const ActEnd<T> end{static_cast<T*>(out), scale, bias, noise, strength, noise_per_image != 0,
                        {act->slope, act->gain, act->clamp}};
    fir_act(launcher, shape_of(*g, kernel), static_cast<const T*>(x), end);
  });
}

void run_act_grad(int kind, const Geometry* g, const void* grad, const void* y, const float* scale,
                  const Act* act, void* grad_x, void* grad_pre) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    act_grad(launcher, shape_of(*g, nullptr).in, static_cast<const T*>(grad), static_cast<const T*>(y), scale,
             Activation{act->slope, act->gain, act->clamp}, static_cast<T*>(grad_x), static_cast<T*>(grad_pre));
  });
}

// 0: the shape is none that it can do in one pass.
int run_fir_act_grad(int kind, const Geometry* g, const float* kernel, const void* grad, const void* y,
                     const float* scale, const Act* act, void* grad_x, void* grad_pre) {
  const FirShape shape = shape_of(*g, kernel);
  if (!one_pass(shape)) return 0;
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    fir_act_grad(launcher, shape, static_cast<const T*>(grad), static_cast<const T*>(y), scale,
                 Activation{act->slope, act->gain, act->clamp}, static_cast<T*>(grad_x),
                 static_cast<T*>(grad_pre));
  });
  return 1;
}

static WeightTerms terms_of(const Weights& w) {
  return {w.mu, w.std, w.epsilon, w.style, static_cast<Kind>(w.epsilon_kind), w.epsilon_per_image != 0,
          w.batch, w.outputs, w.inputs, w.area, w.scale, false, false};
}

void run_modulated_weight(int kind, const Weights* w, void* weight, float* demod) {
  typed(kind, [&](auto zero) {
    HostLauncher launcher;
    modulated_weight(launcher, terms_of(*w), static_cast<decltype(zero)*>(weight), demod);
  });
}

void run_modulated_weight_grad(int kind, const Weights* w, const void* grad, const float* demod, float* grad_mu,
                               float* grad_std, void* grad_epsilon, float* style_parts, int over_batch,
                               int group) {
  typed(kind, [&](auto zero) {
    HostLauncher launcher;
    modulated_weight_grad(launcher, terms_of(*w), static_cast<const decltype(zero)*>(grad), demod,
                          WeightGrads{grad_mu, grad_std, grad_epsilon, style_parts, over_batch != 0, group});
  });
}

}  // extern "C"
