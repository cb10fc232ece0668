// The embedding of a trained encoder, word + type + position, then LayerNorm and dropout, and its gradients. The tables
// stay in float32. The backward pass computes the rows again, so nothing is kept for it.
#pragma once

#include "philox.h"
#include "products.h"

namespace isotrain {
namespace {

constexpr int kWidest = 4096;

// The sum of a token's three rows, in the order of transformers' modules.
inline void embedding_row(const Embedding& e, std::int64_t token, float* x) {
    const float* word = e.word + e.ids[token] * e.width;
    const float* type = e.type + (e.types ? e.types[token] * e.width : 0);
    const float* position = e.position + e.positions[token] * e.width;
    for (int i = 0; i < e.width; i += kVector)
        _mm512_store_ps(x + i, _mm512_add_ps(_mm512_add_ps(_mm512_loadu_ps(word + i), _mm512_loadu_ps(type + i)),
                                             _mm512_loadu_ps(position + i)));
}

inline void embed(const Embedding& e, float* out) {
    alignas(64) float x[kWidest];
    const Dropout dropout(e.key, e.rate);
    for (std::int64_t token = 0; token < e.tokens; ++token) {
        embedding_row(e, token, x);
        const Moments row = moments(x, e.width, e.eps);
        DropoutRow mask(dropout, dropout_site(0, kDropEmbedding), std::uint32_t(token));
        for (int i = 0; i < e.width; i += kVector)
            _mm512_storeu_ps(out + token * e.width + i,
                             _mm512_mul_ps(scale_and_shift(normalised(x, i, row), i, e.norm), mask.factors(i)));
    }
}

inline void add_to(float* sum, __m512 values) { _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), values)); }

// gradient: that of each token's row of the embedding. The sums are in the order of the tokens.
inline void embed_backward(const Embedding& e, const float* gradient, const EmbeddingGradients& to) {
    alignas(64) float unit[kWidest], slope[kWidest];
    const Dropout dropout(e.key, e.rate);
    for (std::int64_t token = 0; token < e.tokens; ++token) {
        embedding_row(e, token, unit);
        const Moments row = moments(unit, e.width, e.eps);
        DropoutRow mask(dropout, dropout_site(0, kDropEmbedding), std::uint32_t(token));
        __m512 total = _mm512_setzero_ps(), along = _mm512_setzero_ps();
        for (int i = 0; i < e.width; i += kVector) {
            const __m512 u = normalised(unit, i, row);
            const __m512 g = _mm512_mul_ps(_mm512_loadu_ps(gradient + token * e.width + i), mask.factors(i));
            const __m512 weighted = _mm512_mul_ps(g, _mm512_loadu_ps(e.norm.weight + i));
            add_to(to.norm_weight + i, _mm512_mul_ps(g, u));
            add_to(to.norm_bias + i, g);
            _mm512_store_ps(unit + i, u);
            _mm512_store_ps(slope + i, weighted);
            total = _mm512_add_ps(total, weighted);
            along = _mm512_fmadd_ps(weighted, u, along);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / float(e.width));
        const __m512 share = _mm512_set1_ps(_mm512_reduce_add_ps(along) / float(e.width));
        const std::int64_t word = e.ids[token], type = e.types ? e.types[token] : 0;
        for (int i = 0; i < e.width; i += kVector) {
            const __m512 centred = _mm512_sub_ps(_mm512_load_ps(slope + i), mean);
            const __m512 rest = _mm512_fnmadd_ps(_mm512_load_ps(unit + i), share, centred);
            const __m512 g = _mm512_mul_ps(rest, _mm512_set1_ps(row.scale));
            if (word != to.padding) add_to(to.word + word * e.width + i, g);
            add_to(to.type + type * e.width + i, g);
            add_to(to.position + e.positions[token] * e.width + i, g);
        }
    }
}

}  // namespace
}  // namespace isotrain
