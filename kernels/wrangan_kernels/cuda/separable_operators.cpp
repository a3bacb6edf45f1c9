// The CUDA operators of MobileStyleGAN's layers (kernels/wrangan_kernels/separable.py): checks, memory through ATen, launches
// on the current stream. Everything is channels_last, so a 1×1 convolution is a product of matrices and belongs
// to cuBLAS; each image has a product of its own, of the same shape in every batch, and so the same bits.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "checks.h"
#include "device.h"
#include "launch.h"

namespace wrangan {
namespace {

constexpr auto LAST = at::MemoryFormat::ChannelsLast;

Maps last_maps(const Tensor& x, const char* where) {
  Maps maps = maps_of(x, where);
  maps.channels_last = true;  // also where both layouts are the same
  return maps;
}

Tensor empty_last(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return at::empty({like.size(0), channels, height, width}, like.options(), LAST);
}

// The same memory as (B, H·W, C).
Tensor rows_of(const Tensor& x) {
  return x.permute({0, 2, 3, 1}).view({x.size(0), x.size(2) * x.size(3), x.size(1)});
}

// Of one set for all images, or of one each.
Tensor of_image(const Tensor& sets, int64_t image) { return sets.select(0, sets.size(0) > 1 ? image : 0); }

bool fits_batch(const Tensor& sets, const Tensor& x) { return sets.size(0) == 1 || sets.size(0) == x.size(0); }

// to[b] = a[b] · b[b].
void products(const Tensor& a, const Tensor& b, const Tensor& to) {
  for (int64_t image = 0; image < to.size(0); ++image) {
    Tensor out = to.select(0, image);
    at::mm_out(out, of_image(a, image), of_image(b, image));
  }
}

// What the parts (B, parts, n) of `sets` sets of n numbers add up to.
Tensor sum_of_parts(const Tensor& parts, int64_t sets) {
  Tensor sums = at::empty({sets, parts.size(2)}, parts.options().dtype(at::kFloat));
  for (int64_t set = 0; set < sets; ++set) {
    Tensor out = sums.select(0, set);
    if (sets == parts.size(0)) {
      at::sum_out(out, parts.select(0, set), at::IntArrayRef{0}, false, at::kFloat);
    } else {
      at::sum_out(out, parts, at::IntArrayRef{0, 1}, false, at::kFloat);
    }
  }
  return sums;
}

// x, and the weights as the kernels take them.
struct Separable {
  Tensor x, taps, mixing;
  Kind kind;
  Maps maps;

  Separable(const Tensor& x_in, const Tensor& depthwise, const Tensor& mixing_in, const char* where)
      : kind(kind_of(x_in, where)) {
    TORCH_CHECK(x_in.dim() == 4 && x_in.size(1) > 0 && depthwise.dim() == 4 && depthwise.size(1) == x_in.size(1) &&
                    depthwise.size(2) == 3 && depthwise.size(3) == 3 && mixing_in.dim() == 3 &&
                    mixing_in.size(1) > 0 && mixing_in.size(2) == x_in.size(1) && fits_batch(depthwise, x_in) &&
                    fits_batch(mixing_in, x_in),
                where, ": depthwise ", depthwise.sizes(), " or mixing ", mixing_in.sizes(), " does not fit x ",
                x_in.sizes());
    x = x_in.contiguous(LAST);
    taps = as_float(depthwise, x, where);
    mixing = as_float(mixing_in, x, where).to(x.scalar_type());
    maps = last_maps(x, where);
  }
  int64_t outputs() const { return mixing.size(1); }

