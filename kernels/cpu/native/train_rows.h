// Row by row parts of a training step: LayerNorm and its gradient, rounding, packing. For AVX-512.
#pragma once

#include "train.h"
#include "transpose.h"

namespace isotrain {
namespace {

constexpr int kWeightRows = 64;  // of a weight that one task packs: the widest panel

// Rows within a second factor [width / panel][depth / 2][panel][2], from the row `at` on. null: nowhere.
struct PackedRows {
    bf16* data = nullptr;
    std::size_t depth = 0, at = 0;

    bf16* panel(int column, int width) const { return data + std::size_t(column) * depth + at * width; }
};

// Packs the columns [column, column + width) of the rows [first, first + count); `first` is even. Behind an odd number
// of rows there is one of zeros.
template <int kPanel>
void pack_inputs(Rows<const bf16> rows, int first, int count, int column, int width, const PackedRows& to) {
    if (!to.data) return;
    for (int c = column; c < column + width; c += kPanel)
        pack_rows({rows[first] + c, rows.stride}, count, round_up(count, 2), kPanel,
                  to.panel(c, kPanel) + std::size_t(first) * kPanel);
}

// Rows of float32, `width` apart, in bfloat16, with zeros up to the depth of a product.
inline void round_rows(const float* from, int width, int count, Rows<bf16> to) {
    for (int row = 0; row < count; ++row) {
        for (int i = 0; i < width; i += kVector)
            store_bf16(to[row] + i, _mm512_loadu_ps(from + std::size_t(row) * width + i));
        std::memset(to[row] + width, 0, (round_up(width, kDepth) - width) * sizeof(bf16));
    }
}

// Packs the rows [first, first + kWeightRows) of a master for X W^T, and for dY W if there is a backward pass. rows:
// memory for them.
template <int kPanel>
void pack_weight_rows(const WeightCopy& copy, const float* master, int first, bool backward, Rows<bf16> rows) {
    const TrainWeight& w = copy.weight;
    for (int row = 0; row < kWeightRows; ++row)
        for (int i = 0; i < w.k; i += kVector)
            store_bf16(rows[row] + i, _mm512_loadu_ps(master + std::size_t(first + row) * w.k + i));
    const auto at = std::size_t(copy.first + first);
    for (int row = 0; row < kWeightRows; row += kPanel)
        pack_columns({rows[row], rows.stride}, kPanel, w.k, kPanel, w.forward + (at + row) * round_up(w.k, kDepth));
    for (int column = 0; backward && column < w.k; column += kPanel)
        pack_rows({rows.data + column, rows.stride}, kWeightRows, kWeightRows, kPanel,
                  w.backward + std::size_t(column) * w.n + at * kPanel);
}

// Packs every weight and copies the vectors. rows: a thread's memory for kWeightRows rows.
template <int kPanel>
void pack_weights(Team& team, const TrainModel& m, const float* const* masters, bool backward, Rows<bf16> rows) {
    int tasks = 1;
    for (const WeightCopy& copy : m.weight_copies) tasks += copy.n / kWeightRows;
    team.each(tasks, [&](int task) {
        if (task == 0)
            for (const VectorCopy& copy : m.vector_copies)
                std::memcpy(copy.to, masters[copy.master], copy.count * sizeof(float));
        int before = 1;
        for (const WeightCopy& copy : m.weight_copies) {
            const int block = task - before, blocks = copy.n / kWeightRows;
            if (block >= 0 && block < blocks)
                pack_weight_rows<kPanel>(copy, masters[copy.master], block * kWeightRows, backward, rows);
            before += blocks;
        }
    });
}

// LayerNorm in place as `normalise`, and what its gradient needs: the row without weight and bias, and the returned
// scale.
inline float normalise_and_keep(float* x, bf16* rounded, bf16* unit, int width, const Norm& norm, float eps) {
    const Moments row = moments(x, width, eps);
    for (int i = 0; i < width; i += kVector) {
        const __m512 u = normalised(x, i, row), y = scale_and_shift(u, i, norm);
        store_bf16(unit + i, u);
        _mm512_storeu_ps(x + i, y);
        store_bf16(rounded + i, y);
    }
    return row.scale;
}

// From the gradient `dy` of a row after LayerNorm to that of the row before it, `dx` (both may be the same), and its
// part that passes the dropout, in bfloat16. The gradients of weight and bias are added to their sums.
inline void normalise_backward(const float* dy, const bf16* unit, float scale, const float* weight, int width,
                               float* dx, bf16* rounded, DropoutRow dropout, float* weight_sum, float* bias_sum) {
    __m512 total = _mm512_setzero_ps(), along = _mm512_setzero_ps();
    for (int i = 0; i < width; i += kVector) {
        const __m512 d = _mm512_loadu_ps(dy + i), u = load_bf16(unit + i);
        _mm512_storeu_ps(weight_sum + i, _mm512_fmadd_ps(d, u, _mm512_loadu_ps(weight_sum + i)));
        _mm512_storeu_ps(bias_sum + i, _mm512_add_ps(d, _mm512_loadu_ps(bias_sum + i)));
        const __m512 g = _mm512_mul_ps(d, _mm512_loadu_ps(weight + i));
        total = _mm512_add_ps(total, g);
        along = _mm512_fmadd_ps(g, u, along);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / float(width));
    const __m512 share = _mm512_set1_ps(_mm512_reduce_add_ps(along) / float(width));
    for (int i = 0; i < width; i += kVector) {
        const __m512 g = _mm512_mul_ps(_mm512_loadu_ps(dy + i), _mm512_loadu_ps(weight + i));
        const __m512 rest = _mm512_fnmadd_ps(load_bf16(unit + i), share, _mm512_sub_ps(g, mean));
        const __m512 d = _mm512_mul_ps(rest, _mm512_set1_ps(scale));
        _mm512_storeu_ps(dx + i, d);
        store_bf16(rounded + i, _mm512_mul_ps(d, dropout.factors(i)));
    }
}

// The sum of `count` values, a multiple of 16, in float32.
inline float sum_bf16(const bf16* values, int count) {
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < count; i += kVector) total = _mm512_add_ps(total, load_bf16(values + i));
    return _mm512_reduce_add_ps(total);
}

inline void add_vector(float* to, const float* from, int width) {
    for (int i = 0; i < width; i += kVector)
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(to + i), _mm512_loadu_ps(from + i)));
}

}  // namespace
}  // namespace isotrain
