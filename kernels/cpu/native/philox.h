// Dropout by a counter-based generator, Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
// 3"): whether a value is kept depends on the step's key and the value's place only. The backward pass draws the mask
// of the forward pass again instead of reading it.
// Included by translation units that are compiled for AVX-512.
#pragma once

#include "vector_math.h"

namespace isotrain {
namespace {

// One 32-bit word of 16 counters.
using Words = __m512i;

// The two halves of the 64-bit products of 16 words by `factor`.
inline void multiply_words(Words words, std::uint32_t factor, Words& high, Words& low) {
    const Words by = _mm512_set1_epi64(factor);
    const Words even = _mm512_mul_epu32(words, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(words, 32), by);
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
}

// Replaces 16 counters of four words each by their random bits under a 64-bit key.
inline void philox(Words counter[4], std::uint64_t key) {
    std::uint32_t low_key = std::uint32_t(key), high_key = std::uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        Words high0, low0, high2, low2;
        multiply_words(counter[0], 0xD2511F53u, high0, low0);
        multiply_words(counter[2], 0xCD9E8D57u, high2, low2);
        constexpr int kXor3 = 0x96;
        counter[0] = _mm512_ternarylogic_epi32(high2, counter[1], _mm512_set1_epi32(int(low_key)), kXor3);
        counter[1] = low2;
        counter[2] = _mm512_ternarylogic_epi32(high0, counter[3], _mm512_set1_epi32(int(high_key)), kXor3);
        counter[3] = low0;
        low_key += 0x9E3779B9u;
        high_key += 0xBB67AE85u;
    }
}

// What one step drops at one rate.
struct Dropout {
    std::uint64_t key = 0;
    // Of 2^16 values, so many are dropped. 0: none is, and nothing is drawn.
    std::uint32_t dropped = 0;
    // Of those that are kept. It belongs to `dropped`, not to the rate before rounding, so the mean stays what it was.
    float scale = 1.0f;

    Dropout() = default;
    Dropout(std::uint64_t step_key, float rate) : key(step_key), dropped(std::uint32_t(std::lround(rate * 65536.0f))) {
        scale = dropped < 65536 ? 65536.0f / float(65536 - dropped) : 0.0f;
    }
};

// The places of a model where values are dropped. Each has its own masks.
enum DropoutPlace : std::uint32_t { kDropEmbedding, kDropAttention, kDropAttentionOutput, kDropOutput, kDropPlaces };

constexpr std::uint32_t dropout_site(std::size_t layer, DropoutPlace place) {
    return std::uint32_t(layer) * kDropPlaces + place;
}

// One row of a mask, 128 columns at a time: each draw gives 16 bits for each of them.
class DropoutRow {
   public:
    DropoutRow(const Dropout& dropout, std::uint32_t site, std::uint32_t row)
        : dropout_(dropout), site_(site), row_(row) {}

    // Which of 16 columns are kept. `column`, the first one, is a multiple of 16.
    __mmask16 kept(int column) {
        if (!dropout_.dropped) return 0xFFFF;
        if (column / kColumns != drawn_) draw(column / kColumns);
        return masks_[column % kColumns / kVector];
    }

    // Their factors: 0, or `scale` where a value is kept.
    __m512 factors(int column) { return _mm512_maskz_mov_ps(kept(column), _mm512_set1_ps(dropout_.scale)); }

   private:
    static constexpr int kColumns = 8 * kVector;

    void draw(int block) {
        const Words lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Words words[4] = {_mm512_add_epi32(lanes, _mm512_set1_epi32(block * kVector)),
                          _mm512_set1_epi32(int(row_)), _mm512_set1_epi32(int(site_)), _mm512_setzero_si512()};
        philox(words, dropout_.key);
        const __m512i limit = _mm512_set1_epi32(int(dropout_.dropped));
        for (int word = 0; word < 4; ++word) {
            masks_[2 * word] = _mm512_cmpge_epu32_mask(_mm512_and_si512(words[word], _mm512_set1_epi32(0xFFFF)), limit);
            masks_[2 * word + 1] = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(words[word], 16), limit);
        }
        drawn_ = block;
    }

    const Dropout& dropout_;
    std::uint32_t site_, row_;
    int drawn_ = -1;
    __mmask16 masks_[8] = {};
};

}  // namespace
}  // namespace isotrain
