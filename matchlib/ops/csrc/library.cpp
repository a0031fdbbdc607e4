// The operators of the extension. Everything goes through torch's stable ABI: one binary serves torch >= 2.10.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(matchlib_native, m) {
  // Samples the taps of output positions first .. first + P of one image: columns (P, K * C).
  // `stream` is the CUDA stream's handle, unused on CPU.
  m.def(
      "deform_im2col(Tensor input, Tensor offset, Tensor mask, int kernel_height, int kernel_width, int stride, "
      "int padding, int dilation, int first, int cuda_stream, Tensor(a!) columns) -> ()");
  // The way back: adds to grad_input, writes the positions' grad_offset and grad_mask, and the columns again.
  m.def(
      "deform_col2im(Tensor grad_columns, Tensor input, Tensor offset, Tensor mask, int kernel_height, "
      "int kernel_width, int stride, int padding, int dilation, int first, int cuda_stream, Tensor(a!) columns, "
      "Tensor(b!) grad_input, Tensor(c!) grad_offset, Tensor(d!) grad_mask) -> ()");
  // Lets the rows and columns of a tile of similarities compete with the best and second of the tiles before. What is
  // not wanted is an empty tensor: the seconds of the columns, also those of the rows, also the best of the columns.
  m.def(
      "nearest_update(Tensor tile, int first_row, int first_column, Tensor(a!) row_value, Tensor(b!) row_index, "
      "Tensor(c!) row_second, Tensor(d!) column_value, Tensor(e!) column_index, Tensor(f!) column_second) -> ()");
  // Names for each query of an image the best of the image's cells outside of its discs; see mining.h.
  m.def(
      "hardest_cells(Tensor queries, Tensor candidates, Tensor cells, Tensor first_cell, Tensor centres, "
      "Tensor radii_sq, Tensor reach, int cuda_stream, Tensor(a!) index, Tensor(b!) similarity) -> ()");
  // Products of queries (B, N, D) with maps (B, H, W, D) read between cells at positions (B, N, K, 2); see
  // sampled_similarity.h.
  m.def(
      "sampled_similarity(Tensor queries, Tensor maps, Tensor positions, bool zeros, int cuda_stream, "
      "Tensor(a!) similarity) -> ()");
  // On the CPU both gradients at once: writes grad_queries, adds to grad_maps.
  m.def(
      "sampled_similarity_backward(Tensor grad, Tensor queries, Tensor maps, Tensor positions, bool zeros, "
      "Tensor(a!) grad_queries, Tensor(b!) grad_maps) -> ()");
  // On CUDA in two steps. Writes grad_queries, and of each position's corners the cell, counted over all images, and
  // its weight.
  m.def(
      "sampled_similarity_shares(Tensor grad, Tensor queries, Tensor maps, Tensor positions, bool zeros, "
      "int cuda_stream, Tensor(a!) grad_queries, Tensor(b!) cells, Tensor(c!) weights) -> ()");
  // The second, after sorting: `order` lists the corners cell by cell, cell c's from first_corner[c] on.
  m.def(
      "sampled_similarity_gather(Tensor queries, Tensor weights, Tensor order, Tensor first_corner, "
      "int cuda_stream, Tensor(a!) grad_maps) -> ()");
}
