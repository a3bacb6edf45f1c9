// The weights of each image, scale · (μ + σ⊙ε) · style, demodulated (StyleGAN2, eq. 1–3), and their
// gradients. A block takes one row of weights (one image, one output channel) at a time, holds it in
// shared memory where it fits, and sums it in an order that does not change from run to run.
#pragma once

#include "common.cuh"

#include <cmath>

namespace wrangan {

constexpr float DEMODULATION_EPSILON = 1e-8f;
constexpr int FOLD = 32;

// The types of ε are told apart when it is read: all threads take the same way.
template <int N>
WRANGAN_HD void load_kind(const void* from, Kind kind, int64_t offset, float (&v)[N]) {
  if (kind == Kind::float32) {
    load(static_cast<const float*>(from) + offset, v);
  } else if (kind == Kind::float16) {
    load(static_cast<const c10::Half*>(from) + offset, v);
  } else {
    load(static_cast<const c10::BFloat16*>(from) + offset, v);
  }
}

template <int N>
WRANGAN_HD void store_kind(void* to, Kind kind, int64_t offset, const float (&v)[N]) {
  if (kind == Kind::float32) {
    store(static_cast<float*>(to) + offset, v);
  } else if (kind == Kind::float16) {
    store(static_cast<c10::Half*>(to) + offset, v);
  } else {
    store(static_cast<c10::BFloat16*>(to) + offset, v);
  }
}

// Sum over a block, in three steps with barriers between them: each thread leaves its part, 32
// threads fold the parts, each thread adds the 32.
struct BlockSum {
  float parts[THREADS], folded[FOLD];

  WRANGAN_HD void fold(int thread) {
    if (thread >= FOLD) return;
    float total = 0;
    for (int i = thread; i < THREADS; i += FOLD) total += parts[i];
    folded[thread] = total;
  }
  WRANGAN_HD float total() const {
    float sum = 0;
    WRANGAN_UNROLL
    for (int i = 0; i < FOLD; ++i) sum += folded[i];
    return sum;
  }
};

// μ, σ (O, I, k, k); ε the same, or with a leading batch axis; style (B, I).
struct WeightTerms {
  const float* mu;
  const float* std;  // null: θ = μ
  const void* epsilon;
  const float* style;
  Kind epsilon_kind;
  bool epsilon_per_image;
  int batch, outputs, inputs, area;  // area: k²
  float scale;
  bool packed, staged;

  WRANGAN_HD int length() const { return inputs * area; }
  WRANGAN_HD int64_t row(int output) const { return static_cast<int64_t>(output) * length(); }
  WRANGAN_HD int64_t epsilon_row(int image, int output) const {
    return row(epsilon_per_image ? image * outputs + output : output);
  }
  int rows() const { return batch * outputs; }

  // scale · θ at `place` of a row.
  template <int N>
  WRANGAN_HD void theta(int image, int output, int place, float (&v)[N]) const {
    load(mu + row(output) + place, v);
    if (std) {
      float sigma[N], offset[N];
      load(std + row(output) + place, sigma);
      load_kind(epsilon, epsilon_kind, epsilon_row(image, output) + place, offset);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) v[i] += sigma[i] * offset[i];
    }
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) v[i] *= scale;
  }
  // The style of each number from `place` on. AREA: k², or 0 where it is known at run time only.
  template <int AREA, int N>
  WRANGAN_HD void styles(int image, int place, float (&v)[N]) const {
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) {
      v[i] = read(style + static_cast<int64_t>(image) * inputs + (place + i) / (AREA ? AREA : area));
    }
  }
};

template <typename T, int AREA>
struct ModulatedWeight {
  static constexpr int PHASES = 3;
  static constexpr int PACK = 4;

  struct Arguments {
    WeightTerms terms;
    T* weight;     // (B, O, I, k, k)
    float* demod;  // (B, O); null: not demodulated

    int blocks() const { return terms.rows(); }
    int shared_bytes() const {
      return static_cast<int>(sizeof(BlockSum) + (terms.staged ? terms.length() * sizeof(float) : 0));
    }
  };
  static bool fits(const WeightTerms& terms) {
    return sizeof(BlockSum) + static_cast<int64_t>(terms.length()) * sizeof(float) <= SHARED_BYTES;
  }

  const Arguments& a;
  BlockSum& sum;
  float* held;
  int image, output;

  WRANGAN_HD ModulatedWeight(const Arguments& arguments, int block, unsigned char* shared)
      : a(arguments),
        sum(*reinterpret_cast<BlockSum*>(shared)),
        held(reinterpret_cast<float*>(shared + sizeof(BlockSum))) {
    // Images of one output channel are neighbours: they read the same μ and σ, from the L2 cache.
    output = block / a.terms.batch;
    image = block - output * a.terms.batch;
  }
  WRANGAN_HD int rounds() const { return 1; }

