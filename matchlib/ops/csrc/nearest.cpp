// One pass over a tile of similarities for nearest neighbours in both directions, lowest index first among equals.
//
// Only maxima, and the seconds where wanted, are computed for every element (vectorised, no index); a winner's index is
// looked up only where a maximum beats what the tiles before gave, which is rare after the first tiles.
//
// A second is the largest value beside the winner's; it equals the winner's where two tie. It needs no index: the loser
// of every comparison with the best so far is a candidate.
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
constexpr int64_t kGroup = 32;   // rows whose column maxima are taken before indices are looked up

template <typename T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// What a pass finds out; each level includes those before.
enum Level { kRows, kColumns, kRowSeconds, kColumnSeconds };

template <typename T>
struct Tile {
  const T* scores;
  int64_t rows, columns, first_row, first_column;
};

// What the tiles so far gave for this tile's rows, or for its columns.
template <typename T>
struct Best {
  T* value = nullptr;
  int64_t* index = nullptr;
  T* second = nullptr;
};

template <typename V>
struct Top {
  V best, second;
};

// As wide as a register of the processor: comparisons of wider vectors are compiled lane by lane.
template <typename T, int64_t kBytes>
struct Vector {
  using Number = T;
  static constexpr int64_t kLanes = kBytes / sizeof(T);
  typedef T Type __attribute__((vector_size(kBytes)));

  static MATCHLIB_INLINE Type load(const T* from) {
    Type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static MATCHLIB_INLINE void store(T* to, Type value) { std::memcpy(to, &value, sizeof(value)); }
};

// Of numbers, or lane by lane of vectors. NaN as `value` loses: `smaller` keeps it for `larger` to drop.
template <typename V>
MATCHLIB_INLINE V larger(V value, V best) {
  return value > best ? value : best;
}
template <typename V>
MATCHLIB_INLINE V smaller(V value, V best) {
  return best < value ? best : value;
}
template <bool kSecond, typename V>
MATCHLIB_INLINE void compete(V value, Top<V>& top) {
  if constexpr (kSecond) top.second = larger(smaller(value, top.best), top.second);
  top.best = larger(value, top.best);
}

template <typename V, bool kSecond, typename T = typename V::Number>
MATCHLIB_INLINE Top<T> fold_lanes(const Top<typename V::Type>& lanes) {
  constexpr int64_t kLanes = V::kLanes;
  if constexpr (!kSecond) {
    Top<T> top{lanes.best[0], kNothing<T>};
    for (int64_t lane = 1; lane < kLanes; ++lane) compete<false, T>(lanes.best[lane], top);
    return top;
  }
  T best[kLanes], second[kLanes];
  V::store(best, lanes.best);
  V::store(second, lanes.second);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) {
      const T loser = smaller(best[lane + width], best[lane]);
      best[lane] = larger(best[lane + width], best[lane]);
      second[lane] = larger(loser, larger(second[lane + width], second[lane]));
    }
  }
  return {best[0], second[0]};
}

// One row of a strip: lets it compete in the columns, if wanted, and returns the row's own top.
template <typename V, Level kLevel, typename T = typename V::Number>
MATCHLIB_INLINE Top<T> scan_row(const T* values, int64_t n, T* column_max, T* column_second) {
  constexpr bool kRowSecond = kLevel >= kRowSeconds, kColumnSecond = kLevel >= kColumnSeconds;
  const auto nothing = kNothing<T> - typename V::Type{};
  Top<typename V::Type> lanes[2] = {{nothing, nothing}, {nothing, nothing}};  // two: a maximum takes several cycles
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = i + half * V::kLanes;
      const auto value = V::load(values + at);
      compete<kRowSecond>(value, lanes[half]);
      if constexpr (kLevel >= kColumns) {
        Top<typename V::Type> column{V::load(column_max + at), nothing};
        if constexpr (kColumnSecond) column.second = V::load(column_second + at);
        compete<kColumnSecond>(value, column);
        V::store(column_max + at, column.best);
        if constexpr (kColumnSecond) V::store(column_second + at, column.second);
      }
    }
  }
  compete<kRowSecond>(lanes[1].best, lanes[0]);
  if constexpr (kRowSecond) lanes[0].second = larger(lanes[1].second, lanes[0].second);
  auto row = fold_lanes<V, kRowSecond>(lanes[0]);
  for (; i < n; ++i) {
    compete<kRowSecond>(values[i], row);
    if constexpr (kColumnSecond) column_second[i] = larger(smaller(values[i], column_max[i]), column_second[i]);
    if constexpr (kLevel >= kColumns) column_max[i] = larger(values[i], column_max[i]);
  }
  return row;
}

