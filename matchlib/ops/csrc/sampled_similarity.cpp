// Similarity with a map read between its cells, on the CPU. The vector between cells is never made: reading is linear,
// so the products with the cells are taken and then interpolated, four numbers for each position.
//
// Positions of a query share cells: 12 x 16 positions one cell apart have 768 corners in about 250 cells. So a query's
// cells are listed once each, and every product, and every step of the gradients, is made once per cell in the list.
//
// Results do not depend on the number of threads: similarities and the gradient of a query are made by one thread
// each; of the gradient of a map each thread owns some channels of some cells and adds to them in the order of the
// queries, and a query's share in a cell is added up before, in the order of its positions.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "sampled_similarity.h"
#include "simd.h"

namespace matchlib {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kChannelsPerTask = 16;     // a cache line of float
constexpr int64_t kShareBytes = 4 << 20;     // of queries' shares in cells that are kept before they are added up
constexpr int kTogether = 4;                 // cells that share the reading of a query

// The cells that a query's positions touch, and a number for each.
template <typename T>
struct Cells {
  explicit Cells(const SimilarityProblem& p)
      : corners(p.samples), list(most(p) + kTogether), listed_by(p.cells() + 1, -1), number(p.cells() + 1) {}

  static int64_t most(const SimilarityProblem& p) { return std::min(4 * p.samples, p.cells()); }

  // Lists the cells of `row`, in the order of its positions, each once.
  MATCHLIB_INLINE void collect(const SimilarityProblem& p, const T* positions, int64_t row) {
    const T* at = positions + 2 * row * p.samples;
    const auto mark = static_cast<int32_t>(row);
    count = 0;
    listed_by[p.nowhere()] = mark;
    for (int64_t k = 0; k < p.samples; ++k) {
      corners[k] = corners_at(p, at[2 * k], at[2 * k + 1]);
      for (const int32_t cell : corners[k].cell) {  // written always, kept if new: no branch to be guessed
        list[count] = cell;
        count += listed_by[cell] != mark;
        listed_by[cell] = mark;
      }
    }
    number[p.nowhere()] = 0;
  }