  void depthwise(const Tensor& from, bool turned, const Tensor& to) const {
    depthwise_cuda(kind, maps, from.const_data_ptr(), taps.const_data_ptr<float>(), taps.size(0) > 1, turned,
                   to.mutable_data_ptr(), current_stream());
    WRANGAN_LAUNCHED();
  }
  Tensor gradient_of_taps(const Tensor& grad) const {
    const bool packs = packs_fit(x.element_size(), {x.const_data_ptr(), grad.const_data_ptr()});
    const Strips strips = Strips::of_sums(maps, packs);
    Tensor parts = at::empty({x.size(0), strips.parts, x.size(1) * 9}, taps.options());
    depthwise_taps_cuda(kind, strips, x.const_data_ptr(), grad.const_data_ptr(), parts.mutable_data_ptr<float>(),
                        current_stream());
    WRANGAN_LAUNCHED();
    return sum_of_parts(parts, taps.size(0)).view(taps.sizes());
  }
};

Tensor separable_conv_op(const Tensor& x_in, const Tensor& depthwise, const Tensor& mixing,
                         const OptionalTensor& noise_in, const Tensor& bias_in, double slope) {
  const char* where = "separable_conv";
  const DeviceGuard guard(x_in.device());
  const Separable layer(x_in, depthwise, mixing, where);
  const Tensor& x = layer.x;
  TORCH_CHECK(bias_in.dim() == 1 && bias_in.size(0) == layer.outputs(), where, ": bias: expected (", layer.outputs(),
              ",), not ", bias_in.sizes());
  TORCH_CHECK(!noise_in.has_value() || (noise_in->dim() == 4 && fits_batch(*noise_in, x) && noise_in->size(1) == 1 &&
                                        noise_in->size(2) == x.size(2) && noise_in->size(3) == x.size(3)),
              where, ": noise: expected (1 or ", x.size(0), ", 1, ", x.size(2), ", ", x.size(3), "), not ",
              noise_in->sizes());
  const Tensor bias = as_float(bias_in, x, where);
  const auto noise = as_float(noise_in, x, where);
  Tensor y = empty_last(x, layer.outputs(), x.size(2), x.size(3));
  if (y.numel() == 0) return y;
  const Tensor middle = at::empty(x.sizes(), x.options(), LAST);
  layer.depthwise(x, false, middle);
  products(rows_of(middle), layer.mixing.transpose(1, 2), rows_of(y));
  // In place; the noise comes multiplied by its strength.
  const Maps maps = last_maps(y, where);
  const ActPointers end{nullptr, bias.const_data_ptr<float>(), pointer(noise), nullptr, noise && noise->size(0) > 1,
                        activation(slope, 1, -1)};
  fir_act_cuda(layer.kind, {maps, maps, 1, 0, true, nullptr}, y.const_data_ptr(), end, y.mutable_data_ptr(),
               current_stream());
  WRANGAN_LAUNCHED();
  return y;
}

// needed: x, depthwise, mixing, noise, bias. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> separable_conv_backward_op(
    const Tensor& grad_in, const Tensor& y_in, const Tensor& x_in, const Tensor& depthwise, const Tensor& mixing,
    int64_t noise_maps, double slope, std::array<bool, 5> needed) {
  const char* where = "separable_conv_backward";
  const DeviceGuard guard(x_in.device());
  const at::NoGradGuard plain;
  const Separable layer(x_in, depthwise, mixing, where);
  const Tensor& x = layer.x;
  const int64_t batch = x.size(0), inputs = x.size(1), outputs = layer.outputs();
  for (const Tensor* given : {&grad_in, &y_in}) {
    check_device(*given, x, where);
    TORCH_CHECK(given->sizes() == at::IntArrayRef({batch, outputs, x.size(2), x.size(3)}) &&
                    given->scalar_type() == x.scalar_type(),
                where, ": grad or y ", given->sizes(), " of ", given->scalar_type(), " does not fit x ", x.sizes(),
                " of ", x.scalar_type());
  }
  TORCH_CHECK(noise_maps == 0 || noise_maps == 1 || noise_maps == batch, where, ": ", noise_maps, " noise maps for ",
              batch, " images");
  const Tensor grad = grad_in.contiguous(LAST), y = y_in.contiguous(LAST);
  const auto floats = x.options().dtype(at::kFloat);
  const auto none = [&] { return at::empty({0}, x.options()); };
  const bool noisy = needed[3] && noise_maps > 0;
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options(), LAST) : none();
  Tensor grad_depthwise = needed[1] ? at::zeros(depthwise.sizes(), depthwise.options()) : none();
  Tensor grad_mixing = needed[2] ? at::zeros(mixing.sizes(), mixing.options()) : none();
  Tensor grad_noise = noisy ? at::zeros({noise_maps, 1, x.size(2), x.size(3)}, floats) : none();
  Tensor grad_bias = needed[4] ? at::zeros({outputs}, floats) : none();
  if (x.numel() == 0) return {grad_x, grad_depthwise, grad_mixing, grad_noise, grad_bias};

  // At the sum before the activation.
  const Tensor outside = empty_last(x, outputs, x.size(2), x.size(3)), rows = rows_of(outside);
  act_grad_cuda(layer.kind, last_maps(y, where), grad.const_data_ptr(), y.const_data_ptr(), nullptr,
                activation(slope, 1, -1), nullptr, outside.mutable_data_ptr(), current_stream());
  WRANGAN_LAUNCHED();
  if (needed[4]) at::sum_out(grad_bias, rows, at::IntArrayRef{0, 1}, false, at::kFloat);
  if (noisy) {
    // (B, channels, pixels): pixels are what is kept.
    grad_noise = sum_of_parts(rows.transpose(1, 2), noise_maps).view(grad_noise.sizes());
  }
  Tensor middle = needed[0] || needed[1] || needed[2] ? at::empty(x.sizes(), x.options(), LAST) : none();
  if (needed[2]) {
    layer.depthwise(x, false, middle);
    const Tensor each = at::empty({batch, outputs, inputs}, x.options());
    products(rows.transpose(1, 2), rows_of(middle), each);
    const bool shared = mixing.size(0) < batch;
    grad_mixing = (shared ? at::sum(each, at::IntArrayRef{0}, true, at::kFloat) : each).to(mixing.scalar_type());
  }
  if (needed[0] || needed[1]) products(rows, layer.mixing, rows_of(middle));
  if (needed[1]) grad_depthwise = layer.gradient_of_taps(middle).to(depthwise.scalar_type());
  if (needed[0]) layer.depthwise(middle, true, grad_x);
  return {grad_x, grad_depthwise, grad_mixing, grad_noise, grad_bias};
}