// Columns [from, to) of all rows: updates the columns' best and leaves the rows' maxima of this strip in row_value,
// their seconds in row_second.
template <typename V, Level kLevel, typename T = typename V::Number>
MATCHLIB_INLINE void scan_strip(const Tile<T>& tile, int64_t from, int64_t to, T* row_value, T* row_second,
                                const Best<T>& column) {
  T column_max[kStrip];
  T* column_second = kLevel >= kColumnSeconds ? column.second + from : nullptr;
  for (int64_t top = 0; top < tile.rows; top += kGroup) {
    const int64_t bottom = std::min(top + kGroup, tile.rows);
    std::fill(column_max, column_max + kStrip, kNothing<T>);
    for (int64_t row = top; row < bottom; ++row) {
      const T* values = tile.scores + row * tile.columns + from;
      const auto found = scan_row<V, kLevel>(values, to - from, column_max, column_second);
      row_value[row] = found.best;
      if constexpr (kLevel >= kRowSeconds) row_second[row] = found.second;
    }
    if constexpr (kLevel == kRows) continue;
    if constexpr (kLevel >= kColumnSeconds) {
      for (int64_t i = from; i < to; ++i) {
        column.second[i] = larger(smaller(column_max[i - from], column.value[i]), column.second[i]);
      }
    }
    for (int64_t i = from; i < to; ++i) {
      if (!(column_max[i - from] > column.value[i])) continue;
      column.value[i] = column_max[i - from];
      int64_t row = top;
      while (tile.scores[row * tile.columns + i] != column.value[i]) ++row;
      column.index[i] = tile.first_row + row;
    }
  }
}

template <typename V, typename T = typename V::Number>
MATCHLIB_INLINE void scan(Level level, const Tile<T>& tile, int64_t from, int64_t to, T* row_value, T* row_second,
                          const Best<T>& column) {
  switch (level) {
    case kRows:
      return scan_strip<V, kRows>(tile, from, to, row_value, row_second, column);
    case kColumns:
      return scan_strip<V, kColumns>(tile, from, to, row_value, row_second, column);
    case kRowSeconds:
      return scan_strip<V, kRowSeconds>(tile, from, to, row_value, row_second, column);
    case kColumnSeconds:
      return scan_strip<V, kColumnSeconds>(tile, from, to, row_value, row_second, column);
  }
}

template <typename T>
using Scan = void (*)(Level, const Tile<T>&, int64_t, int64_t, T*, T*, const Best<T>&);

#if MATCHLIB_X86
template <typename T>
__attribute__((target("arch=x86-64-v4"))) void scan512(Level level, const Tile<T>& tile, int64_t from, int64_t to,
                                                       T* row_value, T* row_second, const Best<T>& column) {
  scan<Vector<T, 64>>(level, tile, from, to, row_value, row_second, column);
}
template <typename T>
__attribute__((target("arch=x86-64-v3"))) void scan256(Level level, const Tile<T>& tile, int64_t from, int64_t to,
                                                       T* row_value, T* row_second, const Best<T>& column) {
  scan<Vector<T, 32>>(level, tile, from, to, row_value, row_second, column);
}
#endif
template <typename T>
void scan128(Level level, const Tile<T>& tile, int64_t from, int64_t to, T* row_value, T* row_second,
             const Best<T>& column) {
  scan<Vector<T, 16>>(level, tile, from, to, row_value, row_second, column);
}

template <typename T>
Scan<T> best_scan() {
#if MATCHLIB_X86
  if (__builtin_cpu_supports("x86-64-v4")) return scan512<T>;
  if (__builtin_cpu_supports("x86-64-v3")) return scan256<T>;
#endif
  return scan128<T>;
}

// Lets what the strips found for the tile's rows compete with the tiles before.
template <typename T>
void merge_rows(const Tile<T>& tile, const std::vector<T>& strip_value, const std::vector<T>& strip_second,
                const Best<T>& rows) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    int64_t winner = -1;
    for (int64_t strip = 0; strip * kStrip < tile.columns; ++strip) {
      const T value = strip_value[strip * tile.rows + row];
      if (rows.second != nullptr) {
        const T loser = smaller(value, rows.value[row]);
        rows.second[row] = std::max({rows.second[row], strip_second[strip * tile.rows + row], loser});
      }
      if (value > rows.value[row]) {  // ascending and strictly greater: the lowest index stays
        rows.value[row] = value;
        winner = strip;
      }
    }
    if (winner < 0) continue;
    const T* values = tile.scores + row * tile.columns;
    const T* found = std::find(values + winner * kStrip, values + tile.columns, rows.value[row]);
    rows.index[row] = tile.first_column + (found - values);
  }
}

