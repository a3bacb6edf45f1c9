// 3×3 convolutions by Winograd's F(4×4, 3×3) (Lavin and Gray 2016): a tile of 4×4 results takes 36
// products instead of 144. With d a tile of 6×6 pixels, g a kernel:
//     y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,  and for the kernel's gradient  dg = Gᵀ [(A dy Aᵀ) ⊙ (Bᵀ d B)] G.
// Sums over channels are matrix products, one for each of the 36 positions.
//
// A block of tiles goes through all three steps in one thread, while it is in the cache. Every result
// is a sum in an order of its own: batch, threads and blocks do not change it.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include "products.h"
#include "tiles.h"

namespace wrangan {
namespace {

using at::Tensor;
using c10::optional;
constexpr int POINTS = 6, PRODUCTS = 36;

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
inline void kernel_transform(const T g[3], int step, T t[], int out) {  // G
  const T g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const T a = (g0 + g2) * (-1.f / 6), b = g1 * (1.f / 6), c = g0 * (1.f / 24) + g2 * (1.f / 6), d = g1 * (1.f / 12);
  t[0] = g0 * 0.25f;
  t[out] = a - b;
  t[2 * out] = a + b;
  t[3 * out] = c + d;
  t[4 * out] = c - d;
  t[5 * out] = g2;
}

inline void kernel_gradient(const vf m[6], int step, vf g[], int out) {  // Gᵀ
  const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const vf a = (m1 + m2) * (1.f / 6), b = (m2 - m1) * (1.f / 6), c = m3 + m4, d = m3 - m4;
  g[0] = m[0] * 0.25f - a + c * (1.f / 24);
  g[out] = b + d * (1.f / 12);
  g[2 * out] = c * (1.f / 6) - a + m[5 * step];
}

inline void write_data(const float* plane, const Grid& grid, int group, float scale, float* out, int64_t step) {
  vf d[6][6], t[6][6];
  read_group<6, true>(plane, grid, group, 1, d);
  for (int j = 0; j < 6; j++) data_transform(&d[0][j], 6, &t[0][j], 6);
  for (int i = 0; i < 6; i++) {
    vf v[6];
    data_transform(t[i], 1, v, 1);
    for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * step, v[j] * scale);
  }
}

inline void write_gradient(const float* plane, const Grid& grid, int group, float scale, float* out,
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

inline void write_result(const float* in, int64_t step, float scale, float* plane, const Grid& grid, int group) {
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

// Kernels of one image in the transformed domain: [36][outputs / MR][inputs][MR], `step` floats a product.
struct Packed {
  int64_t outputs, inputs, step, size;
  Packed(int64_t o, int64_t i) : outputs(o), inputs(i) {
    step = rounded(o, MR) * i + 16;  // not a power of two: the 36 streams would share cache lines
    size = step * PRODUCTS;
  }
};

// weight (outputs, inputs, 3, 3), or, transposed, (inputs, outputs, 3, 3) turned by 180°.
void pack(const float* weight, bool transposed, const Packed& packed, float* out, int64_t panel) {
  const int64_t row = (transposed ? packed.outputs : packed.inputs) * 9;
  for (int64_t i = 0; i < packed.inputs; i++) {
    float g[9][MR], t[18][MR], u[36][MR];
    for (int m = 0; m < MR; m++) {
      const int64_t o = panel * MR + m;
      const float* source = weight + (transposed ? i * row + o * 9 : o * row + i * 9);
      for (int k = 0; k < 9; k++) g[k][m] = o < packed.outputs ? source[transposed ? 8 - k : k] : 0.f;
    }
    for (int j = 0; j < 3; j++)
      for (int m = 0; m < MR; m++) kernel_transform(&g[j][m], 3 * MR, &t[j][m], 3 * MR);
    for (int r = 0; r < 6; r++)
      for (int m = 0; m < MR; m++) kernel_transform(&t[r * 3][m], MR, &u[r * 6][m], MR);
    float* place = out + (panel * packed.inputs + i) * MR;
    for (int p = 0; p < PRODUCTS; p++) std::memcpy(place + p * packed.step, u[p], sizeof(u[p]));
  }
}

// How many groups of tiles go through together: few for the cache, many where the kernels are large.
int64_t block_groups(int64_t inputs, int64_t outputs, int64_t groups) {
  const int64_t fitting = (3 << 20) / (PRODUCTS * 4 * VL * (inputs + outputs));
  const int64_t wanted = std::max<int64_t>(fitting, 4) / NV * NV;
  const int64_t threads = at::get_num_threads();
  const int64_t share = rounded((groups + threads - 1) / threads, NV);
  return std::max<int64_t>(NV, std::min(wanted, share));
}

void check(const Tensor& x, const char* name) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() >= 4, name, ": expected float32 of 4 dimensions");
}

// One number for each channel of each image; null where there is none.
const float* numbers(const optional<Tensor>& given, int64_t batch, int64_t channels, Tensor& holder) {
  if (!given.has_value()) return nullptr;
  TORCH_CHECK(given->dim() == 2 && given->size(0) == batch && given->size(1) == channels,
              "conv3x3: scale of shape ", given->sizes(), ", expected (", batch, ", ", channels, ")");
  TORCH_CHECK(given->scalar_type() == at::kFloat, "conv3x3: the scale must be float32");
  holder = given->contiguous();
  return holder.const_data_ptr<float>();
}

Tensor scaled(const Tensor& x, const optional<Tensor>& scale) {
  return scale.has_value() ? at::mul(x, scale->unsqueeze(-1).unsqueeze(-1)) : x;
}

// Measured (docs/kernels.md): the transforms of the kernels must spread over enough pixels, and a group of
// tiles must not be half empty. `images`: how many have these kernels in common.
bool pays(int64_t height, int64_t width, int64_t images, int64_t kernels) {
  if (std::min(height, width) < 16) return false;
  const int64_t pixels = height * width * images;
  return pixels >= 1024 || (pixels >= 256 && kernels <= 40000);
}

Tensor direct(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
              const optional<Tensor>& scale_out, bool transposed) {
  const int64_t groups = weight.dim() == 5 ? x.size(0) : 1;
  const Tensor input = scaled(x, scale_in).reshape({-1, x.size(1) * groups, x.size(2), x.size(3)});
  const Tensor kernels = weight.reshape({-1, weight.size(-3), 3, 3});
  const Tensor y = transposed ? at::conv_transpose2d(input, kernels, {}, {1, 1}, {1, 1}, {0, 0}, groups)
                              : at::conv2d(input, kernels, {}, {1, 1}, {1, 1}, {1, 1}, groups);
  return scaled(y.reshape({x.size(0), -1, x.size(2), x.size(3)}), scale_out).contiguous();
}

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
  if (x.numel() > 0 && !pays(height, width, per_image ? 1 : batch, inputs * outputs))
    return direct(x, weight, scale_in, scale_out, transposed);
  Tensor held_in, held_out;
  const float* const factors_in = numbers(scale_in, batch, inputs, held_in);
  const float* const factors_out = numbers(scale_out, batch, outputs, held_out);
  Tensor y = at::empty({batch, outputs, height, width}, x.options());
  if (y.numel() == 0) return y;
  if (inputs == 0) return y.zero_();
  const Grid grid(height, width);
  const Packed packed(outputs, inputs);
  const int64_t panels = rounded(outputs, MR) / MR, sets = per_image ? batch : 1;
  static thread_local Scratch kernels;
  float* const u = kernels.get(packed.size * sets);
  const float* const w = weight.const_data_ptr<float>();
  at::parallel_for(0, sets * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++)
      pack(w + n / panels * outputs * inputs * 9, transposed, packed, u + n / panels * packed.size, n % panels);
  });
  // With kernels in common a block may reach over several images.
  const int64_t row = per_image ? grid.groups : grid.groups * batch;
  const int64_t most = block_groups(inputs, outputs, row * sets);
  const int64_t blocks = (row + most - 1) / most;
  const float* const in = x.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  const int64_t area = height * width;
  at::parallel_for(0, sets * blocks, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    const int64_t padded = panels * MR, tiles = most * VL;
    const int64_t v_step = most / NV * inputs * NR + 16, m_step = padded * tiles + 16;
    float* const v = scratch.get(PRODUCTS * (v_step + m_step));
    float* const m = v + PRODUCTS * v_step;
    for (int64_t n = begin; n < end; n++) {
      const int64_t set = n / blocks, first = n % blocks * most, count = std::min(most, row - first);
      const float* const kernel = u + set * packed.size;
      for (int64_t g = 0; g < count; g++) {
        const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
        for (int64_t i = 0; i < inputs; i++)
          write_data(in + (image * inputs + i) * area, grid, group, factors_in ? factors_in[image * inputs + i] : 1.f,
                     v + (g / NV * inputs + i) * NR + g % NV * VL, v_step);
      }
      for (int p = 0; p < PRODUCTS; p++)
        for (int64_t o = 0; o < panels; o++)
          for (int64_t g = 0; g < count; g += NV) {
            const float* const a = kernel + p * packed.step + o * inputs * MR;
            const float* const b = v + p * v_step + g * VL * inputs;
            float* const c = m + p * m_step + o * MR * tiles + g * VL;
            if (g + 1 < count)
              product<2>(a, b, inputs, c, tiles);
            else
              product<1>(a, b, inputs, c, tiles);
          }
      for (int64_t g = 0; g < count; g++) {
        const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
        for (int64_t o = 0; o < outputs; o++)
          write_result(m + o * tiles + g * VL, m_step, factors_out ? factors_out[image * outputs + o] : 1.f,
                       out + (image * outputs + o) * area, grid, group);
      }
    }
  });
  return y;
}

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

