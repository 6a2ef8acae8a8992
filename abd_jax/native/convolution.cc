// Convolutions of NHWC images with HWIO kernels, and the gradients of the kernels, called through XLA's FFI.
//
// Within a row of the window, columns and channels are contiguous in the image and in the kernel alike, so both loops
// run over `taps`, their product. Features are the vector axis. A block of sums stays in registers: pixels by features
// forwards, taps by features for the gradient.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#ifdef __AVX512F__
constexpr int kLanes = 16;  // 32 registers of 16
#else
constexpr int kLanes = 8;  // 16 registers of 8, or what the compiler makes of them
#endif
extern "C" const int abd_lanes = kLanes;

namespace {

constexpr int kPixels = kLanes / 2;        // of a block of 2 vectors of features: 16 sums, or 8
constexpr int kSums = kLanes == 16 ? 24 : 12;  // of a block of taps and vectors

// Small enough to be unrolled whole, which is what keeps a block in registers.
#define UNROLLED _Pragma("GCC unroll 32") for

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));

inline Vector load(const float* at) { return *reinterpret_cast<const Vector*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<Vector*>(at) = value; }

struct Geometry {
  int64_t images, height, width, channels;
  int64_t kernel_height, kernel_width, features;
  int64_t out_height, out_width, stride;
  int64_t top, left, padded_height, padded_width;

  Geometry(ffi::Span<const int64_t> images, int64_t kernel_height, int64_t kernel_width, ffi::Span<const int64_t> out,
           int64_t stride, int64_t top, int64_t left)
      : images(images[0]), height(images[1]), width(images[2]), channels(images[3]),
        kernel_height(kernel_height), kernel_width(kernel_width), features(out[3]),
        out_height(out[1]), out_width(out[2]), stride(stride), top(top), left(left),
        padded_height((out_height - 1) * stride + kernel_height),
        padded_width((out_width - 1) * stride + kernel_width) {}

  int64_t image_size() const { return height * width * channels; }
  int64_t padded_row() const { return padded_width * channels; }
  int64_t padded_size() const { return padded_height * padded_row(); }
  int64_t pixels() const { return out_height * out_width; }  // of the result, an image
  int64_t taps() const { return kernel_width * channels; }

  // How many images are worked on at a time: one, or as many as have pixels enough to fill the registers and to be
  // worth the way to the sums and back.
  int64_t group() const { return std::min(images, (255 + pixels()) / pixels()); }

  // Into how many parts the images are divided: as many on every machine, so that no sum depends on its cores.
  int64_t chunks() const { return std::clamp<int64_t>(images * pixels() / 512, 1, std::min<int64_t>(images, 16)); }

  // Where the window of each pixel of the result begins in a group of padded images.
  std::vector<int64_t> windows() const {
    std::vector<int64_t> at;
    for (int64_t image = 0; image < group(); ++image)
      for (int64_t row = 0; row < out_height; ++row)
        for (int64_t column = 0; column < out_width; ++column)
          at.push_back(image * padded_size() + stride * (row * padded_row() + column * channels));
    return at;
  }

  // An image within its border of zeros, which is never written; what no window reaches is left out.
  void pad(const float* image, float* padded) const {
    const int64_t rows = std::min(height, padded_height - top), columns = std::min(width, padded_width - left);
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(padded + (top + row) * padded_row() + left * channels, image + row * width * channels,
                  columns * channels * sizeof(float));
  }

  // work(first image, pixels, padded images) for each group of a chunk.
  template <typename Work>
  void for_each_group(int64_t chunk, const float* from, const Work& work) const {
    std::vector<float> padded(group() * padded_size());
    const int64_t end = images * (chunk + 1) / chunks();
    for (int64_t first = images * chunk / chunks(); first < end; first += group()) {
      const int64_t count = std::min(group(), end - first);
      for (int64_t i = 0; i < count; ++i) pad(from + (first + i) * image_size(), padded.data() + i * padded_size());
      work(first, count * pixels(), padded.data());
    }
  }
};

// work(0), ..., work(count - 1), on this thread and on those of the pool that are free: it waits for none that has not
// begun, since all of them might be waiting here.
template <typename Work>
void parallel_for(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Progress {
    std::atomic<int64_t> begun{0}, ended{0};
    std::mutex mutex;
    std::condition_variable all_ended;
  };
  auto progress = std::make_shared<Progress>();
  auto run = [progress, count, &work] {  // `work` is looked at only while the caller waits for its end
    for (int64_t i; (i = progress->begun.fetch_add(1)) < count;) {
      work(i);
      if (progress->ended.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(progress->mutex);
        progress->all_ended.notify_all();
      }
    }
  };
  for (int64_t i = 1; i < std::min(count, pool.num_threads()); ++i) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_ended.wait(lock, [&] { return progress->ended.load() == count; });
}

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
  const auto windows = g.windows();
  const float *from = images.typed_data(), *weights = kernel.typed_data();
  float* to = out->typed_data();
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
  const auto windows = g.windows();
  const float *from = images.typed_data(), *gradients = upstream.typed_data();
  float* to = out->typed_data();
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