  std::vector<Corners<T>> corners;  // of each position
  std::vector<int32_t> list;
  int64_t count = 0;
  std::vector<int32_t> listed_by;  // for each cell of the map, the row that last listed it
  std::vector<T> number;           // for each cell of the map; that of `nowhere` is 0 for each row anew
};

// A query's weight in a cell: the sum of its positions' weights there, times their gradients.
template <typename T>
struct Share {
  int32_t cell;
  T weight;
};

template <typename T>
MATCHLIB_INLINE void forward_rows(const SimilarityProblem& p, const T* queries, const T* maps, const T* positions,
                                  T* similarity, int64_t begin, int64_t end) {
  Cells<T> cells(p);
  for (int64_t row = begin; row < end; ++row) {
    const T *__restrict query = queries + row * p.depth, *map = maps + row / p.count * p.cells() * p.depth;
    cells.collect(p, positions, row);
    // Filled up with a cell twice, so that every product is made by the same instructions.
    for (int i = 0; i < kTogether && cells.count > 0; ++i) cells.list[cells.count + i] = cells.list[cells.count - 1];
    for (int64_t i = 0; i < cells.count; i += kTogether) {
      const int32_t* list = cells.list.data() + i;
      const T *__restrict v0 = map + list[0] * p.depth, *__restrict v1 = map + list[1] * p.depth,
              *__restrict v2 = map + list[2] * p.depth, *__restrict v3 = map + list[3] * p.depth;
      T dot0 = 0, dot1 = 0, dot2 = 0, dot3 = 0;
#pragma omp simd reduction(+ : dot0, dot1, dot2, dot3)
      for (int64_t d = 0; d < p.depth; ++d) {
        dot0 += query[d] * v0[d];
        dot1 += query[d] * v1[d];
        dot2 += query[d] * v2[d];
        dot3 += query[d] * v3[d];
      }
      cells.number[list[0]] = dot0;
      cells.number[list[1]] = dot1;
      cells.number[list[2]] = dot2;
      cells.number[list[3]] = dot3;
    }
    T* out = similarity + row * p.samples;
    for (int64_t k = 0; k < p.samples; ++k) {
      const Corners<T>& at = cells.corners[k];
      const T* dots = cells.number.data();
      out[k] = (at.weight[0] * dots[at.cell[0]] + at.weight[1] * dots[at.cell[1]]) +
               (at.weight[2] * dots[at.cell[2]] + at.weight[3] * dots[at.cell[3]]);
    }
  }
}

// Writes the gradients of the queries [begin, end), and their shares: `most` places each, of which `counts` are used.
template <typename T>
MATCHLIB_INLINE void backward_rows(const SimilarityProblem& p, const T* grad, const T* maps, const T* positions,
                                   T* grad_queries, Share<T>* shares, int64_t* counts, int64_t first_row,
                                   int64_t begin, int64_t end) {
  Cells<T> cells(p);
  for (int64_t row = begin; row < end; ++row) {
    const T* map = maps + row / p.count * p.cells() * p.depth;
    cells.collect(p, positions, row);
    T* weights = cells.number.data();
    for (int64_t i = 0; i < cells.count; ++i) weights[cells.list[i]] = 0;
    for (int64_t k = 0; k < p.samples; ++k) {
      const Corners<T>& at = cells.corners[k];
      const T g = grad[row * p.samples + k];
      for (int i = 0; i < 4; ++i) weights[at.cell[i]] += g * at.weight[i];
    }
    Share<T>* share = shares + (row - first_row) * Cells<T>::most(p);
    counts[row - first_row] = cells.count;
    for (int64_t i = 0; i < cells.count; ++i) share[i] = {cells.list[i], weights[cells.list[i]]};

    T* __restrict out = grad_queries + row * p.depth;
    std::fill(out, out + p.depth, T(0));
    int64_t i = 0;
    for (; i + kTogether <= cells.count; i += kTogether) {
      const T *__restrict v0 = map + share[i].cell * p.depth, *__restrict v1 = map + share[i + 1].cell * p.depth,
              *__restrict v2 = map + share[i + 2].cell * p.depth, *__restrict v3 = map + share[i + 3].cell * p.depth;
      const T w0 = share[i].weight, w1 = share[i + 1].weight, w2 = share[i + 2].weight, w3 = share[i + 3].weight;
#pragma omp simd
      for (int64_t d = 0; d < p.depth; ++d) out[d] += (w0 * v0[d] + w1 * v1[d]) + (w2 * v2[d] + w3 * v3[d]);
    }
    for (; i < cells.count; ++i) {
      const T* __restrict v = map + share[i].cell * p.depth;
#pragma omp simd
      for (int64_t d = 0; d < p.depth; ++d) out[d] += share[i].weight * v[d];
    }
  }
}

// What one thread owns of the gradient of a map.
struct Part {
  int64_t first_channel, end_channel, first_cell, end_cell;
};

// Adds the shares of `rows` queries to a part of the gradient of their map.
template <typename T>
MATCHLIB_INLINE void scatter(const SimilarityProblem& p, const T* queries, const Share<T>* shares,
                             const int64_t* counts, int64_t rows, T* grad_map, const Part& part) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* __restrict query = queries + row * p.depth;
    const Share<T>* share = shares + row * Cells<T>::most(p);
    for (int64_t i = 0; i < counts[row]; ++i) {
      if (share[i].cell < part.first_cell || share[i].cell >= part.end_cell) continue;
      T* __restrict out = grad_map + share[i].cell * p.depth;
      const T weight = share[i].weight;
#pragma omp simd
      for (int64_t d = part.first_channel; d < part.end_channel; ++d) out[d] += weight * query[d];
    }
  }
}

#define MATCHLIB_INSTANTIATE(T)                                                                                    \
  MATCHLIB_CLONES void run_forward(const SimilarityProblem& p, const T* queries, const T* maps, const T* positions, \
                                   T* similarity, int64_t begin, int64_t end) {                                    \
    forward_rows(p, queries, maps, positions, similarity, begin, end);                                             \
  }                                                                                                                \
  MATCHLIB_CLONES void run_backward(const SimilarityProblem& p, const T* grad, const T* maps, const T* positions,  \
                                    T* grad_queries, Share<T>* shares, int64_t* counts, int64_t first_row,         \
                                    int64_t begin, int64_t end) {                                                  \
    backward_rows(p, grad, maps, positions, grad_queries, shares, counts, first_row, begin, end);                  \
  }                                                                                                                \
  MATCHLIB_CLONES void run_scatter(const SimilarityProblem& p, const T* queries, const Share<T>* shares,           \
                                   const int64_t* counts, int64_t rows, T* grad_map, const Part& part) {           \
    scatter(p, queries, shares, counts, rows, grad_map, part);                                                     \
  }
