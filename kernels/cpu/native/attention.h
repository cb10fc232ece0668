// Attention within one sequence, one head at a time, for any instruction set `Isa`: a block of queries after the
// other, softmax in float32, bfloat16 products with float32 sums. No row's bits depend on the rest of the batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "philox.h"
#include "transpose.h"

namespace isotrain {
namespace {

constexpr int kQueryRows = 96;  // queries of one sequence with scores in memory together

// The masks of one head's probabilities: row i of the head is row `first` + i `step` of the site.
struct DropoutRows {
    Dropout dropout;
    std::uint32_t site = 0, first = 0, step = 0;

    DropoutRow operator[](int row) const { return {dropout, site, first + std::uint32_t(row) * step}; }
};

// One head of one sequence: its first row and column of each. An instruction set may read the 32 rows after the last.
struct Head {
    Rows<const bf16> query, key, value;
    int queries, length, size;
    DropoutRows dropout;
};

// A thread's memory for heads of `size` columns in sequences of up to `longest` tokens.
template <class Isa>
struct AttentionScratch {
    AttentionScratch(int longest_sequence, int size) {
        const auto keys = std::size_t(round_up(longest_sequence, kDepth)), width = std::size_t(round_up(size, kDepth));
        const std::size_t rows = kQueryRows + 32;
        query = allocate<bf16>(rows * width);
        key = allocate<bf16>(keys * width);
        value = allocate<bf16>(keys * width);
        score = allocate<float>(rows * keys);
        weight = allocate<bf16>(rows * keys + kDepth);
    }

    Buffer<bf16> query, key, value, weight;
    Buffer<float> score;
    float sum[kQueryRows];
    alignas(64) float block[2 * Isa::kRows * Isa::kPanel];  // see Blocks
};

constexpr __mmask16 first_lanes(int count) {
    return count >= kVector ? 0xFFFF : count > 0 ? __mmask16((1u << count) - 1) : __mmask16(0);
}

// `rows` rows of a head as a first factor, copied if Isa reads more columns: those after a head belong to another one,
// and zero times its infinity would be NaN.
template <class Isa>
Rows<const bf16> first_factor(Rows<const bf16> from, int rows, int size, bf16* copy) {
    const int width = round_up(size, Isa::kStep);
    if (width == size) return from;
    for (int row = 0; row < rows; ++row) std::memcpy(copy + std::size_t(row) * width, from[row], size * sizeof(bf16));
    return {copy, std::size_t(width)};
}

// Rows of a head as the columns of a second factor with zeros beneath, as many as Isa reads.
template <class Isa>
void pack_head_columns(Rows<const bf16> from, int length, int size, int line, bf16* to) {
    pack_columns(from, length, size, line, to);
    const int missing = (round_up(size, Isa::kStep) - size) / 2;
    std::memset(to + std::size_t(size / 2) * line * 2, 0, std::size_t(missing) * line * 2 * sizeof(bf16));
}

// p = 2^(factor (s - max s)) over the first `length` of `padded` scores, zero after them and where p is dropped.
// Returns the sum of all p, and in `most` the largest score.
inline float exponentiate(const float* score, bf16* p, int length, int padded, float factor, DropoutRow dropout,
                          float& most) {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 largest = lowest;
    for (int i = 0; i < length; i += kVector)
        largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(lowest, first_lanes(length - i), score + i));
    most = _mm512_reduce_max_ps(largest);
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < padded; i += kVector) {
        const __mmask16 real = first_lanes(length - i);
        const __m512 s = _mm512_sub_ps(_mm512_maskz_loadu_ps(real, score + i), _mm512_set1_ps(most));
        const __m512 e = _mm512_maskz_mov_ps(real, exp2_ps(_mm512_mul_ps(s, _mm512_set1_ps(factor))));
        total = _mm512_add_ps(total, e);
        store_bf16(p + i, _mm512_maskz_mov_ps(dropout.kept(i), e));
    }
    return _mm512_reduce_add_ps(total);
}

// log2 of the factor of each score in a head's softmax: 1 / sqrt(size), for powers of 2.
inline float score_factor(int size) { return kLog2e / std::sqrt(float(size)); }

// out = dropout(softmax(Q K^T / sqrt(size))) V. log_sums: null, or for each query the base-2 logarithm of its softmax's
// sum, for the backward pass.
template <class Isa>
void attention_forward(AttentionScratch<Isa>& s, const Head& head, Rows<bf16> out, float* log_sums) {
    const int length = head.length, keys = round_up(length, kDepth), width = round_up(head.size, Isa::kStep);
    // Scores are computed for whole vectors of keys. The deeper padding is only for P V.
    const int scored = round_up(length, kVector), depth = round_up(length, Isa::kStep);
    const float factor = score_factor(head.size);
    pack_head_columns<Isa>(head.key, length, head.size, keys, s.key.get());
    pack_rows(head.value, length, depth, head.size, s.value.get());
    for (int first = 0; first < head.queries; first += kQueryRows) {
        const int count = std::min(head.queries - first, kQueryRows);
        const Rows<const bf16> q = first_factor<Isa>({head.query[first], head.query.stride}, count, head.size, s.query.get());
        product<Isa>(s.block, q, count, s.key.get(), std::size_t(2) * keys, scored, width,
                     [&](int row, int column, __m512 sums) {
                         _mm512_storeu_ps(s.score.get() + std::size_t(row) * keys + column, sums);
                     });
        for (int row = 0; row < count; ++row) {
            const std::size_t at = std::size_t(row) * keys;
            float most;
            s.sum[row] = exponentiate(s.score.get() + at, s.weight.get() + at, length, std::max(scored, depth), factor,
                                      head.dropout[first + row], most);
            if (log_sums) log_sums[first + row] = most * factor + std::log2(s.sum[row]);
        }
        product<Isa>(s.block, {s.weight.get(), std::size_t(keys)}, count, s.value.get(), std::size_t(2) * head.size,
                     head.size, depth, [&](int row, int column, __m512 sums) {
                         const float scale = head.dropout.dropout.scale / s.sum[row];
                         store_bf16(out[first + row] + column, _mm512_mul_ps(sums, _mm512_set1_ps(scale)));
                     });
    }
}

}  // namespace
}  // namespace isotrain
