// Similarity of queries with a map that is read between its cells: the problem, its bilinear weights and the checks
// of its tensors, shared by the C++ and the CUDA kernels.
#pragma once

#include <limits>

#include "checks.h"

#if defined(__CUDACC__)
#define MATCHLIB_CORNERS MATCHLIB_HOST_DEVICE
#else
#include "simd.h"
#define MATCHLIB_CORNERS MATCHLIB_INLINE  // else it is compiled for no better processor than the oldest
#endif

namespace matchlib {

// Everything is dense: queries (batch, count, depth), maps (batch, height, width, depth), positions (batch, count,
// samples, 2) as x, y in cells. A row is a query; rows count over all images.
struct SimilarityProblem {
  int64_t batch, count, samples, depth, height, width;
  bool zeros;  // what is outside of the map: zero vectors; else positions are moved to the nearest point inside

  MATCHLIB_HOST_DEVICE int64_t rows() const { return batch * count; }
  MATCHLIB_HOST_DEVICE int64_t cells() const { return height * width; }
  // The number of no cell. It takes the place of cells outside of the map.
  MATCHLIB_HOST_DEVICE int32_t nowhere() const { return static_cast<int32_t>(height * width); }
};

// The four cells around a position, y * width + x, and their weights.
template <typename T>
struct Corners {
  int32_t cell[4];
  T weight[4];
};

// A NaN position has NaN weights, all of them nowhere: so it spreads to its similarity, and to no gradient.
template <typename T>
MATCHLIB_CORNERS Corners<T> corners_at(const SimilarityProblem& p, T x, T y) {
  const int32_t nowhere = p.nowhere();
  Corners<T> corners{{nowhere, nowhere, nowhere, nowhere}, {0, 0, 0, 0}};
  if (x != x || y != y) {
    for (T& weight : corners.weight) weight = x + y;
    return corners;
  }
  const T last_x = static_cast<T>(p.width - 1), last_y = static_cast<T>(p.height - 1);
  if (p.zeros) {
    if (x <= -1 || x >= last_x + 1 || y <= -1 || y >= last_y + 1) return corners;
  } else {
    x = x < 0 ? T(0) : (x > last_x ? last_x : x);
    y = y < 0 ? T(0) : (y > last_y ? last_y : y);
  }
  const T floor_x = std::floor(x), floor_y = std::floor(y), right = x - floor_x, below = y - floor_y;
  const auto column = static_cast<int32_t>(floor_x), row = static_cast<int32_t>(floor_y);
  const auto width = static_cast<int32_t>(p.width), height = static_cast<int32_t>(p.height);
  const T along_x[2] = {1 - right, right}, along_y[2] = {1 - below, below};
  for (int i = 0; i < 4; ++i) {
    const int right_one = i % 2, lower_one = i / 2;
    const bool inside = column + right_one >= 0 && column + right_one < width && row + lower_one >= 0 &&
                        row + lower_one < height;
    corners.cell[i] = inside ? (row + lower_one) * width + column + right_one : nowhere;
    corners.weight[i] = inside ? along_y[lower_one] * along_x[right_one] : T(0);
  }
  return corners;
}

inline void check_similarity_tensor(const Tensor& tensor, const Tensor& queries, int64_t numel, const char* name) {
  check_like(tensor, queries, name);
  STD_TORCH_CHECK(tensor.numel() == numel, name, ": its size does not fit");
}

inline SimilarityProblem check_similarity(const Tensor& queries, const Tensor& maps, const Tensor& positions,
                                          bool zeros) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(queries.scalar_type() == ScalarType::Float || queries.scalar_type() == ScalarType::Double,
                  "queries: expected float32 or float64");
  STD_TORCH_CHECK(queries.dim() == 3 && maps.dim() == 4 && positions.dim() == 4,
                  "sampled similarity: expected queries (B, N, D), maps (B, H, W, D) and positions (B, N, K, 2)");
  const SimilarityProblem p{queries.size(0), queries.size(1), positions.size(2), queries.size(2),
                            maps.size(1),    maps.size(2),    zeros};
  check_like(queries, queries, "queries");
  check_similarity_tensor(maps, queries, p.batch * p.cells() * p.depth, "maps");
  check_similarity_tensor(positions, queries, p.rows() * p.samples * 2, "positions");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(p.cells() > 0 && (p.batch + 1) * p.cells() < kMost && p.rows() < kMost,
                  "sampled similarity: expected at least one cell, and fewer than 2^31 cells and queries in all");
  return p;
}

}  // namespace matchlib
