// The problem of hardest-negative mining as the C++ and CUDA kernels see it, and the arithmetic both share.
//
// A float32 product only preselects. Which candidate wins is decided by `exact_score`, in float64 and in a fixed
// order, so that every back end, whatever library or processor adds up its products, names the same one.
#pragma once

#include <cstdint>

#include "tap.h"

namespace matchlib {

struct MiningProblem {
  const float* queries;        // (batch, count, depth)
  const float* map;            // image b, element d, cell m: b * image_stride + d * depth_stride + m * cell_stride
  const int64_t* cells;        // linear indices y * width + x of the candidates, ascending within an image
  const int64_t* first_cell;   // (batch + 1): image b has cells[first_cell[b]] .. cells[first_cell[b + 1] - 1]
  const double* centres;       // (batch, count, discs, 2): x, y
  const double* radii_sq;      // (discs)
  const float* reach;          // (batch, count): bound on a score's rounding error over the candidate's length
  int64_t batch, count, depth, width, discs;
  int64_t image_stride, depth_stride, cell_stride;

  MATCHLIB_HOST_DEVICE const float* query(int64_t row) const { return queries + row * depth; }
  MATCHLIB_HOST_DEVICE const float* candidate(int64_t image, int64_t cell) const {
    return map + image * image_stride + cell * cell_stride;
  }
};

// Added to lengths and errors: what underflow may have taken from them.
constexpr float kTinyLength = 1e-18f, kTinyError = 1e-30f;

// x * x rounded to float64, never fused with a following addition: all back ends must agree at a disc's border.
MATCHLIB_HOST_DEVICE double rounded_square(double x) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(x, x);
#else
  const volatile double square = x * x;
  return square;
#endif
}

// `row` counts queries over all images. A centre at infinity excludes nothing.
MATCHLIB_HOST_DEVICE bool excluded(const MiningProblem& p, int64_t row, int64_t cell) {
  const double x = static_cast<double>(cell % p.width), y = static_cast<double>(cell / p.width);
  for (int64_t disc = 0; disc < p.discs; ++disc) {
    const double* centre = p.centres + 2 * (row * p.discs + disc);
    if (rounded_square(x - centre[0]) + rounded_square(y - centre[1]) < p.radii_sq[disc]) return true;
  }
  return false;
}

// The dot product in float64: eight interleaved sums, folded in halves. A product of two float32 is exact in
// float64, so it makes no difference whether the compiler fuses it with the addition.
MATCHLIB_HOST_DEVICE double exact_score(const MiningProblem& p, int64_t row, int64_t cell) {
  const float* query = p.query(row);
  const float* candidate = p.candidate(row / p.count, cell);
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (int64_t d = 0; d < p.depth; d += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      if (d + lane >= p.depth) break;
      const double factor = query[d + lane];
      sums[lane] += factor * static_cast<double>(candidate[(d + lane) * p.depth_stride]);
    }
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// The order of candidates: larger score first, then lower cell. `cell` < 0 is no candidate.
MATCHLIB_HOST_DEVICE bool precedes(double score, int64_t cell, double other_score, int64_t other_cell) {
  return other_cell < 0 || score > other_score || (score == other_score && cell < other_cell);
}

}  // namespace matchlib
