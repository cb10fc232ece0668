// Parts of a training step on their own, for tests.
#pragma once

#include "train_attention.h"

namespace isotrain {
namespace {

template <class Isa>
void probe_attention(const AttentionProbe& probe) {
    const auto size = std::size_t(probe.size), triple = 3 * size;
    const auto part = [&](int index) { return Rows<const bf16>{probe.qkv + index * size, triple}; };
    const auto slope = [&](int index) { return Rows<bf16>{probe.qkv_gradient + index * size, triple}; };
    const DropoutRows dropout{Dropout(probe.key, probe.rate), probe.site, probe.first, probe.step};
    const Head head{part(0), part(1), part(2), probe.length, probe.length, probe.size, dropout};
    Isa::enter_thread();
    AttentionGradientScratch<Isa> scratch(probe.length, probe.size);
    attention_forward<Isa>(scratch, head, {probe.out, size}, probe.log_sums);
    attention_backward<Isa>(scratch, head, {probe.out_gradient, size}, probe.log_sums, slope(0), slope(1), slope(2));
    Isa::leave_thread();
}

inline void probe_dropout(std::uint64_t key, float rate, std::uint32_t site, std::uint32_t row, int columns,
                          float* factors) {
    const Dropout dropout(key, rate);
    DropoutRow mask(dropout, site, row);
    for (int column = 0; column < columns; column += kVector) _mm512_storeu_ps(factors + column, mask.factors(column));
}

inline void probe_philox(const std::uint32_t* counters, std::uint64_t key, std::uint32_t* bits) {
    Words words[4];
    for (int word = 0; word < 4; ++word) words[word] = _mm512_loadu_si512(counters + word * kVector);
    philox(words, key);
    for (int word = 0; word < 4; ++word) _mm512_storeu_si512(bits + word * kVector, words[word]);
}

}  // namespace
}  // namespace isotrain
