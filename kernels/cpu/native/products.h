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

// Blocks of a product, one after another. What follows a block's sums is done in parts beside the next product, since
// AMX's unit works beside the vector units, and so is the prefetch of `ahead`: all at once, its lines would wait for
// each other in the buffers that tiles are loaded through.
// finish(row, column, sums): takes the 16 sums that Isa has stored.
template <class Isa, class Finish>
class Blocks {
   public:
    // c: memory for the sums of two blocks.
    Blocks(float* c, const Finish& finish) : c_(c), finish_(finish) {}

    // Once after all blocks.
    void end() {
        before_ = last_;
        lines_ = 0;
        begin(1);
        part();
    }

    void multiply(Rows<const typename Isa::Element> a, int row, int count, const typename Isa::Weight* b,
                  std::size_t ldb, int column, int vectors, int k, const char* ahead = nullptr, int lines = 0) {
        before_ = last_;
        last_ = {before_.sums == c_ ? c_ + Isa::kRows * Isa::kPanel : c_, row, count, column, vectors};
        ahead_ = ahead;
        lines_ = lines;
        Isa::block(a[row], a.stride, count, b, ldb, vectors, k, last_.sums, *this);
    }

    void begin(int parts) {
        done_ = 0;
        rows_each_ = (before_.count + parts - 1) / parts;
        lines_each_ = (lines_ + parts - 1) / parts;
    }

    void part() {
        for (int line = 0; line < lines_each_; ++line, ahead_ += 64) _mm_prefetch(ahead_, _MM_HINT_T1);
        for (const int end = std::min(before_.count, done_ + rows_each_); done_ < end; ++done_)
            for (int v = 0; v < before_.vectors; ++v)
                finish_(before_.row + done_, before_.column + v * kVector,
                        before_.sums + done_ * Isa::kPanel + v * kVector);
    }

   private:
    struct Block {
        float* sums = nullptr;
        int row = 0, count = 0, column = 0, vectors = 0;
    };

    float* c_;
    const Finish& finish_;
    Block before_, last_;
    const char* ahead_ = nullptr;
    int lines_ = 0, done_ = 0, rows_each_ = 0, lines_each_ = 0;
};

// finish(row, column, sums): takes a row x b as vectors of 16 columns. b: [k / 2][ldb / 2 columns][2].
template <class Isa, class Finish>
void product(float* c, Rows<const bf16> a, int rows, const bf16* b, std::size_t ldb, int columns, int k,
             const Finish& finish) {
    const auto load = [&](int row, int column, const float* sums) { finish(row, column, _mm512_load_ps(sums)); };
    Blocks<Isa, decltype(load)> blocks(c, load);
    for (int column = 0; column < columns; column += Isa::kPanel)
        for (int row = 0; row < rows; row += Isa::kRows)
            blocks.multiply(a, row, std::min(rows - row, Isa::kRows), b + std::size_t(2) * column, ldb, column,
                            std::min(columns - column, Isa::kPanel) / kVector, k);
    blocks.end();
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
    const auto add_bias = [&](int row, int column, const float* sums) {
        finish(row, column, output(sums, a, row, layer, column));
    };
    Blocks<Isa, decltype(add_bias)> products(c, add_bias);
    for (int column = first; column < last; column += Isa::kPanel) {
        const auto* panel = static_cast<const Weight*>(layer.weight) + std::size_t(column / Isa::kPanel) * panel_size;
        std::size_t ahead = column + Isa::kPanel < last ? 0 : panel_bytes;
        for (int row = 0; row < rows; row += Isa::kRows) {
            const std::size_t bytes = std::min(share, panel_bytes - ahead);
            products.multiply(a, row, std::min(rows - row, Isa::kRows), panel, Isa::kGroup * Isa::kPanel, column,
                              Isa::kPanel / kVector, layer.k,
                              reinterpret_cast<const char*>(panel + panel_size) + ahead, int(bytes / 64));
            ahead += bytes;
        }
    }
    products.end();
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

inline __m512 load_wide(const bf16* x, int i, const float*) { return load_bf16(x + i); }

// factors: null, or by which the columns are multiplied.
inline __m512 load_wide(const float* x, int i, const float* factors) {
    const __m512 values = _mm512_loadu_ps(x + i);
    return factors ? _mm512_mul_ps(values, _mm512_loadu_ps(factors + i)) : values;
}

// The largest magnitude, or NaN or infinity if there is one: as integers, they are above all numbers.
inline float largest_magnitude(const float* x, int width, const float* factors) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < width; i += kVector)
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(load_wide(x, i, factors)), magnitude));
    const int bits = _mm512_reduce_max_epi32(most);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float largest_magnitude(const bf16* x, int width, const float*) {
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

// A row as operand of products, bfloat16. Returns its scale.
inline float round_row(const float* x, bf16* to, int width, const float*) {
    for (int i = 0; i < width; i += kVector) store_bf16(to + i, _mm512_loadu_ps(x + i));
    return 1.0f;
}

// The same in bytes, the largest magnitude at 127, of a row whose columns are multiplied by `factors` if there are any.
// `to` may be the memory of `x`. A row with a NaN or an infinity gets the scale NaN. kernels/packed/eight_bit.py computes
// the same.
template <class Source>
float round_row(const Source* x, std::uint8_t* to, int width, const float* factors) {
    const float most = largest_magnitude(x, width, factors);
    const bool finite = std::isfinite(most);
    const float bounded = std::max(finite ? most : 0.0f, 1e-30f);
    const __m512 factor = _mm512_set1_ps(127.0f / bounded);
    const __m512i zero = _mm512_set1_epi32(kZero);
    for (int i = 0; i < width; i += kVector) {
        const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(load_wide(x, i, factors), factor));
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
        for (int row = 0; row < rows; ++row) scale[row] = round_row(x[row], bytes[row], width, nullptr);
        return {bytes.data, bytes.stride, scale};
    }
}

// LayerNorm of `width` values in place, and its operand of products (see round_row). Returns the operand's scale.
template <class Element>
float normalise(float* x, Element* rounded, int width, const Norm& norm, float eps, const float* factors) {
    const Moments row = moments(x, width, eps);
    for (int i = 0; i < width; i += kVector) _mm512_storeu_ps(x + i, scale_and_shift(normalised(x, i, row), i, norm));
    return round_row(x, rounded, width, factors);
}

}  // namespace
}  // namespace isotrain
