// What all kernels share: types, packs, and blocks of threads that run in phases.
//
// Everything but the launch itself is in headers, as templates for host and device: a block is a
// class with `phase<P>(thread, round)`; after each phase lies a barrier, and all phases are repeated
// `rounds()` times. The GPU runs the threads of a phase at once (launch.cuh), the tests run them one
// after the other on the CPU, with the same code.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#if defined(__CUDACC__)
#define WRANGAN_HD __host__ __device__ __forceinline__
#define WRANGAN_UNROLL _Pragma("unroll")
#define WRANGAN_UNROLL_4 _Pragma("unroll 4")
#else
#define WRANGAN_HD inline
#define WRANGAN_UNROLL
#define WRANGAN_UNROLL_4
#endif

namespace wrangan {

constexpr int THREADS = 256;
// What a block gets of shared memory without asking the driver for more.
constexpr int SHARED_BYTES = 48 * 1024;

// N numbers that one instruction loads or stores: 16 bytes at most.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <typename T>
constexpr int pack_size() {
  return 16 / static_cast<int>(sizeof(T));
}

// Through the read-only cache on the GPU.
WRANGAN_HD float read(const float* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(from);
#else
  return *from;
#endif
}

// As whole words: the compiler would take numbers of 16 bits by fours at most.
template <typename P>
WRANGAN_HD void move_pack(const P* from, P* to) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 16) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  } else if constexpr (sizeof(P) == 8) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
  } else {
    *to = *from;
  }
#else
  *to = *from;
#endif
}

template <typename T, int N>
WRANGAN_HD void load(const T* from, float (&values)[N]) {
  Pack<T, N> pack;
  move_pack(reinterpret_cast<const Pack<T, N>*>(from), &pack);
  WRANGAN_UNROLL
  for (int i = 0; i < N; ++i) values[i] = static_cast<float>(pack.at[i]);
}

template <typename T, int N>
WRANGAN_HD void store(T* to, const float (&values)[N]) {
  Pack<T, N> pack;
  WRANGAN_UNROLL
  for (int i = 0; i < N; ++i) pack.at[i] = static_cast<T>(values[i]);
  move_pack(&pack, reinterpret_cast<Pack<T, N>*>(to));
}

WRANGAN_HD constexpr int ceil_div(int a, int b) {  // b > 0; a of either sign
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

WRANGAN_HD constexpr int floor_div(int a, int b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

inline int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// The type of a pointer that comes without one.
enum class Kind { float32, float16, bfloat16 };

template <typename T>
struct Named {
  using type = T;
};

// visit(Named<T>{}) for the type of that kind.
template <class Visit>
void with_type(Kind kind, Visit visit) {
  if (kind == Kind::float32) {
    visit(Named<float>{});
  } else if (kind == Kind::float16) {
    visit(Named<c10::Half>{});
  } else {
    visit(Named<c10::BFloat16>{});
  }
}

// A batch of feature maps (B, C, H, W), contiguous or channels_last. A plane, and a whole image,
// have fewer than 2^31 numbers (checked by operators.cpp); a batch may have more.
struct Maps {
  int batch, channels, height, width;
  bool channels_last;

  WRANGAN_HD int pixels() const { return height * width; }
  WRANGAN_HD int64_t offset(int image, int channel, int pixel) const {
    return channels_last ? (static_cast<int64_t>(image) * pixels() + pixel) * channels + channel
                         : (static_cast<int64_t>(image) * channels + channel) * pixels() + pixel;
  }
};

}  // namespace wrangan
