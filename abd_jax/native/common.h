// What every kernel here stands on: vectors, the places of windows in padded images, and the threads that share a batch.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#ifdef __AVX512F__
constexpr int kLanes = 16;  // 32 registers of 16
#else
constexpr int kLanes = 8;  // 16 registers of 8, or what the compiler makes of them
#endif

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
// begun, since all of them might be waiting here. What `work` throws is thrown here, when all have ended.
template <typename Work>
void parallel_for(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Progress {
    std::atomic<int64_t> begun{0}, ended{0};
    std::mutex mutex;
    std::condition_variable all_ended;
    std::exception_ptr thrown;
  };
  auto progress = std::make_shared<Progress>();
  auto run = [progress, count, &work] {  // `work` is looked at only while the caller waits for its end
    for (int64_t i; (i = progress->begun.fetch_add(1)) < count;) {
      try {
        work(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(progress->mutex);
        progress->thrown = std::current_exception();
      }
      if (progress->ended.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(progress->mutex);
        progress->all_ended.notify_all();
      }
    }
  };
  try {
    for (int64_t i = 1; i < std::min(count, pool.num_threads()); ++i) pool.Schedule(decltype(run)(run));
  } catch (const std::bad_alloc&) {  // the work is done by those that were asked
  }
  run();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_ended.wait(lock, [&] { return progress->ended.load() == count; });
  if (progress->thrown) std::rethrow_exception(progress->thrown);
}

}  // namespace
