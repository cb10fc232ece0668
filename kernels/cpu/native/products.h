// Products with packed weights and other operands, and LayerNorm over rows, for any instruction set `Isa`.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "vector_math.h"

namespace isotrain {
namespace {

// Rows of a matrix: row r begins at data + r * stride. Bytes stand for (byte - kZero) * scale[r].
template <class T>
struct Rows {
    T* data;
    std::size_t stride;
    float* scale = nullptr;
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
inline void prefetch(const void* source, std::size_t bytes) {
    const char* line = static_cast<const char*>(source);
    for (std::size_t at = 0; at < bytes; at += 64) _mm_prefetch(line + at, _MM_HINT_T1);
}

// A layer's output in 16 columns from the sums that an instruction set has stored.
inline __m512 output(const float* sums, Rows<const bf16>, int, const Linear& layer, int column) {
    return _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(layer.bias + column));
}

inline __m512 output(const float* sums, Rows<const std::uint8_t> a, int row, const Linear& layer, int column) {
    const __m512i exact = _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_loadu_si512(layer.offset + column));
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_loadu_ps(layer.scale + column));
    return _mm512_fmadd_ps(scaled, _mm512_set1_ps(a.scale[row]), _mm512_loadu_ps(layer.bias + column));
}

// finish(row, column, sums + bias) over the output columns [first, last) of a layer, both multiples of the panel.
template <class Isa, class Finish>
void linear(float* c, Rows<const typename Isa::Element> a, int rows, const Linear& layer, int first, int last,
            const Finish& finish) {
    using Weight = typename Isa::Weight;
    const std::size_t panel_size = std::size_t(layer.k) * Isa::kPanel, panel_bytes = panel_size * sizeof(Weight);
    const int blocks = (rows + Isa::kRows - 1) / Isa::kRows;
    const std::size_t share = (panel_bytes / std::max(blocks, 1) + 63) / 64 * 64;
    for (int column = first; column < last; column += Isa::kPanel) {
        const auto* panel = static_cast<const Weight*>(layer.weight) + std::size_t(column / Isa::kPanel) * panel_size;
        const bool more = column + Isa::kPanel < last;
        std::size_t ahead = 0;
        for (int row = 0; row < rows; row += Isa::kRows) {
            const int count = std::min(rows - row, Isa::kRows);
            if (more && ahead < panel_bytes) {
                prefetch(panel + panel_size + ahead / sizeof(Weight), std::min(share, panel_bytes - ahead));
                ahead += share;
            }
            Isa::block(a[row], a.stride, count, panel, Isa::kGroup * Isa::kPanel, Isa::kPanel / kVector, layer.k, c);
            for (int r = 0; r < count; ++r)
                for (int v = 0; v < Isa::kPanel; v += kVector)
                    finish(row + r, column + v, output(c + r * Isa::kPanel + v, a, row + r, layer, column + v));
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

// The largest magnitude, or NaN or infinity if there is one: as integers, they are above all numbers.
inline float largest_magnitude(const float* x, int width) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < width; i += kVector)
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    const int bits = _mm512_reduce_max_epi32(most);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float largest_magnitude(const bf16* x, int width) {
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < width; i += 2 * kVector)
        most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    alignas(64) bf16 lanes[2 * kVector];
    _mm512_store_si512(lanes, most);
    const std::uint32_t bits = std::uint32_t(*std::max_element(lanes, lanes + 2 * kVector)) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline __m512 load_wide(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load_wide(const bf16* x) { return load_bf16(x); }

// A row as operand of products, bfloat16. Returns its scale.
inline float round_row(const float* x, bf16* to, int width) {
    for (int i = 0; i < width; i += kVector) store_bf16(to + i, _mm512_loadu_ps(x + i));
    return 1.0f;
}

// The same in bytes, the largest magnitude at 127. `to` may be the memory of `x`. A row with a NaN or an infinity gets
// the scale NaN. kernels/packed/eight_bit.py computes the same.
template <class Source>
float round_row(const Source* x, std::uint8_t* to, int width) {
    const float most = largest_magnitude(x, width);
    const bool finite = std::isfinite(most);
    const float bounded = std::max(finite ? most : 0.0f, 1e-30f);
    const __m512 factor = _mm512_set1_ps(127.0f / bounded);
    const __m512i zero = _mm512_set1_epi32(kZero);
    for (int i = 0; i < width; i += kVector) {
        const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(load_wide(x + i), factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(steps, zero)));
    }
    return finite ? bounded / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

// bfloat16 rows as operands of products: themselves, or bytes in the same memory with their scales in `scale`.
template <class Element>
Rows<const Element> operands(Rows<bf16> x, int rows, int width, float* scale) {
    if constexpr (std::is_same_v<Element, bf16>) {
        return {x.data, x.stride};
    } else {
        const Rows<Element> bytes{reinterpret_cast<Element*>(x.data), x.stride * sizeof(bf16)};
        for (int row = 0; row < rows; ++row) scale[row] = round_row(x[row], bytes[row], width);
        return {bytes.data, bytes.stride, scale};
    }
}

// LayerNorm of `width` values in place, and its operand of products. Returns the operand's scale.
template <class Element>
float normalise(float* x, Element* rounded, int width, const Norm& norm, float eps) {
    const Moments row = moments(x, width, eps);
    for (int i = 0; i < width; i += kVector) _mm512_storeu_ps(x + i, scale_and_shift(normalised(x, i, row), i, norm));
    return round_row(x, rounded, width);
}

}  // namespace
}  // namespace isotrain
