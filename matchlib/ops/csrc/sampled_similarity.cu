// Similarity with a map read between its cells, on CUDA. One warp per query and 32 of its positions: each lane works
// out one position, then all lanes go through the positions together, lanes over channels, so that a cell is read in
// whole lines and nothing of the size positions times channels is stored.
//
// All sums have one order; there are no atomics. For the gradient of the maps the caller sorts the corners of all
// positions by cell, and one warp adds up those of one cell, in the order of queries and positions.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <algorithm>

#include "sampled_similarity.h"

namespace matchlib {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 256;
constexpr int kOwn = 4;  // channels that a lane adds up in registers at a time
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr unsigned kAll = 0xffffffffu;

__device__ int64_t first_warp() { return (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; }
__device__ int64_t warps() { return int64_t(gridDim.x) * (kThreads / kLanes); }

template <typename T>
__device__ T warp_sum(T value) {
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// The corners that lane `from` holds, for all lanes.
template <typename T>
__device__ Corners<T> from_lane(const Corners<T>& corners, int from) {
  Corners<T> result;
  for (int i = 0; i < 4; ++i) {
    result.cell[i] = __shfl_sync(kAll, corners.cell[i], from);
    result.weight[i] = __shfl_sync(kAll, corners.weight[i], from);
  }
  return result;
}

// Of position `k` of a row; beyond the last one, corners that are nowhere.
template <typename T>
__device__ Corners<T> corners_of(const SimilarityProblem& p, const T* positions, int64_t row, int64_t k) {
  if (k >= p.samples) return {{p.nowhere(), p.nowhere(), p.nowhere(), p.nowhere()}, {0, 0, 0, 0}};
  const T* at = positions + 2 * (row * p.samples + k);
  return corners_at(p, at[0], at[1]);
}

template <typename T>
__global__ void compare(SimilarityProblem p, const T* __restrict__ queries, const T* __restrict__ maps,
                        const T* __restrict__ positions, T* __restrict__ similarity) {
  const int lane = threadIdx.x % kLanes;
  const int64_t chunks = (p.samples + kLanes - 1) / kLanes;
  for (int64_t item = first_warp(); item < p.rows() * chunks; item += warps()) {
    const int64_t row = item / chunks, first = item % chunks * kLanes;
    const T *query = queries + row * p.depth, *map = maps + row / p.count * p.cells() * p.depth;
    const Corners<T> own = corners_of(p, positions, row, first + lane);
    const int count = static_cast<int>(min(int64_t(kLanes), p.samples - first));
    T result = 0;
    for (int k = 0; k < count; ++k) {
      const Corners<T> corners = from_lane(own, k);
      T sum = 0;
      for (int i = 0; i < 4; ++i) {
        if (corners.cell[i] == p.nowhere()) {
          if (lane == 0) sum += 0 * corners.weight[i];  // lets a NaN through
          continue;
        }
        const T* cell = map + corners.cell[i] * p.depth;
        for (int64_t d = lane; d < p.depth; d += kLanes) sum += corners.weight[i] * query[d] * cell[d];
      }
      sum = warp_sum(sum);
      if (lane == k) result = sum;
    }
    if (lane < count) similarity[row * p.samples + first + lane] = result;
  }
}

// One warp per query, which keeps kOwn channels of the gradient in each lane; deeper queries take several turns.
template <typename T>
__global__ void differentiate_queries(SimilarityProblem p, const T* __restrict__ grad, const T* __restrict__ maps,
                                      const T* __restrict__ positions, T* __restrict__ grad_queries) {
  const int lane = threadIdx.x % kLanes;
  for (int64_t row = first_warp(); row < p.rows(); row += warps()) {
    const T* map = maps + row / p.count * p.cells() * p.depth;
    for (int64_t depth = 0; depth < p.depth; depth += kLanes * kOwn) {
      T sums[kOwn] = {};
      for (int64_t first = 0; first < p.samples; first += kLanes) {
        const Corners<T> own = corners_of(p, positions, row, first + lane);
        const T own_grad = first + lane < p.samples ? grad[row * p.samples + first + lane] : T(0);
        const int count = static_cast<int>(min(int64_t(kLanes), p.samples - first));
        for (int k = 0; k < count; ++k) {
          const Corners<T> corners = from_lane(own, k);
          const T g = __shfl_sync(kAll, own_grad, k);
          for (int i = 0; i < 4; ++i) {
            if (corners.cell[i] == p.nowhere()) continue;
            const T factor = g * corners.weight[i];
            const T* cell = map + corners.cell[i] * p.depth;
#pragma unroll
            for (int j = 0; j < kOwn; ++j) {
              const int64_t d = depth + j * kLanes + lane;
              if (d < p.depth) sums[j] += factor * cell[d];
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int64_t d = depth + j * kLanes + lane;
        if (d < p.depth) grad_queries[row * p.depth + d] = sums[j];
      }
    }
  }
}

// One thread per position: the cells of its corners, counted over all images, and their weights times its gradient.
template <typename T>
__global__ void list_corners(SimilarityProblem p, const T* __restrict__ grad, const T* __restrict__ positions,
                             int32_t* __restrict__ cells, T* __restrict__ weights) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x; at < p.rows() * p.samples; at += stride) {
    const int64_t image = at / p.samples / p.count;
    const Corners<T> corners = corners_at(p, positions[2 * at], positions[2 * at + 1]);
    for (int i = 0; i < 4; ++i) {
      const bool is_cell = corners.cell[i] != p.nowhere();
      cells[4 * at + i] = static_cast<int32_t>(is_cell ? image * p.cells() + corners.cell[i] : p.batch * p.cells());
      weights[4 * at + i] = grad[at] * corners.weight[i];
    }
  }
}

// One warp per cell. A corner's number over four times the positions of a query is the query's.
template <typename T>
__global__ void gather(int64_t cells, int64_t corners_per_query, int64_t depth, const T* __restrict__ queries,
                       const T* __restrict__ weights, const int64_t* __restrict__ order,
                       const int64_t* __restrict__ first_corner, T* __restrict__ grad_maps) {
  const int lane = threadIdx.x % kLanes;
  for (int64_t cell = first_warp(); cell < cells; cell += warps()) {
    for (int64_t from = 0; from < depth; from += kLanes * kOwn) {
      T sums[kOwn] = {};
      for (int64_t at = first_corner[cell]; at < first_corner[cell + 1]; ++at) {
        const T weight = weights[order[at]];
        const T* query = queries + order[at] / corners_per_query * depth;
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const int64_t d = from + j * kLanes + lane;
          if (d < depth) sums[j] += weight * query[d];
        }
      }
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int64_t d = from + j * kLanes + lane;
        if (d < depth) grad_maps[cell * depth + d] = sums[j];
      }
    }
  }
}

unsigned blocks(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + per_block - 1) / per_block, 1, kMaxBlocks));
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "sampled similarity: launch failed: ", cudaGetErrorString(error));
}