  template <int P>
  WRANGAN_HD void phase(int thread, int /*round*/) {
    if constexpr (P == 1) {
      if (a.demod) sum.fold(thread);
    } else if (a.terms.packed) {
      P == 0 ? make<PACK>(thread) : finish<PACK>(thread);
    } else {
      P == 0 ? make<1>(thread) : finish<1>(thread);
    }
  }

 private:
  template <int N>
  WRANGAN_HD void values(int place, float (&v)[N]) const {
    float s[N];
    a.terms.theta(image, output, place, v);
    a.terms.template styles<AREA>(image, place, s);
    WRANGAN_UNROLL
    for (int i = 0; i < N; ++i) v[i] *= s[i];
  }
  template <int N>
  WRANGAN_HD void make(int thread) {
    float total = 0;
    const int length = a.terms.length();
    if (a.terms.staged || a.demod) {
      WRANGAN_UNROLL_4
      for (int place = thread * N; place < length; place += THREADS * N) {
        float v[N];
        values(place, v);
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) total += v[i] * v[i];
        if (a.terms.staged) store(held + place, v);
      }
    }
    sum.parts[thread] = total;
  }
  template <int N>
  WRANGAN_HD void finish(int thread) {
    const float demod = a.demod ? 1.0f / std::sqrt(sum.total() + DEMODULATION_EPSILON) : 1.0f;
    const int64_t row = a.terms.row(image * a.terms.outputs + output);
    const int length = a.terms.length();
    for (int place = thread * N; place < length; place += THREADS * N) {
      float v[N];
      if (a.terms.staged) {
        load(held + place, v);
      } else {
        values(place, v);
      }
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) v[i] *= demod;
      store(a.weight + row + place, v);
    }
    if (a.demod && thread == 0) a.demod[image * a.terms.outputs + output] = demod;
  }
};

// With u = scale·θ·style, d = (Σu² + 1e-8)^(-1/2) and G the gradient of u·d:
// ∂u = d·G − d³·u·Σ(u·G);  ∂θ = scale·style·∂u;  ∂style = Σ scale·θ·∂u.
//
// A block has `group` rows of one image; or, where a gradient is summed over the batch (μ, σ, an ε
// that all images share), one row of every image, one after the other, and adds them up itself.
template <typename T, int AREA>
struct ModulatedWeightGrad {
  static constexpr int PHASES = 4;
  static constexpr int PACK = 4;

  struct Arguments {
    WeightTerms terms;
    const T* grad;       // (B, O, I, k, k)
    const float* demod;  // (B, O); null: not demodulated
    // Null: not wanted. The last is (rows of a block's turns, B, I), to be summed over the first axis.
    float *grad_mu, *grad_std;
    void* grad_epsilon;  // of ε's type, but float32 where it is summed over the batch
    float* style_parts;
    bool over_batch;
    int group;

    int groups() const { return over_batch ? terms.outputs : ceil_div(terms.outputs, group); }
    int blocks() const { return over_batch ? terms.outputs : groups() * terms.batch; }
    int shared_bytes() const {
      const int64_t held = terms.staged ? 2 * static_cast<int64_t>(terms.length()) : 0;
      return static_cast<int>(sizeof(BlockSum) + (held + terms.inputs) * sizeof(float));
    }
  };
  static bool fits(const WeightTerms& terms) {
    return sizeof(BlockSum) + (2 * static_cast<int64_t>(terms.length()) + terms.inputs) * sizeof(float) <=
           SHARED_BYTES;
  }

  const Arguments& a;
  BlockSum& sum;
  float *held_theta, *held_grad, *channel;
  int first_image, first_output, turns;

  WRANGAN_HD ModulatedWeightGrad(const Arguments& arguments, int block, unsigned char* shared)
      : a(arguments),
        sum(*reinterpret_cast<BlockSum*>(shared)),
        held_theta(reinterpret_cast<float*>(shared + sizeof(BlockSum))) {
    held_grad = held_theta + (a.terms.staged ? a.terms.length() : 0);
    channel = held_grad + (a.terms.staged ? a.terms.length() : 0);
    first_image = a.over_batch ? 0 : block % a.terms.batch;
    first_output = a.over_batch ? block : block / a.terms.batch * a.group;
    const int left = a.terms.outputs - first_output;
    turns = a.over_batch ? a.terms.batch : (left < a.group ? left : a.group);
  }
  WRANGAN_HD int rounds() const { return turns; }
  WRANGAN_HD int image(int round) const { return first_image + (a.over_batch ? round : 0); }
  WRANGAN_HD int output(int round) const { return first_output + (a.over_batch ? 0 : round); }

  template <int P>
  WRANGAN_HD void phase(int thread, int round) {
    if constexpr (P == 1) {
      if (a.demod) sum.fold(thread);
    } else if constexpr (P == 3) {
      if (a.style_parts) sum_styles(thread, round);
    } else if (a.terms.packed) {
      P == 0 ? gather<PACK>(thread, round) : spread<PACK>(thread, round);
    } else {
      P == 0 ? gather<1>(thread, round) : spread<1>(thread, round);
    }
  }

