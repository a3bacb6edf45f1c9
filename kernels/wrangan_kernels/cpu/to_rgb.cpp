// The image of one resolution and its gradients as one operator each:
//     y[c] = clamp(Σ_i weight[c, i] · style[i] · x[i] + bias[c]), and the skip image enlarged twofold.
// There are three results, so x is read once each way, and the styles go into the weights.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "operators.h"
#include "vectors.h"

namespace wrangan {
namespace {

constexpr int64_t MOST = 4;          // colours
constexpr int64_t BLOCK = 256;       // pixels at a time
constexpr int64_t GRAIN = 1 << 15;   // numbers that are worth a thread

void check(const Tensor& x, const Tensor& weight, const Tensor& style) {
  for (const Tensor* given : {&x, &weight, &style})
    TORCH_CHECK(given->scalar_type() == at::kFloat, "to_rgb: expected float32, not ", given->scalar_type());
  TORCH_CHECK(x.dim() == 4 && weight.dim() == 2 && weight.size(0) >= 1 && weight.size(0) <= MOST &&
                  weight.size(1) == x.size(1) && style.dim() == 2 && style.size(0) == x.size(0) &&
                  style.size(1) == x.size(1),
              "to_rgb: weight ", weight.sizes(), " or style ", style.sizes(), " does not fit x ", x.sizes());
}

Tensor to_rgb(const Tensor& x_given, const Tensor& weight_given, const Tensor& style_given, const Tensor& bias_given,
              const optional<Tensor>& skip, const optional<Tensor>& fir, double clamp) {
  check(x_given, weight_given, style_given);
  const Tensor x = x_given.contiguous(), weight = weight_given.contiguous(), style = style_given.contiguous();
  const Tensor bias = bias_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), colours = weight.size(0), area = x.size(2) * x.size(3);
  TORCH_CHECK(bias.numel() == colours && bias.scalar_type() == at::kFloat, "to_rgb: bias ", bias.sizes(), " for ",
              colours, " colours");
  TORCH_CHECK(skip.has_value() == fir.has_value(), "to_rgb: the skip image and its filter belong together");
  Tensor y = at::empty({batch, colours, x.size(2), x.size(3)}, x.options());
  const float* const in = x.const_data_ptr<float>();
  const float* const w = weight.const_data_ptr<float>();
  const float* const s = style.const_data_ptr<float>();
  const float* const shift = bias.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  const int64_t blocks = (area + BLOCK - 1) / BLOCK;
  const float most = static_cast<float>(clamp);
  at::parallel_for(0, batch * blocks, std::max<int64_t>(1, GRAIN / (inputs * BLOCK)), [&](int64_t begin, int64_t end) {
    float sums[MOST][BLOCK];
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / blocks, first = n % blocks * BLOCK, count = std::min(BLOCK, area - first);
      for (int64_t c = 0; c < colours; c++) std::fill(sums[c], sums[c] + count, shift[c]);
      for (int64_t i = 0; i < inputs; i++) {
        const float* const line = in + (image * inputs + i) * area + first;
        for (int64_t c = 0; c < colours; c++) {
          const float factor = w[c * inputs + i] * s[image * inputs + i];
          for (int64_t p = 0; p < count; p++) sums[c][p] += factor * line[p];
        }
      }
      for (int64_t c = 0; c < colours; c++) {
        float* const to = out + (image * colours + c) * area + first;
        if (clamp < 0)
          std::copy(sums[c], sums[c] + count, to);
        else
          for (int64_t p = 0; p < count; p++) to[p] = sums[c][p] > most ? most : (sums[c][p] < -most ? -most : sums[c][p]);
      }
    }
  });
  return skip.has_value() ? add_upsampled(y, *skip, *fir) : y;
}

