// A whole styled layer and its gradients, each as one operator: at small sizes the calls of its ten or twenty
// parts take as long as their work.
//     d = (Σ energy · style² + 1e-8)^(-1/2),  mid = d ⊙ conv(style ⊙ x),  y = activation(FIR(mid) + noise + bias)

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "operators.h"
#include "vectors.h"

namespace wrangan {
namespace {

constexpr float EPSILON = 1e-8f;
constexpr int64_t GRAIN = 1 << 15;  // numbers that are worth a thread

// energy (O, I) or (B, O, I), one row after the other.
struct Energies {
  const float* data;
  int64_t batch, outputs, inputs, stride;  // stride: from image to image
  Energies(const Tensor& energy, const Tensor& style)
      : data(energy.const_data_ptr<float>()), batch(style.size(0)), outputs(energy.size(-2)), inputs(energy.size(-1)),
        stride(energy.dim() == 3 ? outputs * inputs : 0) {}
  const float* row(int64_t image, int64_t output) const { return data + image * stride + output * inputs; }
};

Tensor demodulation(const Energies& energies, const float* style, const Tensor& like) {
  const Tensor result = at::empty({energies.batch, energies.outputs}, like.options());
  float* const out = result.mutable_data_ptr<float>();
  const int64_t inputs = energies.inputs;
  at::parallel_for(0, result.numel(), std::max<int64_t>(1, GRAIN / (inputs + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / energies.outputs;
      const float* const e = energies.row(image, n % energies.outputs);
      const float* const s = style + image * inputs;
      vf total{};
      int64_t i = 0;
      for (; i + VL <= inputs; i += VL) {
        const vf v = load(s + i);
        total += load(e + i) * v * v;
      }
      float rest = sum(total);
      for (; i < inputs; i++) rest += e[i] * s[i] * s[i];
      out[n] = 1.f / std::sqrt(rest + EPSILON);
    }
  });
  return result;
}

// Adds to the styles' gradient what comes by the demodulation: 2 s Σ_o energy · slope, slope (B, O) that of Σ energy s².
void add_style_gradient(const Energies& energies, const float* style, const float* slope, float* out) {
  const int64_t inputs = energies.inputs, blocks = (inputs + 4 * VL - 1) / (4 * VL);
  const int64_t grain = std::max<int64_t>(1, GRAIN / (4 * VL * energies.outputs));
  at::parallel_for(0, energies.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / blocks, first = n % blocks * 4 * VL, count = std::min<int64_t>(4 * VL, inputs - first);
      float total[4 * VL] = {};
      for (int64_t o = 0; o < energies.outputs; o++) {
        const float* const e = energies.row(image, o) + first;
        const float factor = slope[image * energies.outputs + o];
        if (count == 4 * VL)
          for (int64_t i = 0; i < 4 * VL; i++) total[i] += e[i] * factor;
        else
          for (int64_t i = 0; i < count; i++) total[i] += e[i] * factor;
      }
      for (int64_t i = 0; i < count; i++) {
        const int64_t place = image * inputs + first + i;
        out[place] += 2.f * style[place] * total[i];
      }
    }
  });
}

// slope ⊗ style²: (B, O, I), or summed over the batch where the weights are shared.
Tensor energy_gradient(const Energies& energies, const float* style, const float* slope, const Tensor& energy) {
  const Tensor result = at::empty(energy.sizes(), energy.options());
  float* const out = result.mutable_data_ptr<float>();
  const int64_t inputs = energies.inputs, outputs = energies.outputs, rows = inputs ? result.numel() / inputs : 0;
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / (inputs + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      float* const line = out + n * inputs;
      const int64_t first = energies.stride ? n / outputs : 0, last = energies.stride ? first + 1 : energies.batch;
      std::fill(line, line + inputs, 0.f);
      for (int64_t image = first; image < last; image++) {
        const float factor = slope[image * outputs + n % outputs];
        const float* const s = style + image * inputs;
        for (int64_t i = 0; i < inputs; i++) line[i] += factor * s[i] * s[i];
      }
    }
  });
  return result;
}

void check(const Tensor& x, const Tensor& weight, const Tensor& energy, const Tensor& style) {
  for (const Tensor* given : {&x, &weight, &energy, &style})
    TORCH_CHECK(given->scalar_type() == at::kFloat, "styled_conv: expected float32, not ", given->scalar_type());
  TORCH_CHECK(x.dim() == 4 && (weight.dim() == 4 || weight.dim() == 5) && energy.dim() == weight.dim() - 2 &&
                  energy.sizes() == weight.sizes().slice(0, weight.dim() - 2),
              "styled_conv: energy ", energy.sizes(), " does not fit weight ", weight.sizes());
  TORCH_CHECK(style.dim() == 2 && style.size(0) == x.size(0) && style.size(1) == x.size(1) &&
                  weight.size(-3) == x.size(1) && (weight.dim() == 4 || weight.size(0) == x.size(0)),
              "styled_conv: style ", style.sizes(), " or weight ", weight.sizes(), " does not fit x ", x.sizes());
}

