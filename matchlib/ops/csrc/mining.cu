// Hardest-negative mining on CUDA, in three launches; nothing of the size queries times candidates is stored.
//
// 1. `longest` finds each map's largest descriptor length, for the bound on rounding errors.
// 2. `preselect` multiplies 64 queries by a split of 1024 candidates, in full float32, and leaves of each query and
//    split the two best scores and the best cell.
// 3. `choose` gives a warp to each query. A split's best that comes within the error of the best of all is compared
//    exactly; where the second best does too, all of the split is, which is rare.
// No atomics decide anything, so the result does not depend on the order of blocks.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <algorithm>

#include "mining_checks.h"

namespace matchlib {
namespace {

constexpr int kLanes = 32, kThreads = 256;
constexpr int kQueries = 64, kColumns = 128, kDepth = 16;            // a tile and the slice of depth in shared memory
constexpr int kThreadQueries = 4, kThreadColumns = 8;                // of the tile, each thread's own
constexpr int kThreadsPerRow = kColumns / kThreadColumns;            // 16: half a warp shares its queries
constexpr int kSplit = 8 * kColumns;
constexpr int kNumbers = 3;                                          // of a partial result: best, second, cell
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr float kNothing = -3.402823466e38f;
static_assert(kThreads * kThreadQueries * kThreadColumns == kQueries * kColumns);

struct Best {
  float first, second;
  int cell;  // of `first`; maps have fewer than 2^31 cells

  __device__ void take(float score, int from) {
    if (score > first) {
      second = first, first = score, cell = from;
    } else if (score > second) {
      second = score;
    }
  }
  __device__ void merge(const Best& other) {
    take(other.first, other.cell);
    if (other.second > second) second = other.second;
  }
};

// Lengths are not negative, and such floats are ordered as their bits are.
__global__ void longest(MiningProblem p, int* length_bits) {
  const int64_t image = blockIdx.y, count = p.first_cell[image + 1] - p.first_cell[image];
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += int64_t(gridDim.x) * kThreads) {
    const float* candidate = p.candidate(image, p.cells[p.first_cell[image] + i]);
    float square = 0;
    for (int64_t d = 0; d < p.depth; ++d) square += candidate[d * p.depth_stride] * candidate[d * p.depth_stride];
    atomicMax(length_bits + image, __float_as_int(1.001f * sqrtf(square) + kTinyLength));
  }
}

// Loads one slice of depth of the tile; what lies beyond an end becomes zero, which adds nothing to a score.
template <bool kCellsFirst>
__device__ void load(const MiningProblem& p, int64_t image, int64_t first_query, const int64_t* cells, int64_t count,
                     int64_t depth, float (*queries)[kQueries + 1], float (*columns)[kColumns + 1]) {
  for (int i = threadIdx.x; i < kQueries * kDepth; i += kThreads) {
    const int d = i % kDepth, q = i / kDepth;
    const bool inside = first_query + q < p.count && depth + d < p.depth;
    queries[d][q] = inside ? p.query(image * p.count + first_query + q)[depth + d] : 0.0f;
  }
  for (int i = threadIdx.x; i < kColumns * kDepth; i += kThreads) {
    // Neighbouring threads read what is neighbouring in memory.
    const int d = kCellsFirst ? i / kColumns : i % kDepth, c = kCellsFirst ? i % kColumns : i / kDepth;
    const bool inside = c < count && depth + d < p.depth;
    columns[d][c] = inside ? p.candidate(image, cells[c])[(depth + d) * p.depth_stride] : 0.0f;
  }
}

template <bool kCellsFirst>
__global__ void __launch_bounds__(kThreads) preselect(MiningProblem p, int splits, float* partial) {
  __shared__ float queries[kDepth][kQueries + 1], columns[kDepth][kColumns + 1];
  const int64_t image = blockIdx.z, split = blockIdx.y, first_query = int64_t(blockIdx.x) * kQueries;
  const int64_t first = p.first_cell[image] + split * kSplit;
  const int64_t end = min(first + kSplit, p.first_cell[image + 1]);
  const int tx = threadIdx.x % kThreadsPerRow, ty = threadIdx.x / kThreadsPerRow;
  Best best[kThreadQueries];
  for (auto& b : best) b = {kNothing, kNothing, -1};
  for (int64_t tile = first; tile < end; tile += kColumns) {
    float sums[kThreadQueries][kThreadColumns] = {};
    for (int64_t depth = 0; depth < p.depth; depth += kDepth) {
      __syncthreads();  // until all have done with the slice before
      load<kCellsFirst>(p, image, first_query, p.cells + tile, end - tile, depth, queries, columns);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        float q[kThreadQueries], c[kThreadColumns];
#pragma unroll
        for (int i = 0; i < kThreadQueries; ++i) q[i] = queries[d][ty * kThreadQueries + i];
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) c[j] = columns[d][tx + j * kThreadsPerRow];
#pragma unroll
        for (int i = 0; i < kThreadQueries; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadColumns; ++j) sums[i][j] += q[i] * c[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadQueries; ++i) {
      const int64_t query = first_query + ty * kThreadQueries + i, row = image * p.count + query;
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) {
        const int64_t at = tile + tx + j * kThreadsPerRow;
        // Few scores get as far as the test of the discs.
        if (query >= p.count || at >= end || !(sums[i][j] > best[i].second)) continue;
        if (!excluded(p, row, p.cells[at])) best[i].take(sums[i][j], static_cast<int>(p.cells[at]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kThreadQueries; ++i) {
    for (int step = kThreadsPerRow / 2; step > 0; step /= 2) {
      best[i].merge({__shfl_xor_sync(0xffffffffu, best[i].first, step),
                     __shfl_xor_sync(0xffffffffu, best[i].second, step),
                     __shfl_xor_sync(0xffffffffu, best[i].cell, step)});
    }
    const int64_t query = first_query + ty * kThreadQueries + i;
    if (tx != 0 || query >= p.count) continue;
    float* out = partial + ((image * p.count + query) * splits + split) * kNumbers;
    out[0] = best[i].first, out[1] = best[i].second, out[2] = __int_as_float(best[i].cell);
  }
}

__global__ void choose(MiningProblem p, int splits, const int* length_bits, const float* partial, int64_t* index,
                       double* similarity) {
  const int lane = threadIdx.x % kLanes;
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kLanes), rows = p.batch * p.count;
  for (int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; row < rows; row += warps) {
    const int64_t image = row / p.count;
    const float* parts = partial + row * splits * kNumbers;
    float most = kNothing;
    for (int split = lane; split < splits; split += kLanes) most = fmaxf(most, parts[split * kNumbers]);
    for (int step = kLanes / 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    const float error = p.reach[row] * __int_as_float(length_bits[image]) + kTinyError;
    const float floor = most - 2 * error;
    double score = 0;
    int64_t cell = -1;
    for (int split = 0; split < splits && most > kNothing; ++split) {
      const float* part = parts + split * kNumbers;
      if (!(part[0] >= floor)) continue;
      if (!(part[1] >= floor)) {
        const int64_t only = __float_as_int(part[2]);
        const double exact = exact_score(p, row, only);  // by all lanes alike
        if (precedes(exact, only, score, cell)) score = exact, cell = only;
        continue;
      }
      const int64_t first = p.first_cell[image] + int64_t(split) * kSplit;
      const int64_t end = min(first + kSplit, p.first_cell[image + 1]);
      for (int64_t at = first + lane; at < end; at += kLanes) {
        if (excluded(p, row, p.cells[at])) continue;
        const double exact = exact_score(p, row, p.cells[at]);
        if (precedes(exact, p.cells[at], score, cell)) score = exact, cell = p.cells[at];
      }
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const double other_score = __shfl_xor_sync(0xffffffffu, score, step);
      const int64_t other_cell = __shfl_xor_sync(0xffffffffu, static_cast<long long>(cell), step);
      if (other_cell >= 0 && precedes(other_score, other_cell, score, cell)) score = other_score, cell = other_cell;
    }
    if (lane != 0) continue;
    index[row] = cell;
    similarity[row] = cell < 0 ? -INFINITY : score;
  }
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "mining: launch failed: ", cudaGetErrorString(error));
}

unsigned blocks(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + per_block - 1) / per_block, 1, kMaxBlocks));
}

