// Bilinear sampling of one tap of a deformable convolution; shared by the C++ and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MATCHLIB_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MATCHLIB_HOST_DEVICE inline
#endif

namespace matchlib {

// Sizes of one image's problem. Rows of `columns` are output positions, row-major, from `first` on.
struct Shape {
  int64_t channels, height, width;          // input (height, width, channels), channels fastest
  int64_t out_height, out_width;            // offset (2 * taps, out_height, out_width), mask (taps, ...)
  int64_t kernel_height, kernel_width;
  int64_t stride, padding, dilation;
  int64_t first, positions;

  MATCHLIB_HOST_DEVICE int64_t taps() const { return kernel_height * kernel_width; }
  MATCHLIB_HOST_DEVICE int64_t map() const { return out_height * out_width; }
};

// The four pixels around a sampling position with their weights and the weights' derivatives.
// Order: top left, top right, bottom left, bottom right. A pixel outside the map has index 0 and all weights 0.
template <typename T>
struct Tap {
  int64_t pixel[4];
  T weight[4], slope_y[4], slope_x[4];
  bool inside;  // false: nothing is sampled at all
};

template <typename T>
MATCHLIB_HOST_DEVICE Tap<T> locate(const Shape& s, const T* offset, int64_t position, int64_t k) {
  const T y = static_cast<T>(position / s.out_width * s.stride - s.padding + k / s.kernel_width * s.dilation) +
              offset[2 * k * s.map() + position];
  const T x = static_cast<T>(position % s.out_width * s.stride - s.padding + k % s.kernel_width * s.dilation) +
              offset[(2 * k + 1) * s.map() + position];
  Tap<T> tap{};
  tap.inside = !(y <= -1 || y >= s.height || x <= -1 || x >= s.width);
  if (!tap.inside) return tap;
  // A NaN position is "inside" so that it spreads to the output, as it does in the reference.
  const bool finite = y == y && x == x;
  const T floor_y = finite ? std::floor(y) : T(0), floor_x = finite ? std::floor(x) : T(0);
  const T down = y - floor_y, right = x - floor_x, up = 1 - down, left = 1 - right;
  const int64_t y0 = static_cast<int64_t>(floor_y), x0 = static_cast<int64_t>(floor_x);
  const T weight[4] = {up * left, up * right, down * left, down * right};
  const T slope_y[4] = {-left, -right, left, right};
  const T slope_x[4] = {-up, up, -down, down};
  for (int i = 0; i < 4; ++i) {
    const int64_t row = y0 + i / 2, column = x0 + i % 2;
    if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
    tap.pixel[i] = row * s.width + column;
    tap.weight[i] = weight[i];
    tap.slope_y[i] = slope_y[i];
    tap.slope_x[i] = slope_x[i];
  }
  return tap;
}

}  // namespace matchlib
