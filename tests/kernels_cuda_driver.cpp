// The bodies of kernels/wrangan_kernels/cuda on the CPU, one function a kernel: built by tests/kernels_cuda_host.py,
// called through ctypes.

#include <utility>

#include "kernels_cuda_launcher.h"

using namespace wrangan;

namespace {

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

// How many parts of an image's sums there are for these maps; `number` bytes large.
int count_parts(const Geometry* g, int number, const void* a, const void* b) {
  return Strips::of_sums(shape_of(*g, nullptr).in, packs_fit(number, {a, b})).parts;
}

void run_depthwise(int kind, const Geometry* g, const void* x, const float* taps, int per_image, int turned,
                   void* out) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    depthwise(launcher, shape_of(*g, nullptr).in, static_cast<const T*>(x), taps, per_image != 0, turned != 0,
              static_cast<T*>(out));
  });
}

void run_depthwise_taps(int kind, const Geometry* g, const void* x, const void* grad, float* parts) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    const Strips strips = Strips::of_sums(shape_of(*g, nullptr).in, packs_fit(sizeof(T), {x, grad}));
    depthwise_taps(launcher, strips, static_cast<const T*>(x), static_cast<const T*>(grad), parts);
  });
}

void run_haar_up(int kind, const Geometry* g, const void* x, const float* style, void* out) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    haar_up(launcher, shape_of(*g, nullptr).in, static_cast<const T*>(x), style, static_cast<T*>(out));
  });
}

void run_haar_up_grad(int kind, const Geometry* g, const void* grad, const void* x, const float* style,
                      void* grad_x, float* parts) {
  typed(kind, [&](auto zero) {
    using T = decltype(zero);
    HostLauncher launcher;
    const Strips strips = Strips::of_sums(shape_of(*g, nullptr).in, packs_fit(sizeof(T), {x, grad}));
    haar_up_grad(launcher, strips, static_cast<const T*>(grad), static_cast<const T*>(x), style,
                 static_cast<T*>(grad_x), parts);
  });
}

}  // extern "C"