MATCHLIB_INSTANTIATE(float)
MATCHLIB_INSTANTIATE(double)
#undef MATCHLIB_INSTANTIATE

// Enough owners for all threads: first by channels, which costs nothing, then by bands of cells.
std::vector<Part> parts_of(const SimilarityProblem& p) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::max<int64_t>(1, std::min(threads, p.depth / kChannelsPerTask));
  const int64_t bands = std::min(p.cells(), (threads + groups - 1) / groups);
  const auto channel = [&](int64_t i) {
    return i == groups ? p.depth : p.depth * i / groups / kChannelsPerTask * kChannelsPerTask;
  };
  std::vector<Part> parts;
  for (int64_t band = 0; band < bands; ++band) {
    for (int64_t group = 0; group < groups; ++group) {
      parts.push_back({channel(group), channel(group + 1), p.cells() * band / bands, p.cells() * (band + 1) / bands});
    }
  }
  return parts;
}

template <typename T>
void forward(const SimilarityProblem& p, const Tensor& queries, const Tensor& maps, const Tensor& positions,
             const Tensor& similarity) {
  const T *q = queries.const_data_ptr<T>(), *m = maps.const_data_ptr<T>(), *at = positions.const_data_ptr<T>();
  T* out = similarity.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, p.rows(), kRowsPerTask,
                              [&](int64_t begin, int64_t end) { run_forward(p, q, m, at, out, begin, end); });
}

template <typename T>
void backward(const SimilarityProblem& p, const Tensor& grad, const Tensor& queries, const Tensor& maps,
              const Tensor& positions, const Tensor& grad_queries, const Tensor& grad_maps) {
  const T *g = grad.const_data_ptr<T>(), *q = queries.const_data_ptr<T>(), *m = maps.const_data_ptr<T>(),
          *at = positions.const_data_ptr<T>();
  T *g_queries = grad_queries.mutable_data_ptr<T>(), *g_maps = grad_maps.mutable_data_ptr<T>();
  const int64_t most = std::max<int64_t>(1, Cells<T>::most(p));
  const int64_t block = std::clamp<int64_t>(kShareBytes / (most * sizeof(Share<T>)), 1, std::max<int64_t>(1, p.count));
  const std::unique_ptr<Share<T>[]> shares(new Share<T>[block * most]);  // left uninitialised: written before read
  std::vector<int64_t> counts(block);
  const std::vector<Part> parts = parts_of(p);
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int64_t first = image * p.count; first < (image + 1) * p.count; first += block) {
      const int64_t end_row = std::min(first + block, (image + 1) * p.count);
      torch::stable::parallel_for(first, end_row, kRowsPerTask, [&](int64_t begin, int64_t end) {
        run_backward(p, g, m, at, g_queries, shares.get(), counts.data(), first, begin, end);
      });
      torch::stable::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          run_scatter(p, q + first * p.depth, shares.get(), counts.data(), end_row - first,
                      g_maps + image * p.cells() * p.depth, parts[i]);
        }
      });
    }
  }
}

void sampled_similarity(Tensor queries, Tensor maps, Tensor positions, bool zeros, int64_t /*cuda_stream*/,
                        Tensor similarity) {
  const SimilarityProblem p = check_similarity(queries, maps, positions, zeros);
  check_similarity_tensor(similarity, queries, p.rows() * p.samples, "similarity");
  const bool is_double = queries.scalar_type() == torch::headeronly::ScalarType::Double;
  (is_double ? forward<double> : forward<float>)(p, queries, maps, positions, similarity);
}

void sampled_similarity_backward(Tensor grad, Tensor queries, Tensor maps, Tensor positions, bool zeros,
                                 Tensor grad_queries, Tensor grad_maps) {
  const SimilarityProblem p = check_similarity(queries, maps, positions, zeros);
  check_similarity_tensor(grad, queries, p.rows() * p.samples, "grad");
  check_similarity_tensor(grad_queries, queries, queries.numel(), "grad_queries");
  check_similarity_tensor(grad_maps, queries, maps.numel(), "grad_maps");
  const bool is_double = queries.scalar_type() == torch::headeronly::ScalarType::Double;
  (is_double ? backward<double> : backward<float>)(p, grad, queries, maps, positions, grad_queries, grad_maps);
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CPU, m) {
  m.impl("sampled_similarity", TORCH_BOX(&matchlib::sampled_similarity));
  m.impl("sampled_similarity_backward", TORCH_BOX(&matchlib::sampled_similarity_backward));
}
