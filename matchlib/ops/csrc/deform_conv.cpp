// Modulated deformable convolution on the CPU: sampling to columns and back. The products are the caller's.
//
// The input is channels-last, so a tap reads four runs of channels, vectorised over channels. Results do not depend
// on the number of threads: forward and the gradients of offset and mask are independent per position; of the
// gradient of the input each thread owns some channels of some rows and adds to them in the order of the positions.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "simd.h"

namespace matchlib {
namespace {

constexpr int64_t kPositionsPerTask = 16;
constexpr int64_t kChannelsPerTask = 16;  // a cache line of float

template <typename T>
MATCHLIB_INLINE void sample_rows(const Shape& s, const T* __restrict input, const T* offset, const T* mask,
                                 T* __restrict columns, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < s.taps(); ++k) {
      T* __restrict out = columns + (row * s.taps() + k) * s.channels;
      const Tap<T> tap = locate(s, offset, s.first + row, k);
      if (!tap.inside) {
        std::fill(out, out + s.channels, T(0));
        continue;
      }
      const T m = mask[k * s.map() + s.first + row];
      const T a = m * tap.weight[0], b = m * tap.weight[1], c = m * tap.weight[2], d = m * tap.weight[3];
      const T *v0 = input + tap.pixel[0] * s.channels, *v1 = input + tap.pixel[1] * s.channels,
              *v2 = input + tap.pixel[2] * s.channels, *v3 = input + tap.pixel[3] * s.channels;
      for (int64_t i = 0; i < s.channels; ++i) out[i] = a * v0[i] + b * v1[i] + c * v2[i] + d * v3[i];
    }
  }
}

// One corner's share of the input gradient: where it goes and how much of grad_columns it takes.
template <typename T>
struct Share {
  int64_t pixel[4];
  T weight[4];
};

template <typename T>
MATCHLIB_INLINE void differentiate_rows(const Shape& s, const T* __restrict grad_columns, const T* __restrict input,
                                        const T* offset, const T* mask, T* __restrict columns,
                                        T* __restrict grad_offset, T* __restrict grad_mask, Share<T>* shares,
                                        int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < s.taps(); ++k) {
      const int64_t at = (row * s.taps() + k) * s.channels, p = s.first + row;
      const Tap<T> tap = locate(s, offset, p, k);
      const T m = mask[k * s.map() + p];
      const T a = m * tap.weight[0], b = m * tap.weight[1], c = m * tap.weight[2], d = m * tap.weight[3];
      Share<T>& share = shares[row * s.taps() + k];
      share = {{tap.pixel[0], tap.pixel[1], tap.pixel[2], tap.pixel[3]}, {a, b, c, d}};
      T dot0 = 0, dot1 = 0, dot2 = 0, dot3 = 0;
      if (tap.inside) {
        const T *g = grad_columns + at, *v0 = input + tap.pixel[0] * s.channels,
                *v1 = input + tap.pixel[1] * s.channels, *v2 = input + tap.pixel[2] * s.channels,
                *v3 = input + tap.pixel[3] * s.channels;
        T* __restrict out = columns + at;
#pragma omp simd reduction(+ : dot0, dot1, dot2, dot3)
        for (int64_t i = 0; i < s.channels; ++i) {
          out[i] = a * v0[i] + b * v1[i] + c * v2[i] + d * v3[i];
          dot0 += g[i] * v0[i];
          dot1 += g[i] * v1[i];
          dot2 += g[i] * v2[i];
          dot3 += g[i] * v3[i];
        }
      } else {
        share.pixel[0] = -1;
        std::fill(columns + at, columns + at + s.channels, T(0));
      }
      const T dots[4] = {dot0, dot1, dot2, dot3};
      T along_mask = 0, along_y = 0, along_x = 0;
      for (int i = 0; i < 4; ++i) {
        along_mask += tap.weight[i] * dots[i];
        along_y += tap.slope_y[i] * dots[i];
        along_x += tap.slope_x[i] * dots[i];
      }
      grad_mask[k * s.map() + p] = along_mask;
      grad_offset[2 * k * s.map() + p] = m * along_y;
      grad_offset[(2 * k + 1) * s.map() + p] = m * along_x;
    }
  }
}

// Adds to the channels [from, to) of the input pixels [first_pixel, end_pixel).
template <typename T>
MATCHLIB_INLINE void scatter(const Shape& s, const T* __restrict grad_columns, const Share<T>* shares,
                             T* __restrict grad_input, int64_t from, int64_t to, int64_t first_pixel,
                             int64_t end_pixel) {
  for (int64_t tap = 0; tap < s.positions * s.taps(); ++tap) {
    const Share<T>& share = shares[tap];
    if (share.pixel[0] < 0) continue;
    const T* __restrict g = grad_columns + tap * s.channels;
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t pixel = share.pixel[corner];
      const T weight = share.weight[corner];
      if (pixel < first_pixel || pixel >= end_pixel || weight == 0) continue;
      T* __restrict out = grad_input + pixel * s.channels;
      for (int64_t i = from; i < to; ++i) out[i] += weight * g[i];
    }
  }
}

