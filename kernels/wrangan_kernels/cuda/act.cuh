// Ends of a kernel: what happens to a sum before it is stored. Also the activation's derivative.
#pragma once

#include "common.cuh"

namespace wrangan {

struct Activation {
  float slope, gain, clamp;  // clamp < 0: none

  // clamp(gain · leaky_relu(v)). Comparisons are such that a NaN stays one.
  WRANGAN_HD float operator()(float v) const {
    v = (v > 0 ? v : v * slope) * gain;
    if (clamp >= 0) v = v < -clamp ? -clamp : (v > clamp ? clamp : v);
    return v;
  }

  // d/dv, from the result y; `limit` is the clamp as y's type holds it.
  WRANGAN_HD float derivative(float y, float limit) const {
    if (clamp >= 0 && !(y > -limit && y < limit)) return y != y ? y : 0.0f;
    return y > 0 ? gain : gain * slope;
  }
};

// scale · v, stored; scale (B, C) or null.
template <typename T>
struct StoreEnd {
  T* out;
  const float* scale;

  template <int V>
  struct Terms {
    float scale[V];
  };
  template <int V>
  WRANGAN_HD Terms<V> prepare(const Maps& maps, int image, int channel) const {
    Terms<V> terms;
    WRANGAN_UNROLL
    for (int i = 0; i < V; ++i) {
      terms.scale[i] = scale ? read(scale + static_cast<int64_t>(image) * maps.channels + channel + i) : 1.0f;
    }
    return terms;
  }
  template <int V>
  WRANGAN_HD void operator()(const Terms<V>& terms, int64_t offset, int, float (&v)[V]) const {
    WRANGAN_UNROLL
    for (int i = 0; i < V; ++i) v[i] *= terms.scale[i];
    store(out + offset, v);
  }
};

// y + v, stored.
template <typename T>
struct AddEnd {
  T* out;
  const T* y;

  template <int V>
  struct Terms {};
  template <int V>
  WRANGAN_HD Terms<V> prepare(const Maps&, int, int) const {
    return {};
  }
  template <int V>
  WRANGAN_HD void operator()(const Terms<V>&, int64_t offset, int, float (&v)[V]) const {
    float other[V];
    load(y + offset, other);
    WRANGAN_UNROLL
    for (int i = 0; i < V; ++i) v[i] += other[i];
    store(out + offset, v);
  }
};

// act(scale · v + strength · noise + bias), stored. Whatever is null is left out; the strength is then 1.
template <typename T>
struct ActEnd {
  T* out;
  const float* scale;     // (B, C)
  const float* bias;      // (C,)
  const float* noise;     // (1 or B, 1, H, W)
  const float* strength;  // (1,)
  bool noise_per_image;
  Activation act;

  template <int V>
  struct Terms {
    float scale[V], bias[V];
    float strength;
    const float* noise;
  };
  template <int V>
  WRANGAN_HD Terms<V> prepare(const Maps& maps, int image, int channel) const {
    Terms<V> terms;
    WRANGAN_UNROLL
    for (int i = 0; i < V; ++i) {
      terms.scale[i] = scale ? read(scale + static_cast<int64_t>(image) * maps.channels + channel + i) : 1.0f;
      terms.bias[i] = bias ? read(bias + channel + i) : 0.0f;
    }
    terms.strength = noise && strength ? read(strength) : 1.0f;
    terms.noise = noise && noise_per_image ? noise + static_cast<int64_t>(image) * maps.pixels() : noise;
    return terms;
  }
  template <int V>
  WRANGAN_HD void operator()(const Terms<V>& terms, int64_t offset, int pixel, float (&v)[V]) const {
    const float noisy = terms.noise ? terms.strength * read(terms.noise + pixel) : 0.0f;
    WRANGAN_UNROLL
    for (int i = 0; i < V; ++i) v[i] = act(terms.scale[i] * v[i] + noisy + terms.bias[i]);
    store(out + offset, v);
  }
};

}  // namespace wrangan
