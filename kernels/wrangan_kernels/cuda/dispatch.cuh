// Which block does which call. A launcher is what runs blocks: CudaLauncher (launch.cuh) on the GPU,
// and on the CPU the one of the tests. `launcher.template run<Block>(arguments, blocks, shared_bytes)`.
#pragma once

#include "fir_blocks.cuh"
#include "haar.cuh"
#include "modulated.cuh"
#include "pointwise.cuh"
#include "separable.cuh"

namespace wrangan {

template <int UP, int DOWN, int TAPS, class Launcher, class Input, class End>
void run_fir(Launcher& launcher, const FirShape& shape, const Input& input, const End& end, bool aligned_all) {
  if (shape.out.channels_last) {
    using Block = DirectFir<UP, DOWN, TAPS, Input, End>;
    const DirectPlan plan = Block::plan(shape);
    launcher.template run<Block>({shape, plan, input, end}, plan.blocks(), sizeof(FirTaps));
  } else {
    using Block = TiledFir<UP, DOWN, TAPS, Input, End>;
    const TilePlan plan = Block::plan(shape, aligned_all);
    launcher.template run<Block>({shape, plan, input, end}, plan.blocks(), plan.shared_bytes());
  }
}

template <int UP, int DOWN, class Launcher, class Input, class End>
void run_fir_of_any_taps(Launcher& launcher, const FirShape& shape, const Input& input, const End& end,
                         bool aligned_all) {
  if (shape.taps <= 4) {
    run_fir<UP, DOWN, 4>(launcher, shape, input, end, aligned_all);
  } else {
    run_fir<UP, DOWN, 8>(launcher, shape, input, end, aligned_all);
  }
}

template <class Launcher, class Input, class End>
void run_gather(Launcher& launcher, const FirShape& shape, int up, int down, const Input& input, const End& end) {
  using Block = GatherFir<Input, End>;
  const int64_t numbers = static_cast<int64_t>(shape.out.channels) * shape.out.pixels();
  const int per_image = static_cast<int>((numbers + THREADS - 1) / THREADS);
  const typename Block::Arguments arguments{shape, up, down, per_image, input, end};
  launcher.template run<Block>(arguments, arguments.blocks(), sizeof(FirTaps));
}

// channels_last has packs of four channels, or goes the slow way.
inline bool has_fast_way(const FirShape& shape, bool aligned_all) {
  return !shape.out.channels_last || (aligned_all && shape.out.channels % 4 == 0);
}

template <typename T, class Launcher>
void upfirdn2d(Launcher& launcher, const FirShape& shape, int up, int down, const T* x, const float* scale, T* out) {
  const bool aligned_all = aligned(x, 16) && aligned(out, 16);
  const PlainInput<T> input{x};
  const StoreEnd<T> end{out, scale};
  if (!has_fast_way(shape, aligned_all)) return run_gather(launcher, shape, up, down, input, end);
  if (up == 1 && down == 1) return run_fir_of_any_taps<1, 1>(launcher, shape, input, end, aligned_all);
  if (up == 2 && down == 1) return run_fir_of_any_taps<2, 1>(launcher, shape, input, end, aligned_all);
  if (up == 1 && down == 2) return run_fir_of_any_taps<1, 2>(launcher, shape, input, end, aligned_all);
  if (up == 4 && down == 1) return run_fir_of_any_taps<4, 1>(launcher, shape, input, end, aligned_all);
  if (up == 1 && down == 4) return run_fir_of_any_taps<1, 4>(launcher, shape, input, end, aligned_all);
  run_gather(launcher, shape, up, down, input, end);
}

template <typename T, class Launcher>
void add_upsampled(Launcher& launcher, const FirShape& shape, const T* y, const T* skip, T* out) {
  const bool aligned_all = aligned(skip, 16) && aligned(out, 16) && aligned(y, 16);
  const PlainInput<T> input{skip};
  const AddEnd<T> end{out, y};
  if (!has_fast_way(shape, aligned_all)) return run_gather(launcher, shape, 2, 1, input, end);
  run_fir_of_any_taps<2, 1>(launcher, shape, input, end, aligned_all);
}

// shape.kernel null: no FIR.
template <typename T, class Launcher>
void fir_act(Launcher& launcher, const FirShape& shape, const T* x, const ActEnd<T>& end) {
  const bool aligned_all = aligned(x, 16) && aligned(end.out, 16);
  if (!shape.kernel) {
    using Block = PointwiseAct<T>;
    // A pack of noise may be 32 bytes long.
    const PackPlan plan = PackPlan::make(shape.out, Block::PACK, aligned_all && aligned(end.noise, 32));
    launcher.template run<Block>({plan, x, end}, plan.blocks(), 0);
    return;
  }
  const PlainInput<T> input{x};
  if (!has_fast_way(shape, aligned_all)) return run_gather(launcher, shape, 1, 1, input, end);
  run_fir_of_any_taps<1, 1>(launcher, shape, input, end, aligned_all);
}

// grad_pre, and scale · grad_pre where grad_x is not null.
template <typename T, class Launcher>
void act_grad(Launcher& launcher, const Maps& maps, const T* grad, const T* y, const float* scale, Activation act,
              T* grad_x, T* grad_pre) {
  using Block = PointwiseActGrad<T>;
  const bool aligned_all = aligned(grad, 16) && aligned(y, 16) && aligned(grad_pre, 16) && aligned(grad_x, 16);
  const PackPlan plan = PackPlan::make(maps, Block::PACK, aligned_all);
  const float limit = static_cast<float>(static_cast<T>(act.clamp));
  launcher.template run<Block>({plan, grad, y, grad_pre, grad_x, scale, act, limit}, plan.blocks(), 0);
}

// Whether `fir_act_grad` can do it: each place of the gradient lies in a tile.
inline bool one_pass(const FirShape& shape) {
  const int after = shape.out.height - 1 + shape.taps - shape.in.height - shape.before;
  return !shape.out.channels_last && shape.before >= 0 && after >= 0;
}

// grad_pre and scale · FIRᵀ(grad_pre) in one pass; `shape` is that of FIRᵀ, and one_pass(shape) holds.
template <typename T, class Launcher>
void fir_act_grad(Launcher& launcher, const FirShape& shape, const T* grad, const T* y, const float* scale,
                  Activation act, T* grad_x, T* grad_pre) {
  const bool aligned_all = aligned(grad, 16) && aligned(y, 16) && aligned(grad_pre, 16);
  const ActGradInput<T> input{grad, y, grad_pre, act, static_cast<float>(static_cast<T>(act.clamp))};
  const StoreEnd<T> end{grad_x, scale};
  const auto run = [&](auto block) {
    using Block = typename decltype(block)::type;
    const TilePlan plan = Block::plan(shape, aligned_all);
    launcher.template run<Block>({shape, plan, input, end}, plan.blocks(), plan.shared_bytes());
  };
  if (shape.taps <= 4) {
    run(Named<TiledFir<1, 1, 4, ActGradInput<T>, StoreEnd<T>>>{});
  } else {
    run(Named<TiledFir<1, 1, 8, ActGradInput<T>, StoreEnd<T>>>{});
  }
}

// Shared by the weights and their gradient: k = 3 and k = 1 are known when compiled.
template <template <typename, int> class Block, typename T, class Launcher, class Fill>
void run_modulated(Launcher& launcher, WeightTerms terms, bool aligned_all, Fill fill) {
  const auto run = [&](auto block) {
    using Kernel = typename decltype(block)::type;
    terms.packed = aligned_all && terms.length() % Kernel::PACK == 0;
    terms.staged = Kernel::fits(terms);
    typename Kernel::Arguments arguments{};
    arguments.terms = terms;
    fill(arguments);
    launcher.template run<Kernel>(arguments, arguments.blocks(), arguments.shared_bytes());
  };
  if (terms.area == 9) {
    run(Named<Block<T, 9>>{});
  } else if (terms.area == 1) {
    run(Named<Block<T, 1>>{});
  } else {
    run(Named<Block<T, 0>>{});
  }
}

inline bool terms_aligned(const WeightTerms& terms) {
  return aligned(terms.mu, 16) && aligned(terms.std, 16) && aligned(terms.epsilon, 16);
}

template <typename T, class Launcher>
void modulated_weight(Launcher& launcher, const WeightTerms& terms, T* weight, float* demod) {
  const bool aligned_all = terms_aligned(terms) && aligned(weight, 16);
  run_modulated<ModulatedWeight, T>(launcher, terms, aligned_all, [&](auto& arguments) {
    arguments.weight = weight;
    arguments.demod = demod;
  });
}

// Where the gradients of modulated_weight go; null: not wanted.
struct WeightGrads {
  float *mu, *std;
  void* epsilon;
  float* style_parts;
  bool over_batch;
  int group;
};

template <typename T, class Launcher>
void modulated_weight_grad(Launcher& launcher, const WeightTerms& terms, const T* grad, const float* demod,
                           const WeightGrads& to) {
  const bool aligned_all = terms_aligned(terms) && aligned(grad, 16) && aligned(to.mu, 16) &&
                           aligned(to.std, 16) && aligned(to.epsilon, 16);
  run_modulated<ModulatedWeightGrad, T>(launcher, terms, aligned_all, [&](auto& arguments) {
    arguments.grad = grad;
    arguments.demod = demod;
    arguments.grad_mu = to.mu;
    arguments.grad_std = to.std;
    arguments.grad_epsilon = to.epsilon;
    arguments.style_parts = to.style_parts;
    arguments.over_batch = to.over_batch;
    arguments.group = to.group;
  });
}

template <typename T, class Launcher>
void depthwise(Launcher& launcher, const Maps& maps, const T* x, const float* taps, bool per_image, bool turned,
               T* out) {
  const Strips strips = Strips::of_maps(maps, packs_fit(sizeof(T), {x, out}) && aligned(taps, 16));
  launcher.template run<Depthwise<T>>({strips, x, taps, per_image, turned, out}, strips.blocks(), 0);
}

// Where parts are written, whoever adds them up makes the strips (Strips::of_sums): they say how many.
template <typename T, class Launcher>
void depthwise_taps(Launcher& launcher, const Strips& strips, const T* x, const T* grad, float* parts) {
  launcher.template run<DepthwiseTaps<T>>({strips, x, grad, parts}, strips.blocks(), strips.shared_bytes(9));
}

// `maps` are those of the low band.
template <typename T, class Launcher>
void haar_up(Launcher& launcher, const Maps& maps, const T* x, const float* style, T* out) {
  const Strips strips = Strips::of_maps(maps, packs_fit(sizeof(T), {x, out}) && aligned(style, 16));
  launcher.template run<HaarUp<T>>({strips, x, style, out}, strips.blocks(), 0);
}

template <typename T, class Launcher>
void haar_up_grad(Launcher& launcher, const Strips& strips, const T* grad, const T* x, const float* style,
                  T* grad_x, float* parts) {
  launcher.template run<HaarUpGrad<T>>({strips, grad, x, style, grad_x, parts}, strips.blocks(),
                                       parts ? strips.shared_bytes(4) : 0);
}

}  // namespace wrangan
