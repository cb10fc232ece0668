// Products with packed weights and other operands, and LayerNorm over rows, for any instruction set `Isa`.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "vector_math.h"

namespace isotrain {
namespace {

// Rows of a matrix: row r begins at data + r * stride.
template <class T>
struct Rows {
    T* data;
    std::size_t stride;
    T* operator[](std::size_t row) const { return data + row * stride; }
};

// finish(row, column, sums): takes a row x b as vectors of 16 columns. b: [k / 2][ldb / 2 columns][2].
template <class Isa, class Finish>
void product(float* c, Rows<const bf16> a, int rows, const bf16* b, std::size_t ldb, int columns, int k,
             const Finish& finish) {
    for (int column = 0; column < columns; column += Isa::kPanel) {
        const int vectors = std::min(columns - column, Isa::kPanel) / kVector;
        for (int row = 0; row < rows; row += Isa::kRows) {
            const int count = std::min(rows - row, Isa::kRows);
            Isa::block(a[row], a.stride, count, b + std::size_t(2) * column, ldb, vectors, k, c);
            for (int r = 0; r < count; ++r)
                for (int v = 0; v < vectors; ++v)
                    finish(row + r, column + v * kVector, _mm512_load_ps(c + r * Isa::kPanel + v * kVector));
        }
    }
}

// Prefetches a part of the next weight panel while the current one is multiplied.
inline void prefetch(const bf16* source, std::size_t bytes) {
    const char* line = reinterpret_cast<const char*>(source);
    for (std::size_t at = 0; at < bytes; at += 64) _mm_prefetch(line + at, _MM_HINT_T1);
}

// finish(row, column, sums + bias) over the output columns [first, last) of a layer, both multiples of the panel.
template <class Isa, class Finish>
void linear(float* c, Rows<const bf16> a, int rows, const Linear& layer, int first, int last, const Finish& finish) {
    const std::size_t panel_size = std::size_t(layer.k) * Isa::kPanel;
    const int blocks = (rows + Isa::kRows - 1) / Isa::kRows;
    const std::size_t share = (panel_size * sizeof(bf16) / std::max(blocks, 1) + 63) / 64 * 64;
    for (int column = first; column < last; column += Isa::kPanel) {
        const bf16* panel = layer.weight + std::size_t(column / Isa::kPanel) * panel_size;
        const bool more = column + Isa::kPanel < last;
        std::size_t ahead = 0;
        for (int row = 0; row < rows; row += Isa::kRows) {
            const int count = std::min(rows - row, Isa::kRows);
            if (more && ahead < panel_size * sizeof(bf16)) {
                prefetch(panel + panel_size + ahead / sizeof(bf16), std::min(share, panel_size * sizeof(bf16) - ahead));
                ahead += share;
            }
            Isa::block(a[row], a.stride, count, panel, 2 * Isa::kPanel, Isa::kPanel / kVector, layer.k, c);
            for (int r = 0; r < count; ++r)
                for (int v = 0; v < Isa::kPanel; v += kVector)
                    finish(row + r, column + v,
                           _mm512_add_ps(_mm512_load_ps(c + r * Isa::kPanel + v), _mm512_loadu_ps(layer.bias + column + v)));
        }
    }
}

// What LayerNorm (Ba et al. 2016) divides out of a row.
struct Moments {
    float mean, scale;  // 1 / the standard deviation
};

// Two passes over `width` values. Squares that overflow give NaN: divided by infinity, every value would come out as a
// plausible 0.
inline Moments moments(const float* x, int width, float eps) {
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < width; i += kVector) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
    const float mean = _mm512_reduce_add_ps(total) / float(width);
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += kVector) {
        const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(mean));
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / float(width);
    const float deviation = std::isfinite(variance) ? std::sqrt(variance + eps) : std::numeric_limits<float>::quiet_NaN();
    return {mean, 1.0f / deviation};
}

// Columns i .. i + 15 of a row after LayerNorm, without its weight and bias.
inline __m512 normalised(const float* x, int i, const Moments& row) {
    return _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(row.mean)), _mm512_set1_ps(row.scale));
}

inline __m512 scale_and_shift(__m512 unit, int i, const Norm& norm) {
    return _mm512_fmadd_ps(unit, _mm512_loadu_ps(norm.weight + i), _mm512_loadu_ps(norm.bias + i));
}

// LayerNorm of `width` values in place, and its bfloat16 rounding.
inline void normalise(float* x, bf16* rounded, int width, const Norm& norm, float eps) {
    const Moments row = moments(x, width, eps);
    for (int i = 0; i < width; i += kVector) {
        const __m512 y = scale_and_shift(normalised(x, i, row), i, norm);
        _mm512_storeu_ps(x + i, y);
        store_bf16(rounded + i, y);
    }
}

}  // namespace
}  // namespace isotrain
