// Modulated deformable convolution on CUDA: sampling to columns and back. The products are cuBLAS's, called outside.
//
// One warp per tap of an output position, lanes over channels: the four pixels of a channels-last input are read in
// whole lines, and the position is worked out once per warp. The gradients of offset and mask are warp sums in a
// fixed order; the gradient of the input is added by atomics, because taps of many positions meet in one pixel.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <algorithm>

#include "checks.h"

namespace matchlib {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

template <typename T>
__device__ T warp_sum(T value) {
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

template <typename T>
__global__ void sample(Shape s, const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
                       T* __restrict__ columns) {
  const int lane = threadIdx.x % kLanes;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kLanes);
  for (int64_t item = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; item < s.positions * s.taps();
       item += warps) {
    const int64_t k = item % s.taps(), position = s.first + item / s.taps();
    const Tap<T> tap = locate(s, offset, position, k);
    const T m = mask[k * s.map() + position];
    T* out = columns + item * s.channels;
    for (int64_t c = lane; c < s.channels; c += kLanes) {
      T value = 0;
      if (tap.inside) {
        for (int i = 0; i < 4; ++i) value += m * tap.weight[i] * input[tap.pixel[i] * s.channels + c];
      }
      out[c] = value;
    }
  }
}

template <typename T>
__global__ void differentiate(Shape s, const T* __restrict__ grad_columns, const T* __restrict__ input,
                              const T* __restrict__ offset, const T* __restrict__ mask, T* __restrict__ columns,
                              T* grad_input, T* __restrict__ grad_offset, T* __restrict__ grad_mask) {
  const int lane = threadIdx.x % kLanes;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kLanes);
  for (int64_t item = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; item < s.positions * s.taps();
       item += warps) {
    const int64_t k = item % s.taps(), position = s.first + item / s.taps();
    const Tap<T> tap = locate(s, offset, position, k);
    const T m = mask[k * s.map() + position];
    T dots[4] = {0, 0, 0, 0};
    for (int64_t c = lane; c < s.channels; c += kLanes) {
      const T g = grad_columns[item * s.channels + c];
      T value = 0;
      if (tap.inside) {
        for (int i = 0; i < 4; ++i) {
          const int64_t at = tap.pixel[i] * s.channels + c;
          const T pixel = input[at];
          value += m * tap.weight[i] * pixel;
          dots[i] += g * pixel;
          if (tap.weight[i] != 0) atomicAdd(grad_input + at, m * tap.weight[i] * g);
        }
      }
      columns[item * s.channels + c] = value;
    }
    T along_mask = 0, along_y = 0, along_x = 0;
    for (int i = 0; i < 4; ++i) {
      const T dot = warp_sum(dots[i]);
      along_mask += tap.weight[i] * dot;
      along_y += tap.slope_y[i] * dot;
      along_x += tap.slope_x[i] * dot;
    }
    if (lane == 0) {
      grad_mask[k * s.map() + position] = along_mask;
      grad_offset[2 * k * s.map() + position] = m * along_y;
      grad_offset[(2 * k + 1) * s.map() + position] = m * along_x;
    }
  }
}

unsigned blocks_for(const Shape& s) {
  const int64_t per_block = kThreads / kLanes;
  return static_cast<unsigned>(std::min(kMaxBlocks, (s.positions * s.taps() + per_block - 1) / per_block));
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "deformable columns: launch failed: ", cudaGetErrorString(error));
}

template <typename T>
void im2col(const Shape& s, cudaStream_t stream, const Tensor& input, const Tensor& offset, const Tensor& mask,
            const Tensor& columns) {
  sample<T><<<blocks_for(s), kThreads, 0, stream>>>(s, input.const_data_ptr<T>(), offset.const_data_ptr<T>(),
                                                    mask.const_data_ptr<T>(), columns.mutable_data_ptr<T>());
  check_launch();
}

template <typename T>
void col2im(const Shape& s, cudaStream_t stream, const Tensor& grad_columns, const Tensor& input,
            const Tensor& offset, const Tensor& mask, const Tensor& columns, const Tensor& grad_input,
            const Tensor& grad_offset, const Tensor& grad_mask) {
  differentiate<T><<<blocks_for(s), kThreads, 0, stream>>>(
      s, grad_columns.const_data_ptr<T>(), input.const_data_ptr<T>(), offset.const_data_ptr<T>(),
      mask.const_data_ptr<T>(), columns.mutable_data_ptr<T>(), grad_input.mutable_data_ptr<T>(),
      grad_offset.mutable_data_ptr<T>(), grad_mask.mutable_data_ptr<T>());
  check_launch();
}

void deform_im2col(Tensor input, Tensor offset, Tensor mask, int64_t kernel_height, int64_t kernel_width,
                   int64_t stride, int64_t padding, int64_t dilation, int64_t first, int64_t cuda_stream,
                   Tensor columns) {
  const Shape s = check_problem(input, offset, mask, columns, kernel_height, kernel_width, stride, padding,
                                dilation, first);
  if (s.positions == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  const bool is_double = input.scalar_type() == torch::headeronly::ScalarType::Double;
  (is_double ? im2col<double> : im2col<float>)(s, stream, input, offset, mask, columns);
}

void deform_col2im(Tensor grad_columns, Tensor input, Tensor offset, Tensor mask, int64_t kernel_height,
                   int64_t kernel_width, int64_t stride, int64_t padding, int64_t dilation, int64_t first,
                   int64_t cuda_stream, Tensor columns, Tensor grad_input, Tensor grad_offset, Tensor grad_mask) {
  const Shape s = check_problem(input, offset, mask, columns, kernel_height, kernel_width, stride, padding,
                                dilation, first);
  check_gradients(s, input, grad_columns, grad_input, grad_offset, grad_mask);
  if (s.positions == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  const bool is_double = input.scalar_type() == torch::headeronly::ScalarType::Double;
  (is_double ? col2im<double> : col2im<float>)(s, stream, grad_columns, input, offset, mask, columns, grad_input,
                                               grad_offset, grad_mask);
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CUDA, m) {
  m.impl("deform_im2col", TORCH_BOX(&matchlib::deform_im2col));
  m.impl("deform_col2im", TORCH_BOX(&matchlib::deform_col2im));
}
