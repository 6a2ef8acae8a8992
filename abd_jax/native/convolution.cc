// Convolutions of NHWC images with HWIO kernels, and the gradients of the kernels, called through XLA's FFI.
//
// Within a row of the window, columns and channels are contiguous in the image and in the kernel alike, so both loops
// run over `taps`, their product. Features are the vector axis. A block of sums stays in registers: pixels by features
// forwards, taps by features for the gradient.

#include "common.h"
#include "winograd.h"

extern "C" const int abd_lanes = kLanes;

namespace {

template <int Pixels, int Vectors>
inline void convolve_block(const Geometry& g, const float* padded, const int64_t* windows, const float* kernel,
                           float* out) {
  Vector sums[Pixels][Vectors] = {};
  const float* at[Pixels];
  UNROLLED (int p = 0; p < Pixels; ++p) at[p] = padded + windows[p];
  for (int64_t row = 0; row < g.kernel_height; ++row) {
    for (int64_t tap = 0; tap < g.taps(); ++tap, kernel += g.features) {
      Vector weights[Vectors];
      UNROLLED (int v = 0; v < Vectors; ++v) weights[v] = load(kernel + v * kLanes);
      UNROLLED (int p = 0; p < Pixels; ++p)
        UNROLLED (int v = 0; v < Vectors; ++v) sums[p][v] += at[p][tap] * weights[v];
    }
    UNROLLED (int p = 0; p < Pixels; ++p) at[p] += g.padded_row();
  }
  UNROLLED (int p = 0; p < Pixels; ++p)
    UNROLLED (int v = 0; v < Vectors; ++v) store(out + p * g.features + v * kLanes, sums[p][v]);
}

template <int Vectors>
void convolve_group(const Geometry& g, int64_t pixels, const float* padded, const int64_t* windows, const float* kernel,
                    float* out) {
  int64_t pixel = 0;
  for (; pixel + kPixels <= pixels; pixel += kPixels)
    convolve_block<kPixels, Vectors>(g, padded, windows + pixel, kernel, out + pixel * g.features);
  for (; pixel < pixels; ++pixel)
    convolve_block<1, Vectors>(g, padded, windows + pixel, kernel, out + pixel * g.features);
}

ffi::Error convolve(ffi::ThreadPool pool, int64_t stride, int64_t top, int64_t left, ffi::Buffer<ffi::F32> images,
                    ffi::Buffer<ffi::F32> kernel, ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = kernel.dimensions();
  const Geometry g(images.dimensions(), shape[0], shape[1], out->dimensions(), stride, top, left);
  const float *from = images.typed_data(), *weights = kernel.typed_data();
  float* to = out->typed_data();
  if (has_tiles(g)) {
    convolve_tiles(g, pool, from, weights, to);
    return ffi::Error::Success();
  }
  const auto windows = g.windows();
  parallel_for(pool, g.chunks(), [&](int64_t chunk) {
    g.for_each_group(chunk, from, [&](int64_t first, int64_t pixels, const float* padded) {
      float* its = to + first * g.pixels() * g.features;
      int64_t f = 0;
      for (; f + 2 * kLanes <= g.features; f += 2 * kLanes)
        convolve_group<2>(g, pixels, padded, windows.data(), weights + f, its + f);
      for (; f < g.features; f += kLanes) convolve_group<1>(g, pixels, padded, windows.data(), weights + f, its + f);
    });
  });
  return ffi::Error::Success();
}

template <int Taps, int Vectors>
inline void gradient_block(const Geometry& g, int64_t pixels, const float* padded, const int64_t* windows,
                           const float* upstream, float* out) {
  Vector sums[Taps][Vectors] = {};
  for (int64_t pixel = 0; pixel < pixels; ++pixel, upstream += g.features) {
    const float* at = padded + windows[pixel];
    Vector values[Vectors];
    UNROLLED (int v = 0; v < Vectors; ++v) values[v] = load(upstream + v * kLanes);
    UNROLLED (int t = 0; t < Taps; ++t)
      UNROLLED (int v = 0; v < Vectors; ++v) sums[t][v] += at[t] * values[v];
  }
  UNROLLED (int t = 0; t < Taps; ++t)
    UNROLLED (int v = 0; v < Vectors; ++v) {
      float* at = out + t * g.features + v * kLanes;
      store(at, load(at) + sums[t][v]);
    }
}

template <int Vectors>
void gradient_group(const Geometry& g, int64_t pixels, const float* padded, const int64_t* windows,
                    const float* upstream, float* out) {
  constexpr int kTaps = kSums / Vectors;
  for (int64_t row = 0; row < g.kernel_height; ++row, padded += g.padded_row()) {
    int64_t tap = 0;
    for (; tap + kTaps <= g.taps(); tap += kTaps, out += kTaps * g.features)
      gradient_block<kTaps, Vectors>(g, pixels, padded + tap, windows, upstream, out);
    for (; tap + 4 <= g.taps(); tap += 4, out += 4 * g.features)
      gradient_block<4, Vectors>(g, pixels, padded + tap, windows, upstream, out);
    for (; tap < g.taps(); ++tap, out += g.features)
      gradient_block<1, Vectors>(g, pixels, padded + tap, windows, upstream, out);
  }
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, int64_t stride, int64_t top, int64_t left,
                           ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> upstream,
                           ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = out->dimensions();
  const Geometry g(images.dimensions(), shape[0], shape[1], upstream.dimensions(), stride, top, left);
  const float *from = images.typed_data(), *gradients = upstream.typed_data();
  float* to = out->typed_data();
  if (has_tiles(g)) {
    kernel_gradient_of_tiles(g, pool, from, gradients, to);
    return ffi::Error::Success();
  }
  const auto windows = g.windows();
  const int64_t rows = g.kernel_height * g.taps(), size = rows * g.features;
  // The first chunk's sums are the result itself; those of the others are added to it.
  std::vector<float> others((g.chunks() - 1) * size);
  std::fill(to, to + size, 0.0f);
  const int64_t block = 2 * kLanes, blocks = (g.features + block - 1) / block;
  parallel_for(pool, g.chunks() * blocks, [&](int64_t item) {
    const int64_t chunk = item / blocks, f = item % blocks * block;
    float* sums = (chunk ? others.data() + (chunk - 1) * size : to) + f;
    g.for_each_group(chunk, from, [&](int64_t first, int64_t pixels, const float* padded) {
      const float* its = gradients + first * g.pixels() * g.features + f;
      if (f + block <= g.features)
        gradient_group<2>(g, pixels, padded, windows.data(), its, sums);
      else
        gradient_group<1>(g, pixels, padded, windows.data(), its, sums);
    });
  });
  parallel_for(pool, std::min<int64_t>(rows, 16), [&](int64_t part) {
    const int64_t parts = std::min<int64_t>(rows, 16);
    for (int64_t chunk = 1; chunk < g.chunks(); ++chunk)
      for (int64_t i = size * part / parts; i < size * (part + 1) / parts; ++i)
        to[i] += others[(chunk - 1) * size + i];
  });
  return ffi::Error::Success();
}

}  // namespace

#define SIGNATURE                                                                                              \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("stride").Attr<int64_t>("top").Attr<int64_t>("left")   \
      .Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(abd_convolve, convolve, SIGNATURE);
XLA_FFI_DEFINE_HANDLER_SYMBOL(abd_kernel_gradient, kernel_gradient, SIGNATURE);