// needed: x, weight, style, bias, skip. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> to_rgb_backward(
    const Tensor& grad_given, const Tensor& x_given, const Tensor& weight_given, const Tensor& style_given,
    const Tensor& bias, const optional<Tensor>& fir, double clamp, std::array<bool, 5> needed) {
  check(x_given, weight_given, style_given);
  const Tensor whole = grad_given.contiguous(), x = x_given.contiguous(), weight = weight_given.contiguous();
  const Tensor style = style_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), colours = weight.size(0), area = x.size(2) * x.size(3);
  TORCH_CHECK(whole.dim() == 4 && whole.size(0) == batch && whole.size(1) == colours && whole.size(2) == x.size(2) &&
                  whole.size(3) == x.size(3),
              "to_rgb_backward: grad ", whole.sizes(), " does not fit x ", x.sizes());
  Tensor grad = whole;  // of what was clamped
  if (clamp >= 0) {
    grad = to_rgb(x, weight, style, bias, c10::nullopt, c10::nullopt, clamp);
    const float* const from = whole.const_data_ptr<float>();
    float* const to = grad.mutable_data_ptr<float>();
    for (int64_t n = 0; n < grad.numel(); n++) to[n] = std::abs(to[n]) < static_cast<float>(clamp) ? from[n] : 0.f;
  }
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options()) : none;
  Tensor grad_weight = needed[1] ? at::empty(weight.sizes(), x.options()) : none;
  Tensor grad_style = needed[2] ? at::empty(style.sizes(), x.options()) : none;
  const float* const in = x.const_data_ptr<float>();
  const float* const g = grad.const_data_ptr<float>();
  const float* const w = weight.const_data_ptr<float>();
  const float* const s = style.const_data_ptr<float>();
  float* const out = needed[0] ? grad_x.mutable_data_ptr<float>() : nullptr;
  float* const slopes = needed[2] ? grad_style.mutable_data_ptr<float>() : nullptr;
  const bool dots = needed[1] || needed[2];
  std::vector<float> met(needed[1] ? batch * inputs * colours : 0);  // <x, grad> for each pair of channels
  at::parallel_for(0, batch * inputs, std::max<int64_t>(1, GRAIN / (area * colours + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / inputs, i = n % inputs;
      const float* const line = in + n * area;
      float total = 0;
      for (int64_t c = 0; c < colours; c++) {
        const float* const seen = g + (image * colours + c) * area;
        const float own = w[c * inputs + i], factor = own * s[n];
        if (out) {
          float* const to = out + n * area;
          if (c == 0)
            for (int64_t p = 0; p < area; p++) to[p] = factor * seen[p];
          else
            for (int64_t p = 0; p < area; p++) to[p] += factor * seen[p];
        }
        if (!dots) continue;
        vf parts[4] = {};
        int64_t p = 0;
        for (; p + 4 * VL <= area; p += 4 * VL)
          for (int64_t k = 0; k < 4; k++) parts[k] += load(line + p + k * VL) * load(seen + p + k * VL);
        for (; p + VL <= area; p += VL) parts[0] += load(line + p) * load(seen + p);
        float dot = sum((parts[0] + parts[1]) + (parts[2] + parts[3]));
        for (; p < area; p++) dot += line[p] * seen[p];
        total += own * dot;
        if (needed[1]) met[n * colours + c] = dot;
      }
      if (slopes) slopes[n] = total;
    }
  });
  if (needed[1]) {
    float* const to = grad_weight.mutable_data_ptr<float>();
    for (int64_t c = 0; c < colours; c++)
      for (int64_t i = 0; i < inputs; i++) {
        float total = 0;
        for (int64_t image = 0; image < batch; image++)
          total += s[image * inputs + i] * met[(image * inputs + i) * colours + c];
        to[c * inputs + i] = total;
      }
  }
  const Tensor grad_bias = needed[3] ? grad.sum({0, 2, 3}) : none;
  Tensor grad_skip = none;
  if (needed[4] && fir.has_value()) {
    // As in add_upsampled: the transposed filter, which keeps every second sample.
    const int64_t taps = fir->size(0), start = taps - 1 - ((taps - 1) / 2 + 1);
    const int64_t end = (x.size(2) / 2 - 1) * 2 + taps - x.size(2) - start;
    grad_skip = upfirdn2d(whole, at::flip(*fir, {0, 1}), 1, 2, start, end);
  }
  return {grad_x, grad_weight, grad_style, grad_bias, grad_skip};
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("to_rgb", &to_rgb);
  m.impl("to_rgb_backward", &to_rgb_backward);
}

}  // namespace wrangan