// x, and the style as the kernels take it.
struct Haar {
  Tensor x, style;
  Kind kind;
  Maps low;  // of the low band

  Haar(const Tensor& x_in, const Tensor& style_in, const char* where) : kind(kind_of(x_in, where)) {
    TORCH_CHECK(x_in.dim() == 4 && x_in.size(1) > 0 && x_in.size(1) % 4 == 0 && style_in.dim() == 2 &&
                    style_in.size(0) == x_in.size(0) && style_in.size(1) == x_in.size(1),
                where, ": style ", style_in.sizes(), " does not fit x ", x_in.sizes());
    x = x_in.contiguous(LAST);
    style = as_float(style_in, x, where);
    low = last_maps(x, where);
    low.channels /= 4;
  }
};

Tensor haar_up_op(const Tensor& x_in, const Tensor& style) {
  const DeviceGuard guard(x_in.device());
  const Haar layer(x_in, style, "haar_up");
  Tensor y = empty_last(layer.x, layer.low.channels, 2 * layer.x.size(2), 2 * layer.x.size(3));
  if (y.numel() == 0) return y;
  haar_up_cuda(layer.kind, layer.low, layer.x.const_data_ptr(), layer.style.const_data_ptr<float>(),
               y.mutable_data_ptr(), current_stream());
  WRANGAN_LAUNCHED();
  return y;
}

// needed: x, style. What is not is an empty tensor.
std::tuple<Tensor, Tensor> haar_up_backward_op(const Tensor& grad_in, const Tensor& x_in, const Tensor& style,
                                               std::array<bool, 2> needed) {
  const char* where = "haar_up_backward";
  const DeviceGuard guard(x_in.device());
  const at::NoGradGuard plain;
  const Haar layer(x_in, style, where);
  const Tensor& x = layer.x;
  check_device(grad_in, x, where);
  TORCH_CHECK(grad_in.sizes() == at::IntArrayRef({x.size(0), layer.low.channels, 2 * x.size(2), 2 * x.size(3)}) &&
                  grad_in.scalar_type() == x.scalar_type(),
              where, ": grad ", grad_in.sizes(), " of ", grad_in.scalar_type(), " does not fit x ", x.sizes(), " of ",
              x.scalar_type());
  const Tensor grad = grad_in.contiguous(LAST);
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options(), LAST) : at::empty({0}, x.options());
  Tensor grad_style = needed[1] ? at::zeros(style.sizes(), style.options()) : at::empty({0}, style.options());
  if (x.numel() == 0 || !(needed[0] || needed[1])) return {grad_x, grad_style};
  const bool packs = packs_fit(x.element_size(), {x.const_data_ptr(), grad.const_data_ptr()});
  const Strips strips = Strips::of_sums(layer.low, packs && aligned(layer.style.const_data_ptr(), 16));
  Tensor parts;
  if (needed[1]) parts = at::empty({x.size(0), strips.parts, x.size(1)}, layer.style.options());
  haar_up_grad_cuda(layer.kind, strips, grad.const_data_ptr(), x.const_data_ptr(),
                    layer.style.const_data_ptr<float>(), needed[0] ? grad_x.mutable_data_ptr() : nullptr,
                    needed[1] ? parts.mutable_data_ptr<float>() : nullptr, current_stream());
  WRANGAN_LAUNCHED();
  if (needed[1]) grad_style = sum_of_parts(parts, x.size(0)).to(style.scalar_type());
  return {grad_x, grad_style};
}

// x, and the weight as the product takes it. Means are ATen's: its pooling in channels_last reads each number
// once, neighbouring threads neighbouring channels, and sums in float32; a kernel of ours could do no better.
struct Pooled {
  Tensor x, weight;
  int64_t height, width, pool;