template <typename T>
void launch_compare(const SimilarityProblem& p, cudaStream_t stream, const Tensor& queries, const Tensor& maps,
                    const Tensor& positions, const Tensor& similarity) {
  const int64_t items = p.rows() * ((p.samples + kLanes - 1) / kLanes);
  compare<T><<<blocks(items, kThreads / kLanes), kThreads, 0, stream>>>(
      p, queries.const_data_ptr<T>(), maps.const_data_ptr<T>(), positions.const_data_ptr<T>(),
      similarity.mutable_data_ptr<T>());
  check_launch();
}

template <typename T>
void launch_shares(const SimilarityProblem& p, cudaStream_t stream, const Tensor& grad, const Tensor& maps,
                   const Tensor& positions, const Tensor& grad_queries, const Tensor& cells, const Tensor& weights) {
  differentiate_queries<T><<<blocks(p.rows(), kThreads / kLanes), kThreads, 0, stream>>>(
      p, grad.const_data_ptr<T>(), maps.const_data_ptr<T>(), positions.const_data_ptr<T>(),
      grad_queries.mutable_data_ptr<T>());
  check_launch();
  list_corners<T><<<blocks(p.rows() * p.samples, kThreads), kThreads, 0, stream>>>(
      p, grad.const_data_ptr<T>(), positions.const_data_ptr<T>(), cells.mutable_data_ptr<int32_t>(),
      weights.mutable_data_ptr<T>());
  check_launch();
}

