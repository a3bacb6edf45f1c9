// The CUDA operators of the namespace `wrangan` (schemas: kernels/wrangan_kernels/operators.py): checks, memory through
// ATen, launches on the current stream. Nothing here waits for the GPU, so all of it can be captured.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "device.h"
#include "launch.h"

namespace wrangan {
namespace {

// Rows of weights that a block of modulated_weight_backward takes: the order of additions is then the
// same for every batch and GPU.
constexpr int ROW_GROUP = 2;

Tensor empty_maps(const Tensor& like, int64_t height, int64_t width) {
  return at::empty({like.size(0), like.size(1), height, width}, like.options(), layout_of(like));
}

Tensor checked_kernel(const Tensor& kernel, const Tensor& x, const char* where) {
  TORCH_CHECK(kernel.dim() == 2 && kernel.size(0) == kernel.size(1) && kernel.size(0) >= 1 &&
                  kernel.size(0) <= MAX_TAPS,
              where, ": expected a square FIR kernel of 1 to ", MAX_TAPS, " taps, not ", kernel.sizes());
  return as_float(kernel, x, where);
}

int64_t resampled(int64_t side, int64_t up, int64_t down, int64_t before, int64_t after, int64_t taps,
                  const char* where) {
  const int64_t padded = side * up + before + after;
  TORCH_CHECK(padded >= taps, where, ": ", taps, " taps do not fit on ", padded, " px (", side, " px × ", up,
              ", padded by ", before, " and ", after, ")");
  // Places are counted in int; a padding of this size is a mistake.
  constexpr int64_t most = 1 << 28;
  TORCH_CHECK(padded < most && std::abs(before) < most && std::abs(after) < most, where, ": sides beyond ",
              most, " px");
  return (padded - taps) / down + 1;
}

Tensor upfirdn2d_op(const Tensor& x_in, const Tensor& kernel_in, int64_t up, int64_t down, int64_t before,
                    int64_t after) {
  const DeviceGuard guard(x_in.device());
  const Kind kind = kind_of(x_in, "upfirdn2d: x");
  TORCH_CHECK(up >= 1 && down >= 1 && up <= 1024 && down <= 1024, "upfirdn2d: up and down: expected 1 to 1024, not ",
              up, " and ", down);
  TORCH_CHECK(x_in.dim() == 4, "upfirdn2d: x: expected (B, C, H, W), not ", x_in.sizes());
  const Tensor x = x_in.contiguous(layout_of(x_in));
  const Tensor kernel = checked_kernel(kernel_in, x, "upfirdn2d: kernel");
  const int64_t taps = kernel.size(0);
  Tensor out = empty_maps(x, resampled(x.size(2), up, down, before, after, taps, "upfirdn2d"),
                          resampled(x.size(3), up, down, before, after, taps, "upfirdn2d"));
  FirShape shape{maps_of(x, "upfirdn2d: x"), maps_of(out, "upfirdn2d: result"), static_cast<int>(taps),
                 static_cast<int>(before), true, kernel.const_data_ptr<float>()};
  shape.in.channels_last = shape.out.channels_last = is_channels_last(x);
  if (out.numel() == 0) return out;
  upfirdn2d_cuda(kind, shape, static_cast<int>(up), static_cast<int>(down), x.const_data_ptr(), nullptr,
                 out.mutable_data_ptr(), current_stream());
  WRANGAN_LAUNCHED();
  return out;
}

Tensor add_upsampled_op(const Tensor& y_in, const Tensor& skip_in, const Tensor& kernel_in) {
  const DeviceGuard guard(y_in.device());
  const Kind kind = kind_of(y_in, "add_upsampled: y");
  TORCH_CHECK(y_in.dim() == 4 && skip_in.dim() == 4 && y_in.size(0) == skip_in.size(0) &&
                  y_in.size(1) == skip_in.size(1) && y_in.size(2) == 2 * skip_in.size(2) &&
                  y_in.size(3) == 2 * skip_in.size(3),
              "add_upsampled: expected y of twice the sides of skip, not ", y_in.sizes(), " and ", skip_in.sizes());
  TORCH_CHECK(y_in.scalar_type() == skip_in.scalar_type(), "add_upsampled: y is ", y_in.scalar_type(),
              ", skip ", skip_in.scalar_type());
  check_device(skip_in, y_in, "add_upsampled: skip");
  const Tensor y = y_in.contiguous(layout_of(y_in));
  const Tensor skip = skip_in.contiguous(layout_of(y_in));
  const Tensor kernel = checked_kernel(kernel_in, y, "add_upsampled: kernel");
  const int taps = static_cast<int>(kernel.size(0));
  TORCH_CHECK(taps >= 2, "add_upsampled: kernel: expected 2 taps or more");
  Tensor out = empty_maps(y, y.size(2), y.size(3));
  FirShape shape{maps_of(skip, "add_upsampled: skip"), maps_of(y, "add_upsampled: y"), taps,
                 (taps - 1) / 2 + 1, true, kernel.const_data_ptr<float>()};
  shape.in.channels_last = shape.out.channels_last = is_channels_last(y);
  if (out.numel() == 0) return out;
  add_upsampled_cuda(kind, shape, y.const_data_ptr(), skip.const_data_ptr(), out.mutable_data_ptr(),
                     current_stream());
  WRANGAN_LAUNCHED();
  return out;
}

OptionalTensor checked_scale(const OptionalTensor& scale, const Tensor& x, const char* where) {
  TORCH_CHECK(!scale.has_value() || (scale->dim() == 2 && scale->size(0) == x.size(0) && scale->size(1) == x.size(1)),
              where, ": expected (B, C) = (", x.size(0), ", ", x.size(1), "), not ", scale->sizes());
  return as_float(scale, x, where);
}

Tensor fir_act_op(const Tensor& x_in, const OptionalTensor& kernel_in, int64_t before, int64_t after,
                  const OptionalTensor& noise_in, const OptionalTensor& strength_in, const OptionalTensor& scale_in,
                  const OptionalTensor& bias_in, double slope, double gain, double clamp) {
  const DeviceGuard guard(x_in.device());
  const Kind kind = kind_of(x_in, "fir_act: x");
  TORCH_CHECK(x_in.dim() == 4, "fir_act: x: expected (B, C, H, W), not ", x_in.sizes());
  const Tensor x = x_in.contiguous(layout_of(x_in));
  OptionalTensor kernel;
  int64_t taps = 1;
  if (kernel_in.has_value()) {
    kernel = checked_kernel(*kernel_in, x, "fir_act: kernel");
    taps = kernel->size(0);
  } else {
    TORCH_CHECK(before == 0 && after == 0, "fir_act: padding needs a kernel");
  }
  const int64_t height = resampled(x.size(2), 1, 1, before, after, taps, "fir_act");
  const int64_t width = resampled(x.size(3), 1, 1, before, after, taps, "fir_act");
  TORCH_CHECK(noise_in.has_value() == strength_in.has_value(), "fir_act: noise and strength go together");
  if (noise_in.has_value()) {
    const Tensor& n = *noise_in;
    TORCH_CHECK(n.dim() == 4 && (n.size(0) == 1 || n.size(0) == x.size(0)) && n.size(1) == 1 &&
                    n.size(2) == height && n.size(3) == width,
                "fir_act: noise: expected (1 or ", x.size(0), ", 1, ", height, ", ", width, "), not ", n.sizes());
    TORCH_CHECK(strength_in->numel() == 1, "fir_act: strength: expected one number, not ", strength_in->sizes());
  }
  TORCH_CHECK(!bias_in.has_value() || (bias_in->dim() == 1 && bias_in->size(0) == x.size(1)),
              "fir_act: bias: expected (", x.size(1), ",), not ", bias_in->sizes());
  const auto noise = as_float(noise_in, x, "fir_act: noise"), strength = as_float(strength_in, x, "fir_act: strength");
  const auto scale = checked_scale(scale_in, x, "fir_act: scale"), bias = as_float(bias_in, x, "fir_act: bias");

  Tensor out = empty_maps(x, height, width);
  FirShape shape{maps_of(x, "fir_act: x"), maps_of(out, "fir_act: result"), static_cast<int>(taps),
                 static_cast<int>(before), true, pointer(kernel)};
  shape.in.channels_last = shape.out.channels_last = is_channels_last(x);
  if (out.numel() == 0) return out;
  const ActPointers end{pointer(scale),    pointer(bias), pointer(noise),
                        pointer(strength), noise && noise->size(0) > 1, activation(slope, gain, clamp)};
  fir_act_cuda(kind, shape, x.const_data_ptr(), end, out.mutable_data_ptr(), current_stream());
  WRANGAN_LAUNCHED();
  return out;
}

std::tuple<Tensor, Tensor> fir_act_backward_op(const Tensor& grad_in, const Tensor& y_in,
                                               const OptionalTensor& kernel_in, int64_t before, int64_t after,
                                               const OptionalTensor& scale_in, double slope, double gain,
                                               double clamp, int64_t height, int64_t width) {
  const DeviceGuard guard(y_in.device());
  const Kind kind = kind_of(y_in, "fir_act_backward: y");
  TORCH_CHECK(y_in.dim() == 4 && grad_in.sizes() == y_in.sizes() && grad_in.scalar_type() == y_in.scalar_type(),
              "fir_act_backward: grad ", grad_in.sizes(), " of ", grad_in.scalar_type(), " for y ", y_in.sizes(),
              " of ", y_in.scalar_type());
  check_device(grad_in, y_in, "fir_act_backward: grad");
  const Tensor y = y_in.contiguous(layout_of(y_in)), grad = grad_in.contiguous(layout_of(y_in));
  OptionalTensor kernel;
  int64_t taps = 1;
  if (kernel_in.has_value()) {
    kernel = checked_kernel(*kernel_in, y, "fir_act_backward: kernel");
    taps = kernel->size(0);
  } else {
    TORCH_CHECK(before == 0 && after == 0, "fir_act_backward: padding needs a kernel");
  }
  TORCH_CHECK(resampled(height, 1, 1, before, after, taps, "fir_act_backward") == y.size(2) &&
                  resampled(width, 1, 1, before, after, taps, "fir_act_backward") == y.size(3),
              "fir_act_backward: y ", y.sizes(), " is not the result for an input of ", height, " × ", width, " px");
  const auto scale = checked_scale(scale_in, y, "fir_act_backward: scale");
  // Without kernel and scale both are the same, and one is enough.
  const bool same = !kernel && !scale;
  Tensor grad_pre = empty_maps(y, y.size(2), y.size(3));
  Tensor grad_x = same ? at::empty({0}, y.options()) : empty_maps(y, height, width);
  if (y.numel() == 0) return {grad_x.zero_(), grad_pre};
  const auto stream = current_stream();
  const Activation act = activation(slope, gain, clamp);
  // FIRᵀ: the kernel is not flipped, and what was cut off at an edge is padded there.
  const Maps of_y = maps_of(y, "fir_act_backward: y");
  FirShape shape{of_y, same ? of_y : maps_of(grad_x, "fir_act_backward: result"), static_cast<int>(taps),
                 static_cast<int>(taps - 1 - before), false, pointer(kernel)};
  shape.in.channels_last = shape.out.channels_last = is_channels_last(y);
  const void *from = grad.const_data_ptr(), *result = y.const_data_ptr();
  void *to = same ? nullptr : grad_x.mutable_data_ptr(), *to_pre = grad_pre.mutable_data_ptr();
  if (!kernel) {
    act_grad_cuda(kind, shape.in, from, result, pointer(scale), act, to, to_pre, stream);
  } else if (one_pass(shape)) {
    fir_act_grad_cuda(kind, shape, from, result, pointer(scale), act, to, to_pre, stream);
  } else {
    act_grad_cuda(kind, shape.in, from, result, nullptr, act, nullptr, to_pre, stream);
    WRANGAN_LAUNCHED();
    upfirdn2d_cuda(kind, shape, 1, 1, to_pre, pointer(scale), to, stream);
  }
  WRANGAN_LAUNCHED();
  return {grad_x, grad_pre};
}

// The tensors of a call as the kernels take them, held until they are launched.
struct Modulation {
  Tensor mu, style;
  OptionalTensor std, epsilon;
  WeightTerms terms;
};

Modulation modulation(const Tensor& mu, const OptionalTensor& std, const OptionalTensor& epsilon,
                      const Tensor& style, double scale, const char* where) {
  TORCH_CHECK(mu.dim() == 4 && mu.size(2) == mu.size(3) && mu.scalar_type() == at::kFloat, where,
              ": mu: expected (O, I, k, k) of float32, not ", mu.sizes(), " of ", mu.scalar_type());
  TORCH_CHECK(style.dim() == 2 && style.size(1) == mu.size(1), where, ": style: expected (B, ", mu.size(1), "), not ",
              style.sizes());
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  TORCH_CHECK(mu.numel() <= most && style.size(0) * mu.size(0) <= most, where, ": too many weights: ", mu.sizes());
  Modulation made;
  made.mu = mu.contiguous();
  made.style = as_float(style, mu, where);
  const int64_t batch = style.size(0);
  const bool random = std.has_value() && epsilon.has_value();
  bool per_image = false;
  Kind epsilon_kind = Kind::float32;
  if (random) {
    TORCH_CHECK(std->sizes() == mu.sizes(), where, ": std ", std->sizes(), " for mu ", mu.sizes());
    per_image = epsilon->dim() == 5;
    const auto own = per_image ? epsilon->sizes().slice(1) : epsilon->sizes();
    TORCH_CHECK(own == mu.sizes() && (!per_image || epsilon->size(0) == batch), where, ": epsilon ",
                epsilon->sizes(), " for mu ", mu.sizes(), " and ", batch, " images");
    check_device(*epsilon, mu, where);
    epsilon_kind = kind_of(*epsilon, where);
    made.std = as_float(*std, mu, where);
    made.epsilon = epsilon->contiguous();
  }
  made.terms = {made.mu.const_data_ptr<float>(),
                pointer(made.std),
                random ? made.epsilon->const_data_ptr() : nullptr,
                made.style.const_data_ptr<float>(),
                epsilon_kind,
                per_image,
                static_cast<int>(batch),
                static_cast<int>(mu.size(0)),
                static_cast<int>(mu.size(1)),
                static_cast<int>(mu.size(2) * mu.size(3)),
                static_cast<float>(scale),
                false,
                false};
  return made;
}

std::vector<int64_t> weight_sizes(const Tensor& mu, int64_t batch) {
  return {batch, mu.size(0), mu.size(1), mu.size(2), mu.size(3)};
}

std::tuple<Tensor, Tensor> modulated_weight_op(const Tensor& mu, const OptionalTensor& std,
                                               const OptionalTensor& epsilon, const Tensor& style, double scale,
                                               bool demodulate, int64_t dtype) {
  const DeviceGuard guard(mu.device());
  const Modulation made = modulation(mu, std, epsilon, style, scale, "modulated_weight");
  const auto options = mu.options();
  Tensor weight = at::empty(weight_sizes(mu, style.size(0)), options.dtype(static_cast<at::ScalarType>(dtype)));
  const Kind kind = kind_of(weight, "modulated_weight: result");
  Tensor demod = demodulate ? at::empty({style.size(0), mu.size(0)}, options) : at::empty({0}, options);
  if (weight.numel() == 0) return {weight, demod.fill_(1e4)};
  modulated_weight_cuda(kind, made.terms, weight.mutable_data_ptr(),
                        demodulate ? demod.mutable_data_ptr<float>() : nullptr, current_stream());
  WRANGAN_LAUNCHED();
  return {weight, demod};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_weight_backward_op(
    const Tensor& grad_in, const Tensor& mu, const OptionalTensor& std, const OptionalTensor& epsilon,
    const Tensor& style, const Tensor& demod_in, double scale, std::array<bool, 4> needed) {
  const char* where = "modulated_weight_backward";
  const DeviceGuard guard(mu.device());
  const Modulation made = modulation(mu, std, epsilon, style, scale, where);
  const Kind kind = kind_of(grad_in, "modulated_weight_backward: grad_weight");
  const int64_t batch = style.size(0);
  TORCH_CHECK(grad_in.sizes() == at::IntArrayRef(weight_sizes(mu, batch)), where, ": grad_weight ", grad_in.sizes(),
              " for mu ", mu.sizes(), " and ", batch, " images");
  check_device(grad_in, mu, where);
  const bool demodulated = demod_in.numel() > 0;
  TORCH_CHECK(!demodulated || demod_in.numel() == batch * mu.size(0), where, ": demod ", demod_in.sizes());
  const Tensor grad = grad_in.contiguous(), demod = as_float(demod_in, mu, where);

  const auto options = mu.options();
  // One each: results may not share memory.
  const auto none = [&] { return at::empty({0}, options); };
  const bool random = made.epsilon.has_value(), per_image = made.terms.epsilon_per_image;
  // σ without ε, or ε without σ, has no influence.
  const auto unused = [&](const OptionalTensor& x, bool need) { return need && x ? at::zeros_like(*x) : none(); };
  Tensor grad_mu = needed[0] ? at::empty(mu.sizes(), options) : none();
  Tensor grad_std = random && needed[1] ? at::empty(mu.sizes(), options) : unused(std, needed[1]);
  Tensor grad_epsilon = unused(random ? OptionalTensor() : epsilon, needed[2]);
  if (random && needed[2]) {
    grad_epsilon = at::empty(epsilon->sizes(), per_image ? epsilon->options() : options);
  }
  if (grad.numel() == 0) {
    return {grad_mu.zero_(), grad_std.zero_(), grad_epsilon.zero_(), needed[3] ? at::zeros_like(style) : none()};
  }
  WeightGrads to{};
  to.mu = needed[0] ? grad_mu.mutable_data_ptr<float>() : nullptr;
  to.std = random && needed[1] ? grad_std.mutable_data_ptr<float>() : nullptr;
  to.epsilon = random && needed[2] ? grad_epsilon.mutable_data_ptr() : nullptr;
  to.over_batch = to.mu || to.std || (to.epsilon && !per_image);
  to.group = ROW_GROUP;
  Tensor parts;
  if (needed[3]) {
    const int64_t groups = to.over_batch ? mu.size(0) : (mu.size(0) + ROW_GROUP - 1) / ROW_GROUP;
    parts = at::empty({groups, batch, mu.size(1)}, options);
    to.style_parts = parts.mutable_data_ptr<float>();
  }
  if (to.mu || to.std || to.epsilon || to.style_parts) {
    modulated_weight_grad_cuda(kind, made.terms, grad.const_data_ptr(),
                               demodulated ? demod.const_data_ptr<float>() : nullptr, to,
                               current_stream());
    WRANGAN_LAUNCHED();
  }
  if (random && needed[1]) grad_std = grad_std.to(std->scalar_type());
  if (random && needed[2]) grad_epsilon = grad_epsilon.to(epsilon->scalar_type());
  const Tensor grad_style = needed[3] ? at::sum(parts, {0}).to(style.scalar_type()) : none();
  return {grad_mu, grad_std, grad_epsilon, grad_style};
}

}  // namespace
}  // namespace wrangan

TORCH_LIBRARY_IMPL(wrangan, WRANGAN_DEVICE, m) {
  m.impl("upfirdn2d", wrangan::upfirdn2d_op);
  m.impl("add_upsampled", wrangan::add_upsampled_op);
  m.impl("fir_act", wrangan::fir_act_op);
  m.impl("fir_act_backward", wrangan::fir_act_backward_op);
  m.impl("modulated_weight", wrangan::modulated_weight_op);
  m.impl("modulated_weight_backward", wrangan::modulated_weight_backward_op);
}