  Pooled(const Tensor& x_in, const Tensor& weight_in, int64_t pool_, const char* where) : pool(pool_) {
    kind_of(x_in, where);
    TORCH_CHECK(x_in.dim() == 4 && x_in.size(1) > 0 && weight_in.dim() == 3 && weight_in.size(1) > 0 &&
                    weight_in.size(2) == x_in.size(1) && fits_batch(weight_in, x_in),
                where, ": weight ", weight_in.sizes(), " does not fit x ", x_in.sizes());
    TORCH_CHECK(pool >= 1 && x_in.size(2) % pool == 0 && x_in.size(3) % pool == 0, where, ": ", pool,
                " px do not fit x ", x_in.sizes());
    maps_of(x_in, where);
    x = x_in.contiguous(LAST);
    weight = as_float(weight_in, x, where);
    height = x.size(2) / pool;
    width = x.size(3) / pool;
  }
  Tensor means() const { return rows_of(pool == 1 ? x : at::avg_pool2d(x, {pool, pool}).contiguous(LAST)); }
  Tensor factors(double scale) const { return (scale == 1 ? weight : weight.mul(scale)).to(x.scalar_type()); }
};

Tensor pooled_pointwise_op(const Tensor& x_in, const Tensor& weight, const Tensor& bias, int64_t pool) {
  const char* where = "pooled_pointwise";
  const DeviceGuard guard(x_in.device());
  const Pooled layer(x_in, weight, pool, where);
  const int64_t batch = x_in.size(0), colours = weight.size(1);
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == colours, where, ": bias: expected (", colours, ",), not ",
              bias.sizes());
  Tensor y = at::empty({batch, colours, layer.height, layer.width}, layer.x.options());
  if (y.numel() == 0) return y;
  products(layer.factors(1), layer.means().transpose(1, 2), y.view({batch, colours, -1}));
  return y.add_(as_float(bias, layer.x, where).view({-1, 1, 1}));
}

// needed: x, weight, bias. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> pooled_pointwise_backward_op(const Tensor& grad_in, const Tensor& x_in,
                                                                const Tensor& weight, int64_t pool,
                                                                std::array<bool, 3> needed) {
  const char* where = "pooled_pointwise_backward";
  const DeviceGuard guard(x_in.device());
  const at::NoGradGuard plain;
  const Pooled layer(x_in, weight, pool, where);
  const Tensor& x = layer.x;
  const int64_t batch = x.size(0), inputs = x.size(1), colours = weight.size(1);
  check_device(grad_in, x, where);
  TORCH_CHECK(grad_in.sizes() == at::IntArrayRef({batch, colours, layer.height, layer.width}) &&
                  grad_in.scalar_type() == x.scalar_type(),
              where, ": grad ", grad_in.sizes(), " of ", grad_in.scalar_type(), " does not fit x ", x.sizes(), " of ",
              x.scalar_type());
  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options(), LAST) : none();
  Tensor grad_weight = needed[1] ? at::zeros(weight.sizes(), weight.options()) : none();
  Tensor grad_bias = needed[2] ? at::zeros({colours}, x.options().dtype(at::kFloat)) : none();
  if (x.numel() == 0) return {grad_x, grad_weight, grad_bias};
  const Tensor grad = grad_in.contiguous().view({batch, colours, -1});
  if (needed[0]) {
    // Each of a window's pixels has the same share.
    const double share = 1.0 / static_cast<double>(pool * pool);
    const Tensor means = pool == 1 ? rows_of(grad_x) : at::empty({batch, grad.size(2), inputs}, x.options());
    products(grad.transpose(1, 2), layer.factors(share), means);
    if (pool > 1) {
      Tensor windows = grad_x.permute({0, 2, 3, 1}).view({batch, layer.height, pool, layer.width, pool, inputs});
      windows.copy_(means.view({batch, layer.height, 1, layer.width, 1, inputs}));
    }
  }
  if (needed[1]) {
    const Tensor each = at::empty({batch, colours, inputs}, x.options());
    products(grad, layer.means(), each);
    const bool shared = weight.size(0) < batch;
    grad_weight = (shared ? at::sum(each, at::IntArrayRef{0}, true, at::kFloat) : each).to(weight.scalar_type());
  }
  if (needed[2]) at::sum_out(grad_bias, grad, at::IntArrayRef{0, 2}, false, at::kFloat);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace wrangan

TORCH_LIBRARY_IMPL(wrangan, WRANGAN_DEVICE, m) {
  m.impl("separable_conv", wrangan::separable_conv_op);
  m.impl("separable_conv_backward", wrangan::separable_conv_backward_op);
  m.impl("haar_up", wrangan::haar_up_op);
  m.impl("haar_up_backward", wrangan::haar_up_backward_op);
  m.impl("pooled_pointwise", wrangan::pooled_pointwise_op);
  m.impl("pooled_pointwise_backward", wrangan::pooled_pointwise_backward_op);
}
