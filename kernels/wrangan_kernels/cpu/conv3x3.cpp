// 3×3 convolutions by Winograd's F(4×4, 3×3) (Lavin and Gray 2016): a tile of 4×4 results takes 36
// products instead of 144. With d a tile of 6×6 pixels, g a kernel:
//     y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,  and for the kernel's gradient  dg = Gᵀ [(A dy Aᵀ) ⊙ (Bᵀ d B)] G.

#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/library.h>

#include "operators.h"
#include "planes.h"

namespace wrangan {
namespace {

inline void data_transform(const vf d[6], int step, vf t[], int out) {  // Bᵀ
  const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const vf a = d4 - 4.f * d2, b = d3 - 4.f * d1, c = d4 - d2, e = 2.f * (d3 - d1);
  t[0] = 4.f * d0 - 5.f * d2 + d4;
  t[out] = a + b;
  t[2 * out] = a - b;
  t[3 * out] = c + e;
  t[4 * out] = c - e;
  t[5 * out] = 4.f * d1 - 5.f * d3 + d5;
}

inline void result_transform(const vf m[6], int step, vf y[], int out) {  // Aᵀ
  const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const vf a = m1 + m2, b = m1 - m2, c = m3 + m4, d = m3 - m4;
  y[0] = m[0] + a + c;
  y[out] = b + 2.f * d;
  y[2 * out] = a + 4.f * c;
  y[3 * out] = b + 8.f * d + m[5 * step];
}

inline void gradient_transform(const vf y[4], int step, vf t[], int out) {  // A
  const vf y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
  const vf a = y0 + y2, b = y1 + y3, c = y0 + 4.f * y2, d = 2.f * y1 + 8.f * y3;
  t[0] = y0;
  t[out] = a + b;
  t[2 * out] = a - b;
  t[3 * out] = c + d;
  t[4 * out] = c - d;
  t[5 * out] = y3;
}

template <typename T>
inline void kernel_transform_of(const T g[3], int step, T t[], int out) {  // G
  const T g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const T a = (g0 + g2) * (-1.f / 6), b = g1 * (1.f / 6), c = g0 * (1.f / 24) + g2 * (1.f / 6), d = g1 * (1.f / 12);
  t[0] = g0 * 0.25f;
  t[out] = a - b;
  t[2 * out] = a + b;
  t[3 * out] = c + d;
  t[4 * out] = c - d;
  t[5 * out] = g2;
}

inline void kernel_gradient_of(const vf m[6], int step, vf g[], int out) {  // Gᵀ
  const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const vf a = (m1 + m2) * (1.f / 6), b = (m2 - m1) * (1.f / 6), c = m3 + m4, d = m3 - m4;
  g[0] = m[0] * 0.25f - a + c * (1.f / 24);
  g[out] = b + d * (1.f / 12);
  g[2 * out] = c * (1.f / 6) - a + m[5 * step];
}

// `turned`: with kernels turned by 180°, which gives the gradient in x.
template <bool turned>
struct Same {
  static constexpr int SLOTS = 36, KERNELS = 36;
  static int kernel_of(int slot) { return slot; }
  static int64_t data_area(const Grid& grid) { return int64_t(grid.height) * grid.width; }
  static int64_t result_area(const Grid& grid) { return data_area(grid); }

  static void write_data(const float* plane, const Grid& grid, int group, float scale, float* out, int64_t step) {
    vf d[6][6], t[6][6];
    read_group<6, true>(plane, grid, group, 1, d);
    for (int j = 0; j < 6; j++) data_transform(&d[0][j], 6, &t[0][j], 6);
    for (int i = 0; i < 6; i++) {
      vf v[6];
      data_transform(t[i], 1, v, 1);
      for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * step, v[j] * scale);
    }
  }
  
  static void write_gradient(const float* plane, const Grid& grid, int group, float scale, float* out,
                             int64_t step) {
    vf d[4][6], t[6][4];
    read_group<4, false>(plane, grid, group, 0, d);
    for (int j = 0; j < 4; j++) gradient_transform(&d[0][1 + j], 6, &t[0][j], 4);
    for (int i = 0; i < 6; i++) {
      vf v[6];
      gradient_transform(t[i], 1, v, 1);
      for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * step, v[j] * scale);
    }
  }
  
  static void write_result(const float* in, int64_t step, float scale, float* plane, const Grid& grid, int group) {
    vf t[4][6], y[4][4];
    for (int j = 0; j < 6; j++) {
      vf m[6], column[4];
      for (int i = 0; i < 6; i++) m[i] = load(in + (i * 6 + j) * step);
      result_transform(m, 1, column, 1);
      for (int i = 0; i < 4; i++) t[i][j] = column[i];
    }
    for (int i = 0; i < 4; i++) {
      result_transform(t[i], 1, y[i], 1);
      for (int j = 0; j < 4; j++) y[i][j] *= scale;
    }
    write_group(plane, grid, group, y);
  }

  static void kernel_transform(const float g[9][MR], float u[KERNELS][MR]) {
    float t[18][MR];
    const int first = turned ? 8 : 0, sign = turned ? -1 : 1;
    for (int j = 0; j < 3; j++)
      for (int m = 0; m < MR; m++) kernel_transform_of(&g[first + sign * j][m], sign * 3 * MR, &t[j][m], 3 * MR);
    for (int r = 0; r < 6; r++)
      for (int m = 0; m < MR; m++) kernel_transform_of(&t[r * 3][m], MR, &u[r * 6][m], MR);
  }

