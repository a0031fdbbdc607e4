// One pass over a tile of similarities for nearest neighbours in both directions, lowest index first among equals.
//
// Only maxima are computed for every element (vectorised, no index); a winner's index is looked up only where a
// maximum beats what the tiles before gave, which is rare after the first tiles.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "checks.h"
#include "simd.h"

namespace matchlib {
namespace {

constexpr int64_t kStrip = 512;  // columns owned by one task: its part of the maxima stays in L1
constexpr int64_t kRows = 32;    // rows whose column maxima are taken before indices are looked up

template <typename T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

template <typename T>
struct Tile {
  const T* scores;
  int64_t rows, columns, first_row, first_column;
};

template <typename T>
struct Vector {
  static constexpr int64_t kLanes = 64 / sizeof(T);
  typedef T Type __attribute__((vector_size(64)));

  static MATCHLIB_INLINE Type load(const T* from) {
    Type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static MATCHLIB_INLINE Type maximum(Type value, Type best) { return value > best ? value : best; }  // NaN loses
};

// One row of a strip: raises the columns' maxima, if wanted, and returns the row's maximum.
template <typename T, bool kColumns>
MATCHLIB_INLINE T scan_row(const T* values, int64_t n, T* column_max) {
  using V = Vector<T>;
  typename V::Type lanes[2] = {kNothing<T> - typename V::Type{}, kNothing<T> - typename V::Type{}};  // two: a maximum takes several cycles
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = i + half * V::kLanes;
      const auto value = V::load(values + at);
      lanes[half] = V::maximum(value, lanes[half]);
      if constexpr (kColumns) {
        const auto column = V::maximum(value, V::load(column_max + at));
        std::memcpy(column_max + at, &column, sizeof(column));
      }
    }
  }
  const auto folded = V::maximum(lanes[0], lanes[1]);
  T best = folded[0];
  for (int64_t lane = 1; lane < V::kLanes; ++lane) best = folded[lane] > best ? folded[lane] : best;
  for (; i < n; ++i) {
    best = values[i] > best ? values[i] : best;
    if constexpr (kColumns) column_max[i] = values[i] > column_max[i] ? values[i] : column_max[i];
  }
  return best;
}

// Columns [from, to) of all rows: updates the columns' best and leaves the rows' maxima of this strip in row_value.
template <typename T, bool kColumns>
MATCHLIB_INLINE void scan_strip(const Tile<T>& tile, int64_t from, int64_t to, T* row_value, T* column_value,
                                int64_t* column_index) {
  T column_max[kStrip];
  for (int64_t top = 0; top < tile.rows; top += kRows) {
    const int64_t bottom = std::min(top + kRows, tile.rows);
    std::fill(column_max, column_max + kStrip, kNothing<T>);
    for (int64_t row = top; row < bottom; ++row) {
      const T* values = tile.scores + row * tile.columns + from;
      row_value[row] = scan_row<T, kColumns>(values, to - from, column_max);
    }
    if constexpr (!kColumns) continue;
    for (int64_t i = from; i < to; ++i) {
      if (!(column_max[i - from] > column_value[i])) continue;
      column_value[i] = column_max[i - from];
      int64_t row = top;
      while (tile.scores[row * tile.columns + i] != column_value[i]) ++row;
      column_index[i] = tile.first_row + row;
    }
  }
}

#define MATCHLIB_INSTANTIATE(T)                                                                              \
  MATCHLIB_CLONES void run_strip(const Tile<T>& tile, int64_t from, int64_t to, T* row_value,                \
                                 T* column_value, int64_t* column_index) {                                   \
    if (column_value != nullptr) {                                                                           \
      scan_strip<T, true>(tile, from, to, row_value, column_value, column_index);                            \
    } else {                                                                                                 \
      scan_strip<T, false>(tile, from, to, row_value, column_value, column_index);                           \
    }                                                                                                        \
  }
MATCHLIB_INSTANTIATE(float)
MATCHLIB_INSTANTIATE(double)
#undef MATCHLIB_INSTANTIATE

template <typename T>
void update(const Tensor& scores, int64_t first_row, int64_t first_column, const Tensor& row_value,
            const Tensor& row_index, const Tensor& column_value, const Tensor& column_index) {
  const Tile<T> tile{scores.const_data_ptr<T>(), scores.size(0), scores.size(1), first_row, first_column};
  T* best_value = row_value.mutable_data_ptr<T>() + first_row;
  int64_t* best_index = row_index.mutable_data_ptr<int64_t>() + first_row;
  const bool both = column_value.numel() > 0;
  T* columns_value = both ? column_value.mutable_data_ptr<T>() + first_column : nullptr;
  int64_t* columns_index = both ? column_index.mutable_data_ptr<int64_t>() + first_column : nullptr;
  const int64_t strips = (tile.columns + kStrip - 1) / kStrip;
  std::vector<T> strip_value(strips * tile.rows);
  torch::stable::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      run_strip(tile, strip * kStrip, std::min((strip + 1) * kStrip, tile.columns),
                strip_value.data() + strip * tile.rows, columns_value, columns_index);
    }
  });
  for (int64_t row = 0; row < tile.rows; ++row) {
    int64_t winner = -1;
    for (int64_t strip = 0; strip < strips; ++strip) {  // ascending and strictly greater: the lowest index stays
      if (strip_value[strip * tile.rows + row] > best_value[row]) {
        best_value[row] = strip_value[strip * tile.rows + row];
        winner = strip;
      }
    }
    if (winner < 0) continue;
    const T* values = tile.scores + row * tile.columns;
    const T* found = std::find(values + winner * kStrip, values + tile.columns, best_value[row]);
    best_index[row] = tile.first_column + (found - values);
  }
}

void check_best(const Tensor& tile, int64_t first, int64_t count, const Tensor& value, const Tensor& index) {
  check_like(value, tile, "best value");
  STD_TORCH_CHECK(index.is_contiguous() && index.scalar_type() == torch::headeronly::ScalarType::Long,
                  "best index: expected contiguous int64");
  STD_TORCH_CHECK(value.numel() == index.numel() && first >= 0 && first + count <= value.numel(),
                  "nearest: the tile lies outside of the result");
}

void nearest_update(Tensor tile, int64_t first_row, int64_t first_column, Tensor row_value, Tensor row_index,
                    Tensor column_value, Tensor column_index) {
  const auto dtype = tile.scalar_type();
  STD_TORCH_CHECK(dtype == torch::headeronly::ScalarType::Float || dtype == torch::headeronly::ScalarType::Double,
                  "tile: expected float32 or float64");
  STD_TORCH_CHECK(tile.dim() == 2, "tile: expected a matrix");
  check_like(tile, tile, "tile");
  check_best(tile, first_row, tile.size(0), row_value, row_index);
  if (column_value.numel() > 0) check_best(tile, first_column, tile.size(1), column_value, column_index);
  const auto run = dtype == torch::headeronly::ScalarType::Double ? update<double> : update<float>;
  run(tile, first_row, first_column, row_value, row_index, column_value, column_index);
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CPU, m) {
  m.impl("nearest_update", TORCH_BOX(&matchlib::nearest_update));
}
