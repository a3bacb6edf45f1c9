// Few channels of an image that is made smaller, and its gradients, channels_last:
//     y[p, c] = Σ_i weight[c, i] · mean of x[·, i] over pool × pool pixels + bias[c].
// The means come first, as both are linear: x is read once, and the products are pool² times fewer.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "operators.h"
#include "products.h"

namespace wrangan {
namespace {

constexpr int64_t MOST = 16;   // channels of y
constexpr int64_t BANDS = 16;  // of lines, whose sums are taken apart: the result does not depend on the threads

void check(const Tensor& x, const Tensor& weight, int64_t pool) {
  for (const Tensor* given : {&x, &weight})
    TORCH_CHECK(given->scalar_type() == at::kFloat, "pooled_pointwise: expected float32, not ", given->scalar_type());
  TORCH_CHECK(x.dim() == 4 && x.size(1) % VL == 0 && weight.dim() == 3 && weight.size(2) == x.size(1) &&
                  weight.size(1) >= 1 && weight.size(1) <= MOST && (weight.size(0) == 1 || weight.size(0) == x.size(0)),
              "pooled_pointwise: weight ", weight.sizes(), " does not fit x ", x.sizes());
  TORCH_CHECK(pool >= 1 && x.size(2) % pool == 0 && x.size(3) % pool == 0, "pooled_pointwise: ", pool, " px do not fit x ",
              x.sizes());
}

// The mean of pool × pool pixels: `first` is the upper left one, `line` numbers from one line to the next.
inline void mean_of(const float* first, int64_t channels, int64_t line, int64_t pool, float* out) {
  const float share = 1.f / static_cast<float>(pool * pool);
  for (int64_t c = 0; c < channels; c += VL) {
    vf total{};
    for (int64_t r = 0; r < pool; r++)
      for (int64_t k = 0; k < pool; k++) total += load(first + r * line + k * channels + c);
    store(out + c, total * share);
  }
}

Tensor pooled_pointwise(const Tensor& x_given, const Tensor& weight_given, const Tensor& bias_given, int64_t pool) {
  check(x_given, weight_given, pool);
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast), weight = weight_given.contiguous();
  const Tensor bias = bias_given.contiguous();
  const int64_t inputs = x.size(1), colours = weight.size(1), height = x.size(2) / pool, width = x.size(3) / pool;
  TORCH_CHECK(bias.numel() == colours && bias.scalar_type() == at::kFloat, "pooled_pointwise: bias ", bias.sizes());
  Tensor y = at::empty({x.size(0), colours, height, width}, x.options());
  const float* const in = x.const_data_ptr<float>();
  const float* const shift = bias.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  const int64_t line = x.size(3) * inputs;
  at::parallel_for(0, x.size(0) * height, std::max<int64_t>(1, (1 << 15) / (pool * line)), [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    float* const mean = scratch.get(inputs);
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / height, row = n % height;
      const float* const w = weight.const_data_ptr<float>() + (weight.size(0) > 1 ? image * colours * inputs : 0);
      for (int64_t p = 0; p < width; p++) {
        mean_of(in + n * pool * line + p * pool * inputs, inputs, line, pool, mean);
        for (int64_t c = 0; c < colours; c++) {
          vf total{};
          for (int64_t i = 0; i < inputs; i += VL) total += load(mean + i) * load(w + c * inputs + i);
          out[((image * colours + c) * height + row) * width + p] = sum(total) + shift[c];
        }
      }
    }
  });
  return y;
}

// needed: x, weight, bias. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> pooled_pointwise_backward(const Tensor& grad_given, const Tensor& x_given,
                                                             const Tensor& weight_given, int64_t pool,
                                                             std::array<bool, 3> needed) {
  check(x_given, weight_given, pool);
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast), weight = weight_given.contiguous();
  const Tensor grad = grad_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), colours = weight.size(1);
  const int64_t height = x.size(2) / pool, width = x.size(3) / pool, line = x.size(3) * inputs;
  TORCH_CHECK(grad.dim() == 4 && grad.size(0) == batch && grad.size(1) == colours && grad.size(2) == height &&
                  grad.size(3) == width,
              "pooled_pointwise_backward: grad ", grad.sizes(), " does not fit x ", x.sizes());
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast) : none;
  const float* const in = x.const_data_ptr<float>();
  const float* const g = grad.const_data_ptr<float>();
  float* const out = needed[0] ? grad_x.mutable_data_ptr<float>() : nullptr;
  const int64_t bands = std::min(BANDS, height), size = colours * inputs;
  std::vector<float> sums(needed[1] ? batch * bands * size : 0);
  const float share = 1.f / static_cast<float>(pool * pool);
  at::parallel_for(0, batch * bands, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    float* const mean = scratch.get(inputs);
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / bands, band = n % bands;
      const float* const w = weight.const_data_ptr<float>() + (weight.size(0) > 1 ? image * size : 0);
      for (int64_t row = height * band / bands; row < height * (band + 1) / bands; row++)
        for (int64_t p = 0; p < width; p++) {
          float pull[MOST];
          for (int64_t c = 0; c < colours; c++) pull[c] = g[((image * colours + c) * height + row) * width + p];
          const int64_t place = (image * height + row) * pool * line + p * pool * inputs;
          if (needed[1]) {
            mean_of(in + place, inputs, line, pool, mean);
            for (int64_t c = 0; c < colours; c++) {
              float* const to = sums.data() + n * size + c * inputs;
              const vf factor = splat(pull[c]);
              for (int64_t i = 0; i < inputs; i += VL) store(to + i, load(to + i) + factor * load(mean + i));
            }
          }
          if (!out) continue;
          for (int64_t i = 0; i < inputs; i += VL) {
            vf total{};
            for (int64_t c = 0; c < colours; c++) total += load(w + c * inputs + i) * splat(pull[c] * share);
            for (int64_t r = 0; r < pool; r++)
              for (int64_t k = 0; k < pool; k++) store(out + place + r * line + k * inputs + i, total);
          }
        }
    }
  });
  Tensor grad_weight = none;
  if (needed[1]) {
    grad_weight = at::zeros(weight.sizes(), x.options());
    float* const to = grad_weight.mutable_data_ptr<float>();
    for (int64_t n = 0; n < batch * bands; n++)
      for (int64_t k = 0; k < size; k++) to[(weight.size(0) > 1 ? n / bands * size : 0) + k] += sums[n * size + k];
  }
  return {grad_x, grad_weight, needed[2] ? grad.sum({0, 2, 3}) : none};
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("pooled_pointwise", &pooled_pointwise);
  m.impl("pooled_pointwise_backward", &pooled_pointwise_backward);
}

}  // namespace wrangan
