// What the kernels rely on, checked where tensors enter from Python, and the tensors' shape as one struct.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "tap.h"

namespace matchlib {

using torch::stable::Tensor;

inline void check_like(const Tensor& tensor, const Tensor& model, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == model.scalar_type(), name, ": expected the dtype of input");
  STD_TORCH_CHECK(tensor.is_cpu() == model.is_cpu() && tensor.get_device_index() == model.get_device_index(),
                  name, ": expected the device of input");
}

// input (H, W, C), offset (2 K, Ho, Wo), mask (K, Ho, Wo), columns (positions, K * C).
inline Shape check_problem(const Tensor& input, const Tensor& offset, const Tensor& mask, const Tensor& columns,
                           int64_t kernel_height, int64_t kernel_width, int64_t stride, int64_t padding,
                           int64_t dilation, int64_t first) {
  const auto dtype = input.scalar_type();
  STD_TORCH_CHECK(dtype == torch::headeronly::ScalarType::Float || dtype == torch::headeronly::ScalarType::Double,
                  "input: expected float32 or float64");
  check_like(input, input, "input");
  check_like(offset, input, "offset");
  check_like(mask, input, "mask");
  check_like(columns, input, "columns");
  STD_TORCH_CHECK(input.dim() == 3 && offset.dim() == 3 && mask.dim() == 3 && columns.dim() == 2,
                  "deformable columns: expected input, offset and mask of one image and a matrix");
  const Shape s{input.size(2), input.size(0), input.size(1), mask.size(1),   mask.size(2), kernel_height,
                kernel_width,  stride,        padding,       dilation,       first,        columns.size(0)};
  STD_TORCH_CHECK(mask.size(0) == s.taps() && offset.size(0) == 2 * s.taps() && offset.size(1) == s.out_height &&
                      offset.size(2) == s.out_width && columns.size(1) == s.taps() * s.channels && first >= 0 &&
                      first + s.positions <= s.map(),
                  "deformable columns: sizes do not fit together");
  return s;
}

inline void check_gradients(const Shape& s, const Tensor& input, const Tensor& grad_columns, const Tensor& grad_input,
                            const Tensor& grad_offset, const Tensor& grad_mask) {
  check_like(grad_columns, input, "grad_columns");
  check_like(grad_input, input, "grad_input");
  check_like(grad_offset, input, "grad_offset");
  check_like(grad_mask, input, "grad_mask");
  STD_TORCH_CHECK(grad_columns.numel() == s.positions * s.taps() * s.channels &&
                      grad_input.numel() == input.numel() && grad_offset.numel() == 2 * s.taps() * s.map() &&
                      grad_mask.numel() == s.taps() * s.map(),
                  "deformable columns: a gradient has another size than what it belongs to");
}

}  // namespace matchlib
