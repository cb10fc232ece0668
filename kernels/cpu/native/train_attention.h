// The backward pass of one head's attention (attention.h). Probabilities are computed again from the scores, and their
// masks are drawn again, so that nothing quadratic in the sequence is kept (Dao et al. 2022, 2205.14135).
#pragma once

#include "attention.h"

namespace isotrain {
namespace {

// What the backward pass needs besides a thread's memory for the forward pass.
template <class Isa>
struct AttentionGradientScratch : AttentionScratch<Isa> {
    AttentionGradientScratch(int longest, int size) : AttentionScratch<Isa>(longest, size) {
        const auto keys = std::size_t(round_up(longest, kDepth)), width = std::size_t(round_up(size, kDepth));
        const std::size_t rows = kQueryRows + 32;
        gradient = allocate<bf16>(rows * width);
        value_columns = allocate<bf16>(keys * width);
        turned = allocate<bf16>(std::size_t(size) * kQueryRows + kDepth);
        slope = allocate<float>(rows * keys);
        weight_pairs = allocate<bf16>(rows * keys);
        slope_pairs = allocate<bf16>(rows * keys);
        key_sum = allocate<float>(keys * size);
        value_sum = allocate<float>(keys * size);
    }

    Buffer<bf16> gradient, value_columns, turned, weight_pairs, slope_pairs;
    Buffer<float> slope, key_sum, value_sum;
};

// Two rows of one head's scores: from scores and the gradients of its probabilities to the gradients of its scores.
struct ScoreRows {
    float* score;        // two rows of scores, `line` apart. Replaced by probabilities
    float* slope;        // likewise the gradients of the dropped probabilities
    std::size_t line;
    bf16* slope_rows;    // the scores' gradients: two rows, `line` apart
    bf16* slope_pairs;   // and as pairs of both rows
    bf16* weight_pairs;  // dropped probabilities, likewise
    const float* log_sums;
    int rows;            // 2, 1 (the other one becomes zeros) or 0
    int length, padded;
};

// P = 2^(factor s - log_sum), dP = dropout(slope), ds = P (dP - sum P dP) scale.
inline void softmax_backward(const ScoreRows& in, float factor, float scale, DropoutRow* dropout) {
    __m512 means[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int i = 0; i < in.padded; i += kVector) {
        __m512 weight[2];
        for (int r = 0; r < 2; ++r) {
            const __mmask16 real = r < in.rows ? first_lanes(in.length - i) : __mmask16(0);
            const __m512 s = _mm512_maskz_loadu_ps(real, in.score + r * in.line + i);
            const __m512 log_sum = _mm512_set1_ps(r < in.rows ? in.log_sums[r] : 0.0f);
            const __m512 p = _mm512_maskz_mov_ps(real, exp2_ps(_mm512_fmsub_ps(s, _mm512_set1_ps(factor), log_sum)));
            const __m512 kept = dropout[r].factors(i);
            const __m512 dp = _mm512_mul_ps(_mm512_maskz_loadu_ps(real, in.slope + r * in.line + i), kept);
            means[r] = _mm512_fmadd_ps(p, dp, means[r]);
            weight[r] = _mm512_mul_ps(p, kept);
            _mm512_storeu_ps(in.score + r * in.line + i, p);
            _mm512_storeu_ps(in.slope + r * in.line + i, dp);
        }
        store_pairs(in.weight_pairs + 2 * i, weight[0], weight[1]);
    }
    const __m512 mean[2] = {_mm512_set1_ps(_mm512_reduce_add_ps(means[0])),
                            _mm512_set1_ps(_mm512_reduce_add_ps(means[1]))};
    for (int i = 0; i < in.padded; i += kVector) {
        __m512 slope[2];
        for (int r = 0; r < 2; ++r) {
            const std::size_t at = r * in.line + i;
            const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(in.score + at), _mm512_set1_ps(scale));
            slope[r] = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(in.slope + at), mean[r]));
            store_bf16(in.slope_rows + at, slope[r]);
        }
        store_pairs(in.slope_pairs + 2 * i, slope[0], slope[1]);
    }
}