#define MATCHLIB_INSTANTIATE(T)                                                                                   \
  MATCHLIB_CLONES void run_sample(const Shape& s, const T* input, const T* offset, const T* mask, T* columns,     \
                                  int64_t begin, int64_t end) {                                                   \
    sample_rows(s, input, offset, mask, columns, begin, end);                                                     \
  }                                                                                                               \
  MATCHLIB_CLONES void run_differentiate(const Shape& s, const T* grad_columns, const T* input, const T* offset,  \
                                         const T* mask, T* columns, T* grad_offset, T* grad_mask,                 \
                                         Share<T>* shares, int64_t begin, int64_t end) {                          \
    differentiate_rows(s, grad_columns, input, offset, mask, columns, grad_offset, grad_mask, shares, begin, end);\
  }                                                                                                               \
  MATCHLIB_CLONES void run_scatter(const Shape& s, const T* grad_columns, const Share<T>* shares, T* grad_input,  \
                                   int64_t from, int64_t to, int64_t first_pixel, int64_t end_pixel) {            \
    scatter(s, grad_columns, shares, grad_input, from, to, first_pixel, end_pixel);                               \
  }
MATCHLIB_INSTANTIATE(float)
MATCHLIB_INSTANTIATE(double)
#undef MATCHLIB_INSTANTIATE

template <typename T>
void im2col(const Shape& s, const Tensor& input, const Tensor& offset, const Tensor& mask, const Tensor& columns) {
  const T *in = input.const_data_ptr<T>(), *off = offset.const_data_ptr<T>(), *m = mask.const_data_ptr<T>();
  T* out = columns.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, s.positions, kPositionsPerTask, [&](int64_t begin, int64_t end) {
    run_sample(s, in, off, m, out, begin, end);
  });
}

template <typename T>
void col2im(const Shape& s, const Tensor& grad_columns, const Tensor& input, const Tensor& offset,
            const Tensor& mask, const Tensor& columns, const Tensor& grad_input, const Tensor& grad_offset,
            const Tensor& grad_mask) {
  const T *g = grad_columns.const_data_ptr<T>(), *in = input.const_data_ptr<T>(),
          *off = offset.const_data_ptr<T>(), *m = mask.const_data_ptr<T>();
  T *out = columns.mutable_data_ptr<T>(), *g_in = grad_input.mutable_data_ptr<T>(),
    *g_off = grad_offset.mutable_data_ptr<T>(), *g_m = grad_mask.mutable_data_ptr<T>();
  std::vector<Share<T>> shares(s.positions * s.taps());
  torch::stable::parallel_for(0, s.positions, kPositionsPerTask, [&](int64_t begin, int64_t end) {
    run_differentiate(s, g, in, off, m, out, g_off, g_m, shares.data(), begin, end);
  });
  // Enough owners for all threads: first by channels, which costs nothing, then by bands of pixels.
  const int64_t threads = torch::stable::get_num_threads(), pixels = s.height * s.width;
  const int64_t groups = std::max<int64_t>(1, std::min(threads, s.channels / kChannelsPerTask));
  const int64_t bands = std::min(pixels, (threads + groups - 1) / groups);
  torch::stable::parallel_for(0, groups * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t owner = begin; owner < end; ++owner) {
      const int64_t group = owner % groups, band = owner / groups;
      const auto border = [&](int64_t i) {
        return i == groups ? s.channels : s.channels * i / groups / kChannelsPerTask * kChannelsPerTask;
      };
      run_scatter(s, g, shares.data(), g_in, border(group), border(group + 1), pixels * band / bands,
                  pixels * (band + 1) / bands);
    }
  });
}

void deform_im2col(Tensor input, Tensor offset, Tensor mask, int64_t kernel_height, int64_t kernel_width,
                   int64_t stride, int64_t padding, int64_t dilation, int64_t first, int64_t /*cuda_stream*/,
                   Tensor columns) {
  const Shape s = check_problem(input, offset, mask, columns, kernel_height, kernel_width, stride, padding,
                                dilation, first);
  if (input.scalar_type() == torch::headeronly::ScalarType::Double) {
    im2col<double>(s, input, offset, mask, columns);
  } else {
    im2col<float>(s, input, offset, mask, columns);
  }
}

void deform_col2im(Tensor grad_columns, Tensor input, Tensor offset, Tensor mask, int64_t kernel_height,
                   int64_t kernel_width, int64_t stride, int64_t padding, int64_t dilation, int64_t first,
                   int64_t /*cuda_stream*/, Tensor columns, Tensor grad_input, Tensor grad_offset,
                   Tensor grad_mask) {
  const Shape s = check_problem(input, offset, mask, columns, kernel_height, kernel_width, stride, padding,
                                dilation, first);
  check_gradients(s, input, grad_columns, grad_input, grad_offset, grad_mask);
  if (input.scalar_type() == torch::headeronly::ScalarType::Double) {
    col2im<double>(s, grad_columns, input, offset, mask, columns, grad_input, grad_offset, grad_mask);
  } else {
    col2im<float>(s, grad_columns, input, offset, mask, columns, grad_input, grad_offset, grad_mask);
  }
}

}  // namespace
}  // namespace matchlib

STABLE_TORCH_LIBRARY_IMPL(matchlib_native, CPU, m) {
  m.impl("deform_im2col", TORCH_BOX(&matchlib::deform_im2col));
  m.impl("deform_col2im", TORCH_BOX(&matchlib::deform_col2im));
}
