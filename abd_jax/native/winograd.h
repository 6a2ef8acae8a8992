// 3x3 convolutions of stride 1 in 16 products a 2x2 tile of the result where 36 are meant: F(2x2, 3x3) of Lavin and
// Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. With
//
//   B' = 1  0 -1  0    G = 1    0   0     A' = 1  1  1  0
//        0  1  1  0        1/2  1/2 1/2        0  1 -1 -1
//        0 -1  1  0        1/2 -1/2 1/2
//        0  1  0 -1        0    0   1
//
// a tile is A' [(G g G') * (B' d B)] A of the 4x4 window d, and the gradient of the kernel is
// G' [sum of (A y A') * (B' d B)] G over tiles y of the upstream: both are 16 matrix products, one a place of the 4x4.

#pragma once

#include "common.h"

namespace {

constexpr int kPlaces = 16;

// Whether it can be done this way; of more channels and features the kernel would no longer stay in the cache.
inline bool has_tiles(const Geometry& g) {
  return g.stride == 1 && g.kernel_height == 3 && g.kernel_width == 3 && g.out_height % 2 == 0 &&
         g.out_width % 2 == 0 && g.channels % kLanes == 0 && g.features % kLanes == 0 &&
         g.channels * g.features <= 128 * 128;
}

// Tiles that are worked on at a time: as many as the cache holds at every place, in whole blocks.
inline int64_t tiles_at_once(const Geometry& g) { return std::clamp<int64_t>(2048 / g.channels / 16 * 16, 16, 64); }

// From one place to the next: a line more than there is, or all places of a tile would fall on one set of the cache.
inline int64_t apart(int64_t tiles, int64_t width) { return tiles * width + kLanes; }

// Where the tiles of a group of images begin: in the padded images, and in the result.
struct Tiles {
  std::vector<int64_t> from, to;