template <typename T>
Best<T> best_from(int64_t first, const Tensor& value, const Tensor& index, const Tensor& second) {
  return {value.mutable_data_ptr<T>() + first, index.mutable_data_ptr<int64_t>() + first,
          second.numel() > 0 ? second.mutable_data_ptr<T>() + first : nullptr};
}

template <typename T>
void update(const Tensor& scores, int64_t first_row, int64_t first_column, const Best<T>& rows,
            const Best<T>& columns) {
  const Tile<T> tile{scores.const_data_ptr<T>(), scores.size(0), scores.size(1), first_row, first_column};
  const Level level = columns.second != nullptr  ? kColumnSeconds
                      : rows.second != nullptr   ? kRowSeconds
                      : columns.value != nullptr ? kColumns
                                                 : kRows;
  const Scan<T> scan_columns = best_scan<T>();
  const int64_t strips = (tile.columns + kStrip - 1) / kStrip;
  std::vector<T> strip_value(strips * tile.rows);
  std::vector<T> strip_second(rows.second != nullptr ? strips * tile.rows : 0);
  torch::stable::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      T* second = rows.second != nullptr ? strip_second.data() + strip * tile.rows : nullptr;
      scan_columns(level, tile, strip * kStrip, std::min((strip + 1) * kStrip, tile.columns),
                   strip_value.data() + strip * tile.rows, second, columns);
    }
  });
  merge_rows(tile, strip_value, strip_second, rows);
}

void check_best(const Tensor& tile, int64_t first, int64_t count, const Tensor& value, const Tensor& index,
                const Tensor& second) {
  check_like(value, tile, "best value");
  check_like(second, tile, "second value");
  STD_TORCH_CHECK(index.is_contiguous() && index.scalar_type() == torch::headeronly::ScalarType::Long,
                  "best index: expected contiguous int64");
  STD_TORCH_CHECK(value.numel() == index.numel() && first >= 0 && first + count <= value.numel(),
                  "nearest: the tile lies outside of the result");
  STD_TORCH_CHECK(second.numel() == 0 || second.numel() == value.numel(),
                  "second value: expected as many as best values, or none");
}

template <typename T>
void run(const Tensor& tile, int64_t first_row, int64_t first_column, const Tensor& row_value,
         const Tensor& row_index, const Tensor& row_second, const Tensor& column_value,
         const Tensor& column_index, const Tensor& column_second) {
  const auto rows = best_from<T>(first_row, row_value, row_index, row_second);
  const auto columns = column_value.numel() > 0
                           ? best_from<T>(first_column, column_value, column_index, column_second)
                           : Best<T>{};
  update(tile, first_row, first_column, rows, columns);
}

void nearest_update(Tensor tile, int64_t first_row, int64_t first_column, Tensor row_value, Tensor row_index,
                    Tensor row_second, Tensor column_value, Tensor column_index, Tensor column_second) {
  const auto dtype = tile.scalar_type();
  STD_TORCH_CHECK(dtype == torch::headeronly::ScalarType::Float || dtype == torch::headeronly::ScalarType::Double,
                  "tile: expected float32 or float64");
  STD_TORCH_CHECK(tile.dim() == 2, "tile: expected a matrix");
  check_like(tile, tile, "tile");
  check_best(tile, first_row, tile.size(0), row_value, row_index, row_second);
  if (column_value.numel() > 0) {
    check_best(tile, first_column, tile.size(1), column_value, column_index, column_second);
  }
  STD_TORCH_CHECK(column_value.numel() > 0 || row_second.numel() == 0,
                  "nearest: seconds of rows come with the best of columns only");
  STD_TORCH_CHECK(row_second.numel() > 0 || column_second.numel() == 0,
                  "nearest: seconds of columns come with those of rows only");
  const auto update = dtype == torch::headeronly::ScalarType::Double ? run<double> : run<float>;
  update(tile, first_row, first_column, row_value, row_index, row_second, column_value, column_index,
         column_second);
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CPU, m) {
  m.impl("nearest_update", TORCH_BOX(&matchlib::nearest_update));
}