void hardest_cells(Tensor queries, Tensor candidates, Tensor cells, Tensor first_cell, Tensor centres, Tensor radii_sq,
                   Tensor reach, int64_t cuda_stream, Tensor index, Tensor similarity) {
  const MiningProblem p =
      check_mining(queries, candidates, cells, first_cell, centres, radii_sq, reach, index, similarity);
  const int64_t rows = p.batch * p.count, map = candidates.size(2) * candidates.size(3);
  if (rows == 0) return;
  const int64_t splits = (map + kSplit - 1) / kSplit, query_tiles = (p.count + kQueries - 1) / kQueries;
  STD_TORCH_CHECK(p.batch < kMaxBlocks && splits < kMaxBlocks && map < (int64_t(1) << 31),
                  "mining: expected fewer than 65536 images and maps of fewer than 2^26 cells");
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  const auto stream = reinterpret_cast<cudaStream_t>(cuda_stream);
  const Tensor partial = torch::stable::new_empty(queries, {rows * std::max<int64_t>(splits, 1) * kNumbers});
  const Tensor lengths = torch::stable::new_empty(queries, {p.batch});
  auto* bits = static_cast<int*>(lengths.mutable_data_ptr());
  STD_TORCH_CHECK(cudaMemsetAsync(bits, 0, p.batch * sizeof(int), stream) == cudaSuccess, "mining: cannot clear");
  if (splits > 0) {
    longest<<<dim3(blocks(map, kThreads), static_cast<unsigned>(p.batch)), kThreads, 0, stream>>>(p, bits);
    check_launch();
    const dim3 grid(static_cast<unsigned>(query_tiles), static_cast<unsigned>(splits), static_cast<unsigned>(p.batch));
    const auto kernel = p.cell_stride == 1 ? preselect<true> : preselect<false>;
    kernel<<<grid, kThreads, 0, stream>>>(p, static_cast<int>(splits), partial.mutable_data_ptr<float>());
    check_launch();
  }
  choose<<<blocks(rows, kThreads / kLanes), kThreads, 0, stream>>>(
      p, static_cast<int>(splits), bits, partial.const_data_ptr<float>(), index.mutable_data_ptr<int64_t>(),
      similarity.mutable_data_ptr<double>());
  check_launch();
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CUDA, m) { m.impl("hardest_cells", TORCH_BOX(&matchlib::hardest_cells)); }
