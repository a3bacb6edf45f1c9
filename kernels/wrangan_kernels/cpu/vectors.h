// Vectors of floats, and the moves between pixels and tiles that all kernels share.
//
// GCC's and clang's vector extensions, so that one source serves AVX-512, AVX2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

namespace wrangan {

#if defined(__AVX512F__)
constexpr int VL = 16;  // floats in a vector
#else
constexpr int VL = 8;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4)));

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
// Less nothing, not more: 0 + x is another number where x is -0, so the compiler would have to add.
inline vf splat(float value) { return value - vf{}; }

// Says that v is to stay in a register: GCC would read it from memory at each use.
inline void keep(vf& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX__)
  asm("" : "+x"(v));
#else
  (void)v;
#endif
}

// Every second element of two vectors, and its inverse. The masks are constants to the compiler.
inline vi lanes(int start, int step) {
  vi mask;
  for (int l = 0; l < VL; l++) mask[l] = start + step * l;
  return mask;
}

#if defined(__clang__)
inline vf shuffle(vf a, vf b, vi mask) {
  vf result;
  for (int l = 0; l < VL; l++) result[l] = mask[l] < VL ? a[mask[l]] : b[mask[l] - VL];
  return result;
}
#else
inline vf shuffle(vf a, vf b, vi mask) { return __builtin_shuffle(a, b, mask); }
#endif

inline vf evens(vf a, vf b) { return shuffle(a, b, lanes(0, 2)); }
inline vf odds(vf a, vf b) { return shuffle(a, b, lanes(1, 2)); }

inline vf zip_low(vf a, vf b) {
  vi mask;
  for (int l = 0; l < VL; l++) mask[l] = l / 2 + (l % 2) * VL;
  return shuffle(a, b, mask);
}

inline vf zip_high(vf a, vf b) {
  vi mask;
  for (int l = 0; l < VL; l++) mask[l] = VL / 2 + l / 2 + (l % 2) * VL;
  return shuffle(a, b, mask);
}

// (first, v0, v1, …): `first` comes in from the left.
inline vf from_left(vf v, float first) {
  vi mask = lanes(-1, 1);
  mask[0] = VL;
  return shuffle(v, splat(first), mask);
}

// (v1, v2, …, last).
inline vf from_right(vf v, float last) { return shuffle(v, splat(last), lanes(1, 1)); }

// 4·VL consecutive pixels ↔ the four pixels of each of VL tiles.
inline void pixels_to_tiles(const vf a[4], vf q[4]) {
  const vf e0 = evens(a[0], a[1]), e1 = evens(a[2], a[3]);
  const vf o0 = odds(a[0], a[1]), o1 = odds(a[2], a[3]);
  q[0] = evens(e0, e1);
  q[1] = evens(o0, o1);
  q[2] = odds(e0, e1);
  q[3] = odds(o0, o1);
}

inline void tiles_to_pixels(const vf q[4], vf a[4]) {
  const vf e0 = zip_low(q[0], q[2]), e1 = zip_high(q[0], q[2]);
  const vf o0 = zip_low(q[1], q[3]), o1 = zip_high(q[1], q[3]);
  a[0] = zip_low(e0, o0);
  a[1] = zip_high(e0, o0);
  a[2] = zip_low(e1, o1);
  a[3] = zip_high(e1, o1);
}

inline float sum(vf v) {
  float total = 0;
  for (int l = 0; l < VL; l++) total += v[l];
  return total;
}

}  // namespace wrangan