Tensor conv3x3_weight_grad(const Tensor& x_given, const Tensor& grad_given, const optional<Tensor>& scale_in,
                           const optional<Tensor>& scale_out, bool per_image) {
  check(x_given, "x");
  check(grad_given, "grad");
  const Tensor x = x_given.contiguous(), grad = grad_given.contiguous();
  const int64_t batch = x.size(0), inputs = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t outputs = grad.size(1);
  TORCH_CHECK(grad.size(0) == batch && grad.size(2) == height && grad.size(3) == width,
              "conv3x3_weight_grad: grad ", grad.sizes(), " does not fit x ", x.sizes());
  const int64_t sets = per_image ? batch : 1;
  // Here the kernels' transform is of sums, and comes once more for each chunk.
  if (x.numel() > 0 && !pays(height, width, per_image ? 1 : batch, INT64_MAX))
    return direct_weight_grad(x, grad, scale_in, scale_out, per_image);
  Tensor held_in, held_out;
  const float* const factors_in = numbers(scale_in, batch, inputs, held_in);
  const float* const factors_out = numbers(scale_out, batch, outputs, held_out);
  Tensor result = per_image ? at::empty({batch, outputs, inputs, 3, 3}, x.options())
                            : at::empty({outputs, inputs, 3, 3}, x.options());
  if (result.numel() == 0) return result;
  const Grid grid(height, width);
  const int64_t row = grid.groups * (per_image ? 1 : batch), area = height * width;
  const int64_t ins = rounded(inputs, MI), outs = rounded(outputs, MO);
  const int64_t fitting = (12 << 20) / (PRODUCTS * 4 * VL * (ins + outs));
  const int64_t most = std::min(row, std::max<int64_t>(fitting, 16)), tiles = most * VL + 16;
  // Odd steps in units of cache lines, here too.
  const int64_t v_step = ins * tiles + 16, d_step = outs * tiles + 16, c_step = outs * ins + 16;
  static thread_local Scratch scratch;
  float* const v = scratch.get(PRODUCTS * (v_step + d_step + c_step));
  float* const d = v + PRODUCTS * v_step;
  float* const c = d + PRODUCTS * d_step;
  const float* const in = x.const_data_ptr<float>();
  const float* const g_in = grad.const_data_ptr<float>();
  float* const out = result.mutable_data_ptr<float>();
  for (int64_t set = 0; set < sets; set++) {
    for (int64_t first = 0; first < row; first += most) {
      const int64_t count = std::min(most, row - first);
      at::parallel_for(0, ins + outs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const bool data = n < ins;
          const int64_t channel = data ? n : n - ins, channels = data ? inputs : outputs;
          float* const place = (data ? v : d) + channel * tiles;
          const int64_t step = data ? v_step : d_step;
          for (int64_t g = 0; g < count; g++) {
            const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
            if (channel >= channels) {
              for (int p = 0; p < PRODUCTS; p++) store(place + g * VL + p * step, vf{});
              continue;
            }
            const int64_t plane = image * channels + channel;
            const float* const factors = data ? factors_in : factors_out;
            const float factor = factors ? factors[plane] : 1.f;
            if (data)
              write_data(in + plane * area, grid, group, factor, place + g * VL, step);
            else
              write_gradient(g_in + plane * area, grid, group, factor, place + g * VL, step);
          }
        }
      });
      // One sum after the other for each chunk: the order does not depend on the threads.
      const int64_t parts = std::max<int64_t>(1, outs / 64);
      at::parallel_for(0, PRODUCTS * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const int64_t p = n / parts, part = n % parts;
          const int64_t from = outs / MO * part / parts * MO, to = outs / MO * (part + 1) / parts * MO;
          float* const sums = c + p * c_step;
          if (first == 0) std::memset(sums + from * ins, 0, (to - from) * ins * sizeof(float));
          for (int64_t i = 0; i < ins; i += MI)
            for (int64_t o = from; o < to; o += MO)
              inner_products(d + p * d_step + o * tiles, tiles, v + p * v_step + i * tiles, tiles, count * VL,
                             sums + o * ins + i, ins);
        }
      });
    }
    at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++)
        for (int64_t i = 0; i < inputs; i += VL) {
          vf t[3][6], g[3][3];
          for (int j = 0; j < 6; j++) {
            vf m[6], column[3];
            for (int k = 0; k < 6; k++) m[k] = load(c + (k * 6 + j) * c_step + o * ins + i);
            kernel_gradient(m, 1, column, 1);
            for (int k = 0; k < 3; k++) t[k][j] = column[k];
          }
          for (int k = 0; k < 3; k++) kernel_gradient(t[k], 1, g[k], 1);
          float* const place = out + ((set * outputs + o) * inputs + i) * 9;
          const int64_t many = std::min<int64_t>(VL, inputs - i);
          for (int64_t l = 0; l < many; l++)
            for (int k = 0; k < 9; k++) place[l * 9 + k] = g[k / 3][k % 3][l];
        }
    });
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_weight_grad", &conv3x3_weight_grad);
}

}  // namespace wrangan