  static void kernel_gradient(const vf m[KERNELS], vf g[9]) {
    vf t[3][6];
    for (int j = 0; j < 6; j++) kernel_gradient_of(m + j, 6, &t[0][j], 6);
    for (int k = 0; k < 3; k++) kernel_gradient_of(t[k], 1, g + 3 * k, 1);
  }
};

Tensor direct(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
              const optional<Tensor>& scale_out, bool transposed) {
  const int64_t groups = weight.dim() == 5 ? x.size(0) : 1;
  const Tensor input = scaled(x, scale_in).reshape({-1, x.size(1) * groups, x.size(2), x.size(3)});
  const Tensor kernels = weight.reshape({-1, weight.size(-3), 3, 3});
  const Tensor y = transposed ? at::conv_transpose2d(input, kernels, {}, {1, 1}, {1, 1}, {0, 0}, groups)
                              : at::conv2d(input, kernels, {}, {1, 1}, {1, 1}, {1, 1}, groups);
  return scaled(y.reshape({x.size(0), -1, x.size(2), x.size(3)}), scale_out).contiguous();
}

}  // namespace

Tensor conv3x3(const Tensor& x_given, const Tensor& weight_given, const optional<Tensor>& scale_in,
               const optional<Tensor>& scale_out, bool transposed) {
  check(x_given, "x");
  check(weight_given, "weight");
  const Tensor x = x_given.contiguous(), weight = weight_given.contiguous();
  const bool per_image = weight.dim() == 5;
  const int64_t batch = x.size(0), inputs = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t outputs = weight.size(transposed ? -3 : -4);
  TORCH_CHECK(weight.size(transposed ? -4 : -3) == inputs && weight.size(-1) == 3 && weight.size(-2) == 3 &&
                  (!per_image || weight.size(0) == batch),
              "conv3x3: weight ", weight.sizes(), " does not fit x ", x.sizes());
  // By the pixels of one image, whatever the batch: an image must not depend on the others.
  const bool tiles = pays(height, width, 1, inputs * outputs);
  if (x.numel() > 0 && !tiles && !small(batch, height, width, false, transposed))
    return direct(x, weight, scale_in, scale_out, transposed);
  Tensor y = at::empty({batch, outputs, height, width}, x.options());
  if (y.numel() == 0) return y;
  if (inputs == 0) return y.zero_();
  if (!tiles) {
    const Meeting meeting(height, width, false);
    transposed ? gather(x, weight, scale_in, scale_out, meeting, y) : spread(x, weight, scale_in, scale_out, meeting, y);
    return y;
  }
  const Grid grid(height, width);
  if (transposed)
    convolve<Same<true>>(x, weight, scale_in, scale_out, true, grid, y);
  else
    convolve<Same<false>>(x, weight, scale_in, scale_out, false, grid, y);
  return y;
}

namespace {

Tensor direct_weight_grad(const Tensor& x, const Tensor& grad, const optional<Tensor>& scale_in,
                          const optional<Tensor>& scale_out, bool per_image) {
  const int64_t groups = per_image ? x.size(0) : 1, height = x.size(2), width = x.size(3);
  const Tensor input = scaled(x, scale_in).reshape({-1, x.size(1) * groups, height, width});
  const Tensor output = scaled(grad, scale_out).reshape({-1, grad.size(1) * groups, height, width});
  const Tensor like = at::empty({grad.size(1) * groups, x.size(1), 3, 3}, x.options());
  const Tensor found = std::get<1>(at::convolution_backward(output, input, like, c10::nullopt, {1, 1}, {1, 1}, {1, 1},
                                                            false, {0, 0}, groups, {false, true, false}));
  return per_image ? found.reshape({x.size(0), grad.size(1), x.size(1), 3, 3}) : found;
}

}  // namespace

Tensor conv3x3_weight_grad(const Tensor& x_given, const Tensor& grad_given, const optional<Tensor>& scale_in,
                           const optional<Tensor>& scale_out, bool per_image) {
  check(x_given, "x");
  check(grad_given, "grad");
  const Tensor x = x_given.contiguous(), grad = grad_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t outputs = grad.size(1);
  TORCH_CHECK(grad.size(0) == batch && grad.size(2) == height && grad.size(3) == width,
              "conv3x3_weight_grad: grad ", grad.sizes(), " does not fit x ", x.sizes());
  // Here the transform of the kernels is of sums, and of all inputs and outputs.
  const bool tiles = pays(height, width, per_image ? 1 : batch, INT64_MAX);
  if (x.numel() > 0 && !tiles && !matches(height, width))
    return direct_weight_grad(x, grad, scale_in, scale_out, per_image);
  Tensor result = per_image ? at::empty({batch, outputs, inputs, 3, 3}, x.options())
                            : at::empty({outputs, inputs, 3, 3}, x.options());
  if (result.numel() == 0) return result;
  if (x.numel() > 0 && !tiles) {
    match(x, grad, scale_in, scale_out, per_image, Meeting(height, width, false), result);
    return result;
  }
  correlate<Same<false>>(x, grad, scale_in, scale_out, per_image, Grid(height, width), result);
  return result;
}

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_weight_grad", &conv3x3_weight_grad);
}

}  // namespace wrangan