// sums [size][line] of a head's columns, turned into rows of bfloat16.
inline void store_turned(const float* sums, int size, int line, int length, Rows<bf16> to) {
    for (int row = 0; row < length; row += kVector)
        for (int column = 0; column < size; column += kVector) {
            __m512i words[kVector];
            for (int c = 0; c < kVector; ++c)
                words[c] = _mm512_loadu_si512(sums + std::size_t(column + c) * line + row);
            transpose_words(words);
            for (int r = 0; r < std::min(kVector, length - row); ++r)
                store_bf16(to[row + r] + column, _mm512_castsi512_ps(words[r]));
        }
}

// From the gradient of a head's output rows to those of its queries, keys and values, all `head.length` rows. log_sums:
// as the forward pass wrote them.
template <class Isa>
void attention_backward(AttentionGradientScratch<Isa>& s, const Head& head, Rows<const bf16> out_gradient,
                        const float* log_sums, Rows<bf16> query_gradient, Rows<bf16> key_gradient,
                        Rows<bf16> value_gradient) {
    const int length = head.length, size = head.size, keys = round_up(length, kDepth);
    const int width = round_up(size, Isa::kStep), scored = round_up(length, kVector);
    const int depth = round_up(length, Isa::kStep);
    const float factor = score_factor(size), scale = 1.0f / std::sqrt(float(size));
    const auto line = std::size_t(keys), pairs_line = std::size_t(2) * keys;
    pack_head_columns<Isa>(head.key, length, size, keys, s.key.get());
    pack_head_columns<Isa>(head.value, length, size, keys, s.value_columns.get());
    pack_rows(head.key, length, depth, size, s.value.get());
    std::memset(s.key_sum.get(), 0, std::size_t(size) * keys * sizeof(float));
    std::memset(s.value_sum.get(), 0, std::size_t(size) * keys * sizeof(float));
    const auto store_to = [&](float* base) {
        return [=](int row, int column, __m512 sums) { _mm512_storeu_ps(base + row * line + column, sums); };
    };
    const auto add_to = [&](float* base) {
        return [=](int row, int column, __m512 sums) {
            float* at = base + row * line + column;
            _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sums));
        };
    };
    for (int first = 0; first < length; first += kQueryRows) {
        const int count = std::min(length - first, kQueryRows);
        const Rows<const bf16> query{head.query[first], head.query.stride};
        const Rows<const bf16> gradient{out_gradient[first], out_gradient.stride};
        product<Isa>(s.block, first_factor<Isa>(query, count, size, s.query.get()), count, s.key.get(), pairs_line,
                     scored, width, store_to(s.score.get()));
        product<Isa>(s.block, first_factor<Isa>(gradient, count, size, s.gradient.get()), count,
                     s.value_columns.get(), pairs_line, scored, width, store_to(s.slope.get()));
        const int steps = round_up(count, Isa::kStep);
        for (int row = 0; row < steps; row += 2) {
            DropoutRow dropout[2] = {head.dropout[first + row], head.dropout[first + row + 1]};
            const std::size_t at = row * line;
            softmax_backward({s.score.get() + at, s.slope.get() + at, line, s.weight.get() + at,
                              s.slope_pairs.get() + at, s.weight_pairs.get() + at, log_sums + first + row,
                              std::clamp(count - row, 0, 2), length, std::max(scored, depth)},
                             factor, scale, dropout);
        }
        product<Isa>(s.block, {s.weight.get(), line}, count, s.value.get(), std::size_t(2) * size, size, depth,
                     [&](int row, int column, __m512 sums) { store_bf16(query_gradient[first + row] + column, sums); });
        const Rows<bf16> turned{s.turned.get(), kQueryRows};
        const int columns = round_up(steps, kVector);
        turn(query, count, columns, size, turned);
        product<Isa>(s.block, {turned.data, turned.stride}, size, s.slope_pairs.get(), pairs_line, scored, steps,
                     add_to(s.key_sum.get()));
        turn(gradient, count, columns, size, turned);
        product<Isa>(s.block, {turned.data, turned.stride}, size, s.weight_pairs.get(), pairs_line, scored, steps,
                     add_to(s.value_sum.get()));
    }
    store_turned(s.key_sum.get(), size, keys, length, key_gradient);
    store_turned(s.value_sum.get(), size, keys, length, value_gradient);
}

}  // namespace
}  // namespace isotrain