template <typename T>
void launch_gather(int64_t cells, int64_t corners_per_query, int64_t depth, cudaStream_t stream,
                   const Tensor& queries, const Tensor& weights, const Tensor& order, const Tensor& first_corner,
                   const Tensor& grad_maps) {
  gather<T><<<blocks(cells, kThreads / kLanes), kThreads, 0, stream>>>(
      cells, corners_per_query, depth, queries.const_data_ptr<T>(), weights.const_data_ptr<T>(),
      order.const_data_ptr<int64_t>(), first_corner.const_data_ptr<int64_t>(), grad_maps.mutable_data_ptr<T>());
  check_launch();
}

bool is_double(const Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Double;
}

void check_indices(const Tensor& tensor, const Tensor& model, torch::headeronly::ScalarType dtype, int64_t numel,
                   const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == dtype && tensor.numel() == numel &&
                      tensor.is_cpu() == model.is_cpu() && tensor.get_device_index() == model.get_device_index(),
                  name, ": expected another size, dtype or device, or a contiguous tensor");
}

void sampled_similarity(Tensor queries, Tensor maps, Tensor positions, bool zeros, int64_t cuda_stream,
                        Tensor similarity) {
  const SimilarityProblem p = check_similarity(queries, maps, positions, zeros);
  check_similarity_tensor(similarity, queries, p.rows() * p.samples, "similarity");
  if (similarity.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  (is_double(queries) ? launch_compare<double> : launch_compare<float>)(p, stream, queries, maps, positions,
                                                                        similarity);
}

void sampled_similarity_shares(Tensor grad, Tensor queries, Tensor maps, Tensor positions, bool zeros,
                               int64_t cuda_stream, Tensor grad_queries, Tensor cells, Tensor weights) {
  const SimilarityProblem p = check_similarity(queries, maps, positions, zeros);
  check_similarity_tensor(grad, queries, p.rows() * p.samples, "grad");
  check_similarity_tensor(grad_queries, queries, queries.numel(), "grad_queries");
  check_similarity_tensor(weights, queries, 4 * grad.numel(), "weights");
  check_indices(cells, queries, torch::headeronly::ScalarType::Int, 4 * grad.numel(), "cells");
  if (p.rows() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  (is_double(queries) ? launch_shares<double> : launch_shares<float>)(p, stream, grad, maps, positions, grad_queries,
                                                                      cells, weights);
}

void sampled_similarity_gather(Tensor queries, Tensor weights, Tensor order, Tensor first_corner,
                               int64_t cuda_stream, Tensor grad_maps) {
  const int64_t rows = queries.size(0) * queries.size(1), cells = first_corner.numel() - 1;
  check_like(queries, queries, "queries");
  check_similarity_tensor(weights, queries, weights.numel(), "weights");
  check_similarity_tensor(grad_maps, queries, cells * queries.size(2), "grad_maps");
  check_indices(order, queries, torch::headeronly::ScalarType::Long, weights.numel(), "order");
  check_indices(first_corner, queries, torch::headeronly::ScalarType::Long, cells + 1, "first_corner");
  if (grad_maps.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  const int64_t corners_per_query = std::max<int64_t>(1, weights.numel() / std::max<int64_t>(1, rows));
  (is_double(queries) ? launch_gather<double> : launch_gather<float>)(
      cells, corners_per_query, queries.size(2), stream, queries, weights, order, first_corner, grad_maps);
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CUDA, m) {
  m.impl("sampled_similarity", TORCH_BOX(&matchlib::sampled_similarity));
  m.impl("sampled_similarity_shares", TORCH_BOX(&matchlib::sampled_similarity_shares));
  m.impl("sampled_similarity_gather", TORCH_BOX(&matchlib::sampled_similarity_gather));
}