  explicit Tiles(const Geometry& g) {
    for (int64_t image = 0; image < g.group(); ++image)
      for (int64_t row = 0; row < g.out_height; row += 2)
        for (int64_t column = 0; column < g.out_width; column += 2) {
          from.push_back(image * g.padded_size() + row * g.padded_row() + column * g.channels);
          to.push_back(((image * g.out_height + row) * g.out_width + column) * g.features);
        }
  }
};

// B' of four things a stride apart.
inline void window_transform(const Vector* in, Vector* out, int stride) {
  out[0] = in[0] - in[2 * stride];
  out[stride] = in[stride] + in[2 * stride];
  out[2 * stride] = in[2 * stride] - in[stride];
  out[3 * stride] = in[stride] - in[3 * stride];
}

// A of two.
inline void upstream_transform(const Vector* in, Vector* out, int stride) {
  out[0] = in[0];
  out[stride] = in[0] + in[stride];
  out[2 * stride] = in[0] - in[stride];
  out[3 * stride] = -in[stride];
}

// [place][tile][channels] of the windows of `count` tiles of at most `most`.
inline void transform_windows(const Geometry& g, const float* padded, const int64_t* from, int64_t count, int64_t most,
                              float* out) {
  for (int64_t tile = 0; tile < count; ++tile) {
    for (int64_t c = 0; c < g.channels; c += kLanes) {
      const float* at = padded + from[tile] + c;
      Vector window[16], half[16], whole[16];
      UNROLLED (int i = 0; i < 16; ++i) window[i] = load(at + i / 4 * g.padded_row() + i % 4 * g.channels);
      UNROLLED (int column = 0; column < 4; ++column) window_transform(window + column, half + column, 4);
      UNROLLED (int row = 0; row < 4; ++row) window_transform(half + 4 * row, whole + 4 * row, 1);
      UNROLLED (int i = 0; i < 16; ++i) store(out + i * apart(most, g.channels) + tile * g.channels + c, whole[i]);
    }
  }
}

// [place][tile][features] of the tiles of the upstream.
inline void transform_upstream(const Geometry& g, const float* upstream, const int64_t* to, int64_t count, int64_t most,
                               float* out) {
  const int64_t row_below = g.out_width * g.features;
  for (int64_t tile = 0; tile < count; ++tile) {
    for (int64_t f = 0; f < g.features; f += kLanes) {
      const float* at = upstream + to[tile] + f;
      Vector pixels[4], half[8], whole[16];
      UNROLLED (int i = 0; i < 4; ++i) pixels[i] = load(at + i / 2 * row_below + i % 2 * g.features);
      UNROLLED (int row = 0; row < 2; ++row) upstream_transform(pixels + 2 * row, half + 4 * row, 1);
      UNROLLED (int column = 0; column < 4; ++column) upstream_transform(half + column, whole + column, 4);
      UNROLLED (int i = 0; i < 16; ++i) store(out + i * apart(most, g.features) + tile * g.features + f, whole[i]);
    }
  }
}

// A' m A, written to the tile's four pixels.
inline void write_tiles(const Geometry& g, const float* places, const int64_t* to, int64_t count, int64_t most,
                        float* out) {
  const int64_t row_below = g.out_width * g.features;
  for (int64_t tile = 0; tile < count; ++tile) {
    for (int64_t f = 0; f < g.features; f += kLanes) {
      Vector m[16], above[4], below[4];
      UNROLLED (int i = 0; i < 16; ++i) m[i] = load(places + i * apart(most, g.features) + tile * g.features + f);
      UNROLLED (int column = 0; column < 4; ++column) {
        above[column] = m[column] + m[4 + column] + m[8 + column];
        below[column] = m[4 + column] - m[8 + column] - m[12 + column];
      }
      float* at = out + to[tile] + f;
      store(at, above[0] + above[1] + above[2]);
      store(at + g.features, above[1] - above[2] - above[3]);
      store(at + row_below, below[0] + below[1] + below[2]);
      store(at + row_below + g.features, below[1] - below[2] - below[3]);
    }
  }
}

// G g G': [place][channels][features] of a kernel [3][3][channels][features].
inline std::vector<float> transform_kernel(const Geometry& g, const float* kernel) {
  const int64_t size = g.channels * g.features;
  std::vector<float> out(kPlaces * size);
  for (int64_t at = 0; at < size; at += kLanes) {
    Vector taps[9], half[12], whole[16];
    UNROLLED (int i = 0; i < 9; ++i) taps[i] = load(kernel + i * size + at);
    const auto transform = [](const Vector* in, Vector* out, int stride, int out_stride) {
      const Vector ends = in[0] + in[2 * stride];
      out[0] = in[0];
      out[out_stride] = 0.5f * (ends + in[stride]);
      out[2 * out_stride] = 0.5f * (ends - in[stride]);
      out[3 * out_stride] = in[2 * stride];
    };
    UNROLLED (int column = 0; column < 3; ++column) transform(taps + column, half + column, 3, 3);
    UNROLLED (int row = 0; row < 4; ++row) transform(half + 3 * row, whole + 4 * row, 1, 1);
    UNROLLED (int i = 0; i < 16; ++i) store(out.data() + i * size + at, whole[i]);
  }
  return out;
}

// G' s G: [3][3][channels][features] of sums [place][channels][features], from `begin` to `end` of the last two.
inline void write_gradient(const float* sums, int64_t size, int64_t begin, int64_t end, float* out) {
  for (int64_t at = begin; at < end; at += kLanes) {
    Vector places[16], half[12], whole[9];
    UNROLLED (int i = 0; i < 16; ++i) places[i] = load(sums + i * size + at);
    const auto transform = [](const Vector* in, Vector* out, int stride, int out_stride) {
      const Vector both = 0.5f * (in[stride] + in[2 * stride]);
      out[0] = in[0] + both;
      out[out_stride] = 0.5f * (in[stride] - in[2 * stride]);
      out[2 * out_stride] = both + in[3 * stride];
    };
    UNROLLED (int column = 0; column < 4; ++column) transform(places + column, half + column, 4, 4);
    UNROLLED (int row = 0; row < 3; ++row) transform(half + 4 * row, whole + 3 * row, 1, 1);
    UNROLLED (int i = 0; i < 9; ++i) store(out + i * size + at, whole[i]);
  }
}

// Rows [tile][channels] times [channels][features], of a block of tiles and vectors of features.
template <int Rows, int Vectors>
inline void product_block(const Geometry& g, const float* rows, const float* kernel, float* out) {
  Vector sums[Rows][Vectors] = {};
  for (int64_t c = 0; c < g.channels; ++c, kernel += g.features) {
    Vector weights[Vectors];
    UNROLLED (int v = 0; v < Vectors; ++v) weights[v] = load(kernel + v * kLanes);
    UNROLLED (int r = 0; r < Rows; ++r)
      UNROLLED (int v = 0; v < Vectors; ++v) sums[r][v] += rows[r * g.channels + c] * weights[v];
  }
  UNROLLED (int r = 0; r < Rows; ++r)
    UNROLLED (int v = 0; v < Vectors; ++v) store(out + r * g.features + v * kLanes, sums[r][v]);
}

template <int Vectors>
inline void product(const Geometry& g, int64_t count, const float* rows, const float* kernel, float* out) {
  constexpr int kRows = 2 * kPixels / Vectors;
  for (int64_t row = 0; row < count; row += kRows)  // past the last tile too: there is room, and nobody looks
    product_block<kRows, Vectors>(g, rows + row * g.channels, kernel, out + row * g.features);
}

inline void convolve_tiles(const Geometry& g, ffi::ThreadPool& pool, const float* from, const float* kernel,
                           float* to) {
  const Tiles tiles(g);
  const auto weights = transform_kernel(g, kernel);
  const int64_t most = tiles_at_once(g);
  parallel_for(pool, g.chunks(), [&](int64_t chunk) {
    std::vector<float> windows(kPlaces * apart(most, g.channels)), places(kPlaces * apart(most, g.features));
    g.for_each_group(chunk, from, [&](int64_t first, int64_t pixels, const float* padded) {
      float* its = to + first * g.pixels() * g.features;
      for (int64_t begin = 0; begin < pixels / 4; begin += most) {
        const int64_t count = std::min(most, pixels / 4 - begin);
        transform_windows(g, padded, tiles.from.data() + begin, count, most, windows.data());
        for (int64_t place = 0; place < kPlaces; ++place) {
          const float* rows = windows.data() + place * apart(most, g.channels);
          const float* its_weights = weights.data() + place * g.channels * g.features;
          float* out = places.data() + place * apart(most, g.features);
          int64_t f = 0;
          for (; f + 2 * kLanes <= g.features; f += 2 * kLanes) product<2>(g, count, rows, its_weights + f, out + f);
          for (; f < g.features; f += kLanes) product<1>(g, count, rows, its_weights + f, out + f);
        }
        write_tiles(g, places.data(), tiles.to.data() + begin, count, most, its);
      }
    });
  });
}

// sums[channel][feature] += rows[tile][channel] * upstream[tile][feature], of a block of channels and vectors.
template <int Channels, int Vectors>
inline void outer_block(const Geometry& g, int64_t count, const float* rows, const float* upstream, float* sums) {
  Vector block[Channels][Vectors] = {};
  for (int64_t tile = 0; tile < count; ++tile, rows += g.channels, upstream += g.features) {
    Vector values[Vectors];
    UNROLLED (int v = 0; v < Vectors; ++v) values[v] = load(upstream + v * kLanes);
    UNROLLED (int c = 0; c < Channels; ++c)
      UNROLLED (int v = 0; v < Vectors; ++v) block[c][v] += rows[c] * values[v];
  }
  UNROLLED (int c = 0; c < Channels; ++c)
    UNROLLED (int v = 0; v < Vectors; ++v) {
      float* at = sums + c * g.features + v * kLanes;
      store(at, load(at) + block[c][v]);
    }
}

template <int Vectors>
inline void outer(const Geometry& g, int64_t count, const float* rows, const float* upstream, float* sums) {
  constexpr int kChannels = 2 * kPixels / Vectors;  // which divides the channels
  for (int64_t c = 0; c < g.channels; c += kChannels)
    outer_block<kChannels, Vectors>(g, count, rows + c, upstream, sums + c * g.features);
}

inline void kernel_gradient_of_tiles(const Geometry& g, ffi::ThreadPool& pool, const float* from,
                                     const float* gradients, float* to) {
  const Tiles tiles(g);
  const int64_t most = tiles_at_once(g), size = g.channels * g.features;
  std::vector<float> sums(g.chunks() * kPlaces * size);
  parallel_for(pool, g.chunks(), [&](int64_t chunk) {
    std::vector<float> windows(kPlaces * apart(most, g.channels)), upstream(kPlaces * apart(most, g.features));
    float* its = sums.data() + chunk * kPlaces * size;
    g.for_each_group(chunk, from, [&](int64_t first, int64_t pixels, const float* padded) {
      const float* its_gradients = gradients + first * g.pixels() * g.features;
      for (int64_t begin = 0; begin < pixels / 4; begin += most) {
        const int64_t count = std::min(most, pixels / 4 - begin);
        transform_windows(g, padded, tiles.from.data() + begin, count, most, windows.data());
        transform_upstream(g, its_gradients, tiles.to.data() + begin, count, most, upstream.data());
        for (int64_t place = 0; place < kPlaces; ++place) {
          const float* rows = windows.data() + place * apart(most, g.channels);
          const float* values = upstream.data() + place * apart(most, g.features);
          float* out = its + place * size;
          int64_t f = 0;
          for (; f + 2 * kLanes <= g.features; f += 2 * kLanes) outer<2>(g, count, rows, values + f, out + f);
          for (; f < g.features; f += kLanes) outer<1>(g, count, rows, values + f, out + f);
        }
      }
    });
  });
  const int64_t vectors = size / kLanes, parts = std::min<int64_t>(vectors, 16);
  parallel_for(pool, parts, [&](int64_t part) {
    const int64_t begin = vectors * part / parts * kLanes, end = vectors * (part + 1) / parts * kLanes;
    for (int64_t chunk = 1; chunk < g.chunks(); ++chunk)
      for (int64_t place = 0; place < kPlaces; ++place)
        for (int64_t i = place * size + begin; i < place * size + end; ++i) sums[i] += sums[chunk * kPlaces * size + i];
    write_gradient(sums.data(), size, begin, end, to);
  });
}

}  // namespace