std::tuple<Tensor, Tensor, Tensor> styled_conv(const Tensor& x, const Tensor& weight, const Tensor& energy_given,
                                               const Tensor& style_given, const optional<Tensor>& noise,
                                               const optional<Tensor>& strength, const Tensor& bias,
                                               const optional<Tensor>& fir, int64_t before, int64_t after, double slope,
                                               double gain, double clamp) {
  check(x, weight, energy_given, style_given);
  const Tensor energy = energy_given.contiguous(), style = style_given.contiguous();
  const Tensor demod = demodulation(Energies(energy, style), style.const_data_ptr<float>(), x);
  const Tensor mid = fir.has_value() ? conv3x3_up(x, weight, style, demod, false)
                                     : conv3x3(x, weight, style, demod, false);
  const Tensor y = fir_act(mid, fir, before, after, noise, strength, c10::nullopt, bias, slope, gain, clamp);
  return {y, mid, demod};
}

// needed: x, weight, energy, style, noise, strength, bias. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> styled_conv_backward(
    const Tensor& grad, const Tensor& y, const Tensor& mid, const Tensor& demod, const Tensor& x, const Tensor& weight,
    const Tensor& energy_given, const Tensor& style_given, const optional<Tensor>& noise,
    const optional<Tensor>& strength, const optional<Tensor>& fir, int64_t before, int64_t after, double slope,
    double gain, double clamp, std::array<bool, 7> needed) {
  check(x, weight, energy_given, style_given);
  const Tensor energy = energy_given.contiguous(), style = style_given.contiguous();
  auto [back, pre] =
      fir_act_backward(grad, y, fir, before, after, c10::nullopt, slope, gain, clamp, mid.size(2), mid.size(3));
  const auto convolve = fir.has_value() ? conv3x3_up : conv3x3;
  const auto correlate = fir.has_value() ? conv3x3_up_weight_grad : conv3x3_weight_grad;
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = none, grad_weight = none, grad_energy = none, grad_style = none;
  Tensor grad_noise = none, grad_strength = none, grad_bias = none;
  if (noise.has_value() && (needed[4] || needed[5])) {
    Tensor over = pre.sum({1}, true);
    if (noise->size(0) == 1) over = over.sum({0}, true);
    if (needed[4]) grad_noise = at::mul(over, *strength);
    if (needed[5]) grad_strength = at::mul(over, *noise).sum().reshape(strength->sizes());
  }
  if (needed[6]) grad_bias = pre.sum({0, 2, 3});
  const Tensor slopes = fir.has_value() ? back : pre;  // in mid
  back = pre = Tensor();  // at 256 px a plane too many is memory that is missed
  if (needed[3]) {
    grad_x = convolve(slopes, weight, demod, c10::nullopt, true);
    grad_style = plane_dot(x, grad_x);
    if (needed[0]) grad_x.mul_(style.unsqueeze(-1).unsqueeze(-1));
  } else if (needed[0]) {
    grad_x = convolve(slopes, weight, demod, style, true);
  }
  if (needed[1]) grad_weight = correlate(x, slopes, style, demod, weight.dim() == 5);
  if (needed[2] || needed[3]) {
    // d is a factor of mid: ∂/∂d = <slopes, mid> / d, and of T = Σ energy s² it is d³/2 times that, negative.
    Tensor slope_of_sum = plane_dot(slopes, mid);
    float* const t = slope_of_sum.mutable_data_ptr<float>();
    const float* const d = demod.const_data_ptr<float>();
    for (int64_t n = 0; n < slope_of_sum.numel(); n++) t[n] *= -.5f * d[n] * d[n];
    const Energies energies(energy, style);
    const float* const s = style.const_data_ptr<float>();
    if (needed[3]) add_style_gradient(energies, s, t, grad_style.mutable_data_ptr<float>());
    if (needed[2]) grad_energy = energy_gradient(energies, s, t, energy);
  }
  return {needed[0] ? grad_x : none, grad_weight, grad_energy, grad_style, grad_noise, grad_strength, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("styled_conv", &styled_conv);
  m.impl("styled_conv_backward", &styled_conv_backward);
}

}  // namespace wrangan
