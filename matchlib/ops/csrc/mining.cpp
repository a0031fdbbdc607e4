// Hardest-negative mining on the CPU: a matrix product whose results never leave the registers.
//
// A task packs a strip of candidates, small enough for the second-level cache, and multiplies a range of queries with
// it. Scores of a few queries and candidates at a time are compared with the queries' floors while still in registers;
// only those that could still win, a few per query, go on to the disc test and into the query's list of hits. In the
// end `exact_score` decides among the hits. Tasks meet in the lists in any order; the result does not depend on it.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "mining_checks.h"
#include "simd.h"

namespace matchlib {
namespace {

constexpr int64_t kStripBytes = 512 << 10;  // of packed candidates: half of a second-level cache
constexpr int64_t kLeastRows = 128;         // queries of a task, below which packing would show
constexpr int kHits = 8;                    // of a query: usually one to three are left in the end

struct Hit {
  float highest;  // the score plus the bound on its error
  int64_t cell;
};

// The candidates of one query that may still win.
struct HitList {
  std::atomic_flag busy;
  int count = 0;
  Hit hits[kHits];
};

struct State {
  explicit State(int64_t rows) : floors(rows), lists(rows) {
    for (auto& floor : floors) floor.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed);
  }
  // Lower bound on each query's best score: what cannot reach it is out. Rises as tasks go on.
  std::vector<std::atomic<float>> floors;
  std::vector<HitList> lists;
};

struct Task {
  int64_t image, first_row, end_row;  // rows count queries over all images
  const int64_t* cells;
  int64_t count;
};

// Makes room: drops what has fallen below the floor; if that is nothing (many equal candidates), keeps the winner.
void thin_out(const MiningProblem& p, int64_t row, float floor, HitList& list) {
  const auto is_below = [floor](const Hit& hit) { return hit.highest < floor; };
  Hit* const end = std::remove_if(list.hits, list.hits + list.count, is_below);
  list.count = static_cast<int>(end - list.hits);
  if (list.count < kHits) return;
  double best_score = 0;
  Hit best{0, -1};
  for (const Hit& hit : list.hits) {
    const double score = exact_score(p, row, hit.cell);
    if (precedes(score, hit.cell, best_score, best.cell)) best_score = score, best = hit;
  }
  list.hits[0] = best;
  list.count = 1;
}

void offer(const MiningProblem& p, State& state, int64_t row, float score, float error, int64_t cell) {
  if (excluded(p, row, cell)) return;
  HitList& list = state.lists[row];
  while (list.busy.test_and_set(std::memory_order_acquire)) {
  }
  float floor = state.floors[row].load(std::memory_order_relaxed);
  if (score + error >= floor) {
    floor = std::max(floor, score - error);
    state.floors[row].store(floor, std::memory_order_relaxed);
    if (list.count == kHits) thin_out(p, row, floor, list);
    list.hits[list.count++] = {score + error, cell};
  }
  list.busy.clear(std::memory_order_release);
}

// ---------------------------------------------------------------- the product
// kRows queries times kVectors * kLanes candidates are one block of sums: as many as the registers hold.
template <int kRows_, int kVectors_, int kLanes_>
struct Block {
  static constexpr int kRows = kRows_, kVectors = kVectors_, kLanes = kLanes_, kColumns = kVectors_ * kLanes_;
  typedef float Vector __attribute__((vector_size(kLanes_ * sizeof(float))));
};
using Block512 = Block<8, 3, 16>;
using Block256 = Block<6, 2, 8>;
using Block128 = Block<4, 2, 4>;

template <typename Mask>
MATCHLIB_INLINE bool any(const Mask& mask) {
  uint64_t words[sizeof(Mask) / sizeof(uint64_t)], all = 0;
  std::memcpy(words, &mask, sizeof(Mask));
  for (const uint64_t word : words) all |= word;
  return all != 0;
}

// Copies candidates into panels of B::kColumns, element by element: panel[d][column]. Returns the largest length.
template <typename B>
MATCHLIB_INLINE float pack(const MiningProblem& p, const Task& task, float* __restrict panels) {
  float largest = 0;
  for (int64_t first = 0; first < task.count; first += B::kColumns) {
    float* __restrict panel = panels + first * p.depth;
    const int columns = static_cast<int>(std::min<int64_t>(B::kColumns, task.count - first));
    const float* from[B::kColumns];
    // Where a panel is not full, its last candidate is repeated and later not looked at.
    for (int i = 0; i < B::kColumns; ++i) {
      from[i] = p.candidate(task.image, task.cells[first + std::min(i, columns - 1)]);
    }
    const bool is_run =  // of cells without gaps; they ascend, so the ends tell
        p.cell_stride == 1 && columns == B::kColumns && from[B::kColumns - 1] - from[0] == B::kColumns - 1;
    float square[B::kColumns] = {};
    for (int64_t d = 0; d < p.depth; ++d) {
      float* __restrict out = panel + d * B::kColumns;
      const int64_t at = d * p.depth_stride;
      if (is_run) {
        std::memcpy(out, from[0] + at, B::kColumns * sizeof(float));
      } else {
        for (int i = 0; i < B::kColumns; ++i) out[i] = from[i][at];
      }
      for (int i = 0; i < B::kColumns; ++i) square[i] += out[i] * out[i];
    }
    largest = std::max(largest, *std::max_element(square, square + B::kColumns));
  }
  // The squares' own rounding stays below the one in a thousand added here up to a depth of 16,000.
  return 1.001f * std::sqrt(largest) + kTinyLength;
}

// Scores of B::kRows queries with one panel. The sums are indexed by constants only: so they stay in registers.
template <typename B>
MATCHLIB_INLINE void multiply(const float* __restrict queries, const float* __restrict panel, int64_t depth,
                              typename B::Vector (&scores)[B::kRows][B::kVectors]) {
  typename B::Vector sums[B::kRows][B::kVectors] = {};
  for (int64_t d = 0; d < depth; ++d) {
    typename B::Vector columns[B::kVectors];
#pragma GCC unroll 3
    for (int j = 0; j < B::kVectors; ++j) {
      std::memcpy(&columns[j], panel + d * B::kColumns + j * B::kLanes, sizeof(columns[j]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < B::kRows; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < B::kVectors; ++j) sums[i][j] += queries[i * depth + d] * columns[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < B::kRows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < B::kVectors; ++j) scores[i][j] = sums[i][j];
  }
}

// Offers those of a panel's scores that reach the floors of rows [row, row + rows).
template <typename B>
MATCHLIB_INLINE void sift(const MiningProblem& p, State& state, const int64_t* cells, int64_t count, int64_t row,
                          int rows, float length, const typename B::Vector (&scores)[B::kRows][B::kVectors]) {
  const int columns = static_cast<int>(std::min<int64_t>(B::kColumns, count));
  for (int i = 0; i < rows; ++i) {
    const float error = p.reach[row + i] * length + kTinyError;
    float floor = state.floors[row + i].load(std::memory_order_relaxed) - error;
    typename B::Vector most = scores[i][0];
    for (int j = 1; j < B::kVectors; ++j) most = most > scores[i][j] ? most : scores[i][j];
    if (!any(most >= floor)) continue;
    float each[B::kColumns];
    std::memcpy(each, scores[i], sizeof(each));
    for (int column = 0; column < columns; ++column) {
      if (each[column] < floor) continue;
      offer(p, state, row + i, each[column], error, cells[column]);
      floor = state.floors[row + i].load(std::memory_order_relaxed) - error;
    }
  }
}

template <typename B>
MATCHLIB_INLINE void work(const MiningProblem& p, State& state, const Task& task, std::vector<float>& buffer) {
  const int64_t padded = (task.count + B::kColumns - 1) / B::kColumns * B::kColumns;
  const int64_t tail_at = padded * p.depth;  // behind the panels: the last few queries, filled up with zeros
  buffer.resize(std::max<int64_t>(buffer.size(), tail_at + B::kRows * p.depth));
  const float length = pack<B>(p, task, buffer.data());
  for (int64_t row = task.first_row; row < task.end_row; row += B::kRows) {
    const int rows = static_cast<int>(std::min<int64_t>(B::kRows, task.end_row - row));
    const float* queries = p.query(row);
    if (rows < B::kRows) {
      float* tail = buffer.data() + tail_at;
      std::copy(queries, queries + rows * p.depth, tail);
      std::fill(tail + rows * p.depth, tail + B::kRows * p.depth, 0.0f);
      queries = tail;
    }
    for (int64_t column = 0; column < task.count; column += B::kColumns) {
      typename B::Vector scores[B::kRows][B::kVectors];
      multiply<B>(queries, buffer.data() + column * p.depth, p.depth, scores);
      sift<B>(p, state, task.cells + column, task.count - column, row, rows, length, scores);
    }
  }
}

using Work = void (*)(const MiningProblem&, State&, const Task&, std::vector<float>&);

#if MATCHLIB_X86
__attribute__((target("arch=x86-64-v4"))) void work512(const MiningProblem& p, State& s, const Task& t,
                                                       std::vector<float>& buffer) {
  work<Block512>(p, s, t, buffer);
}
__attribute__((target("arch=x86-64-v3"))) void work256(const MiningProblem& p, State& s, const Task& t,
                                                       std::vector<float>& buffer) {
  work<Block256>(p, s, t, buffer);
}
#endif
void work128(const MiningProblem& p, State& s, const Task& t, std::vector<float>& buffer) {
  work<Block128>(p, s, t, buffer);
}

Work best_work() {
#if MATCHLIB_X86
  if (__builtin_cpu_supports("x86-64-v4")) return work512;
  if (__builtin_cpu_supports("x86-64-v3")) return work256;
#endif
  return work128;
}

// ---------------------------------------------------------------- sharing the work
std::vector<Task> plan(const MiningProblem& p) {
  constexpr int64_t kWidest = Block512::kColumns;
  const int64_t bytes_per_panel = std::max<int64_t>(1, p.depth) * kWidest * sizeof(float);
  const int64_t strip = std::max<int64_t>(1, kStripBytes / bytes_per_panel) * kWidest;
  const int64_t all = p.first_cell[p.batch];
  // Enough tasks that no thread idles long at the end: strips give most, the queries are cut where those are few.
  const int64_t wanted = 8 * torch::stable::get_num_threads(), strips = std::max<int64_t>(1, all / strip);
  const int64_t most_parts = std::max<int64_t>(1, p.count / kLeastRows);
  const int64_t parts = std::clamp<int64_t>((wanted + strips - 1) / strips, 1, most_parts);
  std::vector<Task> tasks;
  for (int64_t image = 0; image < p.batch; ++image) {
    const int64_t cells = p.first_cell[image + 1] - p.first_cell[image];
    const int64_t pieces = (cells + strip - 1) / strip, panels = (cells + kWidest - 1) / kWidest;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t from = panels * piece / pieces * kWidest;
      const int64_t to = std::min(panels * (piece + 1) / pieces * kWidest, cells);
      for (int64_t part = 0; part < parts; ++part) {
        const auto row = [&](int64_t i) {
          return image * p.count + (i == parts ? p.count : p.count * i / parts / Block512::kRows * Block512::kRows);
        };
        tasks.push_back({image, row(part), row(part + 1), p.cells + p.first_cell[image] + from, to - from});
      }
    }
  }
  return tasks;
}

// Chooses among the hits of rows [begin, end). The rows' scores are summed side by side, element by element: their
// candidates lie near each other in a channels-first map, and would each miss the cache if summed one by one.
void choose(const MiningProblem& p, State& state, int64_t* index, double* similarity, int64_t begin, int64_t end) {
  struct Pair {
    int64_t row, cell;
  };
  std::vector<Pair> pairs;
  for (int64_t row = begin; row < end; ++row) {
    const HitList& list = state.lists[row];
    const float floor = state.floors[row].load(std::memory_order_relaxed);
    for (int i = 0; i < list.count; ++i) {
      if (list.hits[i].highest >= floor) pairs.push_back({row, list.hits[i].cell});
    }
    index[row] = -1;
    similarity[row] = -std::numeric_limits<double>::infinity();
  }
  const auto count = static_cast<int64_t>(pairs.size());
  std::vector<double> sums(8 * count);
  for (int64_t d = 0; d < p.depth; ++d) {
    double* __restrict lane = sums.data() + d % 8 * count;
    for (int64_t i = 0; i < count; ++i) {
      const float* candidate = p.candidate(pairs[i].row / p.count, pairs[i].cell);
      lane[i] += static_cast<double>(p.query(pairs[i].row)[d]) * static_cast<double>(candidate[d * p.depth_stride]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto sum = [&](int lane) { return sums[lane * count + i]; };
    const double score = ((sum(0) + sum(4)) + (sum(2) + sum(6))) + ((sum(1) + sum(5)) + (sum(3) + sum(7)));
    const auto [row, cell] = pairs[i];
    if (precedes(score, cell, similarity[row], index[row])) similarity[row] = score, index[row] = cell;
  }
}

void hardest_cells(Tensor queries, Tensor candidates, Tensor cells, Tensor first_cell, Tensor centres, Tensor radii_sq,
                   Tensor reach, int64_t /*cuda_stream*/, Tensor index, Tensor similarity) {
  const MiningProblem p =
      check_mining(queries, candidates, cells, first_cell, centres, radii_sq, reach, index, similarity);
  STD_TORCH_CHECK(p.first_cell[p.batch] == cells.numel(), "first_cell: does not end where the cells do");
  const int64_t rows = p.batch * p.count, map = candidates.size(2) * candidates.size(3);
  for (int64_t i = 0; i < cells.numel(); ++i) {
    STD_TORCH_CHECK(p.cells[i] >= 0 && p.cells[i] < map, "cells: one lies outside of the map");
  }
  State state(rows);
  const std::vector<Task> tasks = plan(p);
  const Work run = best_work();
  std::atomic<size_t> next{0};  // whoever is free takes the next task: threads may be slowed by other programs
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::vector<float> buffer;
    for (size_t task = next++; task < tasks.size(); task = next++) run(p, state, tasks[task], buffer);
  });
  torch::stable::parallel_for(0, rows, kLeastRows, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kLeastRows) {
      choose(p, state, index.mutable_data_ptr<int64_t>(), similarity.mutable_data_ptr<double>(), begin,
             std::min(begin + kLeastRows, end));
    }
  });
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CPU, m) { m.impl("hardest_cells", TORCH_BOX(&matchlib::hardest_cells)); }
