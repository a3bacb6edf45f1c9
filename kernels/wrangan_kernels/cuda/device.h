// What operators.cpp needs of the GPU: the device it works on, its stream, the check after a launch.
// With WRANGAN_ON_HOST (the tests) there is none: the same operators then run the kernels' bodies on
// tensors of the CPU.
#pragma once

#if defined(WRANGAN_ON_HOST)

#include <c10/core/Device.h>

using cudaStream_t = void*;
#define WRANGAN_DEVICE CPU
#define WRANGAN_LAUNCHED()

namespace wrangan {
struct DeviceGuard {
  explicit DeviceGuard(c10::Device) {}
};
inline cudaStream_t current_stream() { return nullptr; }
}  // namespace wrangan

#else

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#define WRANGAN_DEVICE CUDA
#define WRANGAN_LAUNCHED() C10_CUDA_KERNEL_LAUNCH_CHECK()

namespace wrangan {
using DeviceGuard = c10::cuda::CUDAGuard;
inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }
}  // namespace wrangan

#endif
