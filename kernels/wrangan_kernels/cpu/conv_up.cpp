// 3×3 transposed convolutions of stride 2, and their gradients (which are the stride-2 convolutions).
//
// Along one axis, even results are y[2n] = w0 x[n] + w2 x[n-1], odd ones y[2n+1] = w1 x[n]. Four of the even
// ones take 5 products by Winograd's F(4, 2) at the points 0, 1, -1, 2, ∞, four of the odd ones 4. On both
// axes a tile of 4×4 x has 81 products instead of 144: slots ee 5×5, eo 5×4, oe 4×5, oo 4×4, with 25, 5, 5
// and 1 kernels. The last even row and column (2H, 2W) are outside of the tiles, and left to PyTorch.

#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "operators.h"
#include "planes.h"
#include "up_scheme.h"

namespace wrangan {
namespace {

// Where the channels are few, PyTorch's stride-2 convolution and its kernels' gradient are as quick (docs/kernels.md).
constexpr int64_t MANY = 16384;

Tensor direct(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
              const optional<Tensor>& scale_out, bool transposed) {
  const int64_t groups = weight.dim() == 5 ? x.size(0) : 1;
  const Tensor input = scaled(x, scale_in).reshape({-1, x.size(1) * groups, x.size(2), x.size(3)});
  // The layout that both functions want: a convolution's inputs are the results of the transposed one.
  const Tensor kernels = weight.transpose(-4, -3).reshape({-1, weight.size(-4), 3, 3});
  constexpr int64_t sizes[3][2] = {{2, 2}, {0, 0}, {1, 1}};
  const at::IntArrayRef two(sizes[0]), none(sizes[1]), one(sizes[2]);
  const Tensor y = transposed ? at::conv2d(input, kernels, {}, two, none, one, groups)
                              : at::conv_transpose2d(input, kernels, {}, two, none, none, groups, one);
  return scaled(y.reshape({x.size(0), -1, y.size(2), y.size(3)}), scale_out).contiguous();
}

// (B or 1, O, I) · (B, I, n): one product an image, so that none feels the others.
Tensor rows_of(const Tensor& weight, const Tensor& x) { return at::matmul(weight, x); }

// The last row and column of the enlarged plane: y[2H][2j + k] = Σ w[2][k] x[H-1][j], and so for the column.
void write_border(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
                  const optional<Tensor>& scale_out, const Tensor& y) {
  const int64_t height = x.size(2), width = x.size(3);
  for (const bool row : {true, false}) {
    const int64_t side = row ? width : height;
    Tensor line = row ? x.select(2, height - 1) : x.select(3, width - 1);
    if (scale_in.has_value()) line = at::mul(line, scale_in->unsqueeze(-1));
    Tensor out = row ? y.select(2, 2 * height) : y.select(3, 2 * width);
    const Tensor kernels = row ? weight.select(-2, 2) : weight.select(-1, 2);
    Tensor sums = at::empty(out.sizes(), y.options()).zero_();
    for (int64_t k = 0; k < 3; k++)
      sums.slice(2, k, k + 2 * side - 1, 2).add_(rows_of(kernels.select(-1, k), line));
    out.copy_(scale_out.has_value() ? at::mul(sums, scale_out->unsqueeze(-1)) : sums);
  }
}

}  // namespace

Tensor conv3x3_up(const Tensor& x_given, const Tensor& weight_given, const optional<Tensor>& scale_in,
                  const optional<Tensor>& scale_out, bool transposed) {
  check(x_given, "x");
  check(weight_given, "weight");
  const Tensor x = x_given.contiguous(), weight = weight_given.contiguous();
  const bool per_image = weight.dim() == 5;
  const int64_t batch = x.size(0), inputs = x.size(1), outputs = weight.size(transposed ? -3 : -4);
  TORCH_CHECK(weight.size(transposed ? -4 : -3) == inputs && weight.size(-1) == 3 && weight.size(-2) == 3 &&
                  (!per_image || weight.size(0) == batch),
              "conv3x3_up: weight ", weight.sizes(), " does not fit x ", x.sizes());
  TORCH_CHECK(!transposed || (x.size(2) % 2 == 1 && x.size(3) % 2 == 1 && x.size(2) > 1 && x.size(3) > 1),
              "conv3x3_up: transposed, the sides of x must be odd, and more than 1, not ", x.sizes());
  const int64_t height = transposed ? x.size(2) / 2 : x.size(2), width = transposed ? x.size(3) / 2 : x.size(3);
  const bool empty = x.numel() == 0 || outputs == 0;
  // One image decides, as in conv3x3.
  const bool tiles = (!transposed || inputs * outputs >= MANY) && pays(height, width, 1, inputs * outputs);
  if (!empty && !tiles && small(batch, height, width, true, transposed)) {
    const Meeting meeting(height, width, true);
    if (transposed) {
      Tensor y = at::empty({batch, outputs, height, width}, x.options());
      gather(x, weight, scale_in, scale_out, meeting, y);
      return y;
    }
    Tensor y = at::empty({batch, outputs, 2 * height + 1, 2 * width + 1}, x.options());
    spread(x, weight, scale_in, scale_out, meeting, y);
    return y;
  }
  if (empty || !tiles) return direct(x, weight, scale_in, scale_out, transposed);
  const Grid grid(height, width);
  if (transposed) {
    Tensor y = at::empty({batch, outputs, height, width}, x.options());
    convolve<Down>(x, weight, scale_in, scale_out, true, grid, y);
    return y;
  }
  Tensor y = at::empty({batch, outputs, 2 * height + 1, 2 * width + 1}, x.options());
  convolve<Up>(x, weight, scale_in, scale_out, false, grid, y);
  write_border(x, weight, scale_in, scale_out, y);
  return y;
}

Tensor conv3x3_up_weight_grad(const Tensor& x_given, const Tensor& grad_given, const optional<Tensor>& scale_in,
                              const optional<Tensor>& scale_out, bool per_image) {
  check(x_given, "x");
  check(grad_given, "grad");
  const Tensor x = x_given.contiguous(), grad = grad_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t outputs = grad.size(1);
  TORCH_CHECK(grad.size(0) == batch && grad.size(2) == 2 * height + 1 && grad.size(3) == 2 * width + 1,
              "conv3x3_up_weight_grad: grad ", grad.sizes(), " does not fit x ", x.sizes());
  const bool empty = x.numel() == 0 || outputs == 0;
  const bool tiles = inputs * outputs >= MANY && height * width * (per_image ? 1 : batch) >= 4096 &&
                     pays(height, width, per_image ? 1 : batch, INT64_MAX);
  if (!empty && !tiles && matches(height, width)) {
    Tensor result = per_image ? at::empty({batch, outputs, inputs, 3, 3}, x.options())
                              : at::empty({outputs, inputs, 3, 3}, x.options());
    match(x, grad, scale_in, scale_out, per_image, Meeting(height, width, true), result);
    return result;
  }
  if (empty || !tiles) {
    // x is the gradient, and grad the input, of the stride-2 convolution with these kernels.
    const int64_t groups = per_image ? batch : 1;
    const Tensor small = scaled(x, scale_in).reshape({-1, inputs * groups, height, width});
    const Tensor large = scaled(grad, scale_out).reshape({-1, outputs * groups, grad.size(2), grad.size(3)});
    const Tensor like = at::empty({inputs * groups, outputs, 3, 3}, x.options());
    Tensor found = std::get<1>(at::convolution_backward(small, large, like, c10::nullopt, {2, 2}, {0, 0}, {1, 1},
                                                        false, {0, 0}, groups, {false, true, false}));
    if (per_image) found = found.reshape({batch, inputs, outputs, 3, 3});
    return found.transpose(-4, -3).contiguous();
  }
  Tensor result = per_image ? at::empty({batch, outputs, inputs, 3, 3}, x.options())
                            : at::empty({outputs, inputs, 3, 3}, x.options());
  correlate<Up>(x, grad, scale_in, scale_out, per_image, Grid(height, width), result);
  for (const bool row : {true, false}) {
    Tensor line = row ? x.select(2, height - 1) : x.select(3, width - 1);
    if (scale_in.has_value()) line = at::mul(line, scale_in->unsqueeze(-1));
    Tensor edge = row ? grad.select(2, 2 * height) : grad.select(3, 2 * width);
    if (scale_out.has_value()) edge = at::mul(edge, scale_out->unsqueeze(-1));
    for (int64_t k = 0; k < 3; k++) {
      // The corner belongs to the row.
      const int64_t count = (row ? width : height) - (!row && k == 2 ? 1 : 0);
      const Tensor part = edge.slice(2, k, k + 2 * count - 1, 2), other = line.slice(2, 0, count);
      Tensor sums = at::matmul(part, other.transpose(1, 2));
      if (!per_image) sums = sums.sum(0);
      (row ? result.select(-2, 2) : result.select(-1, 2)).select(-1, k).add_(sums);
    }
  }
  return result;
}

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("conv3x3_up", &conv3x3_up);
  m.impl("conv3x3_up_weight_grad", &conv3x3_up_weight_grad);
}

}  // namespace wrangan