 private:
  WRANGAN_HD int64_t row_of(int round) const {
    return a.terms.row(image(round) * a.terms.outputs + output(round));
  }
  // Σ(u·G) of the row; θ and G are kept.
  template <int N>
  WRANGAN_HD void gather(int thread, int round) {
    float total = 0;
    const int length = a.terms.length();
    if (a.terms.staged || a.demod) {
      WRANGAN_UNROLL_4
      for (int place = thread * N; place < length; place += THREADS * N) {
        float theta[N], s[N], g[N];
        a.terms.theta(image(round), output(round), place, theta);
        a.terms.template styles<AREA>(image(round), place, s);
        load(a.grad + row_of(round) + place, g);
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) total += theta[i] * s[i] * g[i];
        if (a.terms.staged) {
          store(held_theta + place, theta);
          store(held_grad + place, g);
        }
      }
    }
    sum.parts[thread] = total;
  }
  // ∂u from what one thread knows of the row.
  struct Row {
    float d, pull;
  };
  WRANGAN_HD Row row_numbers(int round) const {
    if (!a.demod) return {1.0f, 0.0f};
    const float d = read(a.demod + image(round) * a.terms.outputs + output(round));
    return {d, d * d * d * sum.total()};
  }
  template <int N>
  WRANGAN_HD void theta_and_grad(int round, int place, float (&theta)[N], float (&g)[N]) const {
    if (a.terms.staged) {
      load(held_theta + place, theta);
      load(held_grad + place, g);
    } else {
      a.terms.theta(image(round), output(round), place, theta);
      load(a.grad + row_of(round) + place, g);
    }
  }
  template <int N>
  WRANGAN_HD static void add_or_set(float* to, bool add, float (&v)[N]) {
    if (add) {
      float before[N];
      load(to, before);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) v[i] += before[i];
    }
    store(to, v);
  }
  // The gradients that have a number for each weight.
  template <int N>
  WRANGAN_HD void spread(int thread, int round) {
    const Row row = row_numbers(round);
    const int length = a.terms.length();
    const bool add = a.over_batch && round > 0;
    for (int place = thread * N; place < length; place += THREADS * N) {
      float theta[N], g[N], s[N], result[N];
      theta_and_grad(round, place, theta, g);
      a.terms.template styles<AREA>(image(round), place, s);
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) g[i] = row.d * g[i] - row.pull * theta[i] * s[i];
      if (a.terms.staged) {
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) result[i] = g[i] * theta[i];
        store(held_grad + place, result);
      }
      WRANGAN_UNROLL
      for (int i = 0; i < N; ++i) g[i] *= a.terms.scale * s[i];
      const int64_t shared_place = a.terms.row(output(round)) + place;
      const int64_t epsilon_place = a.terms.epsilon_row(image(round), output(round)) + place;
      if (a.grad_mu) {
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) result[i] = g[i];
        add_or_set(a.grad_mu + shared_place, add, result);
      }
      if (a.grad_std) {
        load_kind(a.terms.epsilon, a.terms.epsilon_kind, epsilon_place, result);
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) result[i] *= g[i];
        add_or_set(a.grad_std + shared_place, add, result);
      }
      if (a.grad_epsilon) {
        load(a.terms.std + shared_place, result);
        WRANGAN_UNROLL
        for (int i = 0; i < N; ++i) result[i] *= g[i];
        if (a.terms.epsilon_per_image) {
          store_kind(a.grad_epsilon, a.terms.epsilon_kind, epsilon_place, result);
        } else {
          add_or_set(static_cast<float*>(a.grad_epsilon) + epsilon_place, add, result);
        }
      }
    }
  }
  // Each thread has some input channels; what the block's rows give to an image is added up here.
  WRANGAN_HD void sum_styles(int thread, int round) {
    const int area = AREA ? AREA : a.terms.area;
    const bool begins = a.over_batch || round == 0, ends = a.over_batch || round == turns - 1;
    const int group = a.over_batch ? first_output : first_output / a.group;
    const Row row = a.terms.staged ? Row{} : row_numbers(round);
    for (int i = thread; i < a.terms.inputs; i += THREADS) {
      float total = begins ? 0.0f : channel[i];
      for (int k = 0; k < area; ++k) {
        const int place = i * area + k;
        if (a.terms.staged) {
          total += held_grad[place];
        } else {
          float theta[1], g[1], s[1];
          theta_and_grad(round, place, theta, g);
          a.terms.template styles<AREA>(image(round), place, s);
          total += (row.d * g[0] - row.pull * theta[0] * s[0]) * theta[0];
        }
      }
      channel[i] = total;
      if (ends) {
        a.style_parts[(static_cast<int64_t>(group) * a.terms.batch + image(round)) * a.terms.inputs + i] = total;
      }
    }
  }
};

}  // namespace wrangan
