// Checks of the mining operators' tensors, and the tensors as a MiningProblem.
#pragma once

#include "checks.h"
#include "mining.h"

namespace matchlib {

inline void check_dense(const Tensor& tensor, const Tensor& model, torch::headeronly::ScalarType dtype, int64_t numel,
                        const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == dtype && tensor.numel() == numel, name,
                  ": expected another size or dtype, or a contiguous tensor");
  STD_TORCH_CHECK(tensor.is_cpu() == model.is_cpu() && tensor.get_device_index() == model.get_device_index(), name,
                  ": expected the device of the queries");
}

// Cells themselves are not looked at (they may lie on another device): the caller made them from the map's size.
inline MiningProblem check_mining(const Tensor& queries, const Tensor& candidates, const Tensor& cells,
                                  const Tensor& first_cell, const Tensor& centres, const Tensor& radii_sq,
                                  const Tensor& reach, const Tensor& index, const Tensor& similarity) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(queries.dim() == 3 && candidates.dim() == 4 && candidates.size(0) == queries.size(0) &&
                      candidates.size(1) == queries.size(2),
                  "mining: expected queries (B, N, D) and candidates (B, D, H, W)");
  STD_TORCH_CHECK(candidates.scalar_type() == ScalarType::Float, "candidates: expected float32");
  STD_TORCH_CHECK(candidates.size(2) == 1 || candidates.stride(2) == candidates.stride(3) * candidates.size(3),
                  "candidates: expected rows of the map one after another");
  const int64_t rows = queries.size(0) * queries.size(1), discs = radii_sq.numel();
  check_dense(queries, queries, ScalarType::Float, rows * queries.size(2), "queries");
  STD_TORCH_CHECK(candidates.is_cpu() == queries.is_cpu() &&
                      candidates.get_device_index() == queries.get_device_index(),
                  "candidates: expected the device of the queries");
  check_dense(cells, queries, ScalarType::Long, cells.numel(), "cells");
  check_dense(first_cell, queries, ScalarType::Long, queries.size(0) + 1, "first_cell");
  check_dense(centres, queries, ScalarType::Double, rows * discs * 2, "centres");
  check_dense(radii_sq, queries, ScalarType::Double, discs, "radii_sq");
  check_dense(reach, queries, ScalarType::Float, rows, "reach");
  check_dense(index, queries, ScalarType::Long, rows, "index");
  check_dense(similarity, queries, ScalarType::Double, rows, "similarity");
  return {queries.const_data_ptr<float>(),
          candidates.const_data_ptr<float>(),
          cells.const_data_ptr<int64_t>(),
          first_cell.const_data_ptr<int64_t>(),
          centres.const_data_ptr<double>(),
          radii_sq.const_data_ptr<double>(),
          reach.const_data_ptr<float>(),
          queries.size(0),
          queries.size(1),
          queries.size(2),
          candidates.size(3),
          discs,
          candidates.stride(0),
          candidates.stride(1),
          candidates.stride(3)};
}

}  // namespace matchlib
