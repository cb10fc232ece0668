// Matrices of bfloat16 turned or interleaved into the order in which a product reads its second factor.
#pragma once

#include <algorithm>

#include "products.h"

namespace isotrain {
namespace {

// Row r, column c of 16 x 16 words goes to row c, column r.
inline void transpose_words(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    }
}

// store(pair, row, vector): the values 2 pair and 2 pair + 1 of the rows row .. row + 15, low halves first. Rows from
// `rows` to `padded` (a multiple of 16) are zero. width is a multiple of 16.
template <class Store>
void transpose_pairs(Rows<const bf16> from, int rows, int padded, int width, const Store& store) {
    for (int row = 0; row < padded; row += kVector)
        for (int pair = 0; pair < width / 2; pair += kVector) {
            const int pairs = std::min(kVector, width / 2 - pair);
            const bf16* first = from.data + row * from.stride + 2 * pair;
            __m512i words[kVector];
            if (row + kVector <= rows && pairs == kVector) {
                for (int r = 0; r < kVector; ++r) words[r] = _mm512_loadu_si512(first + r * from.stride);
                transpose_words(words);
                for (int p = 0; p < kVector; ++p) store(pair + p, row, words[p]);
                continue;
            }
            for (int r = 0; r < kVector; ++r) {
                const __mmask16 read = row + r < rows ? __mmask16((1u << pairs) - 1) : __mmask16(0);
                words[r] = _mm512_maskz_loadu_epi32(read, read ? first + r * from.stride : from.data);
            }
            transpose_words(words);
            for (int p = 0; p < pairs; ++p) store(pair + p, row, words[p]);
        }
}

// Rows as the columns of a second factor: [width / 2][line][2]. The columns from `rows` to the next multiple of 16 are
// zero.
inline void pack_columns(Rows<const bf16> from, int rows, int width, int line, bf16* to) {
    transpose_pairs(from, rows, round_up(rows, kVector), width, [&](int pair, int row, __m512i words) {
        _mm512_storeu_si512(to + (std::size_t(pair) * line + row) * 2, words);
    });
}

inline void store_low_halves(bf16* to, __m512i words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(words));
}

// Rows turned into columns of a first factor: [width][line]. The columns from `rows` to `padded` are zero.
inline void turn(Rows<const bf16> from, int rows, int padded, int width, Rows<bf16> to) {
    transpose_pairs(from, rows, padded, width, [&](int pair, int row, __m512i words) {
        store_low_halves(to[2 * pair] + row, words);
        store_low_halves(to[2 * pair + 1] + row, _mm512_srli_epi32(words, 16));
    });
}

// bfloat16 roundings, each in the low half of a word.
inline __m512i rounded_words(__m512 values) {
    const __m256bh rounded = _mm512_cvtneps_pbh(values);
    __m256i bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    return _mm512_cvtepu16_epi32(bits);
}

// Two vectors of float32 as pairs of bfloat16.
inline void store_pairs(bf16* to, __m512 even, __m512 odd) {
    _mm512_storeu_si512(to, _mm512_or_si512(rounded_words(even), _mm512_slli_epi32(rounded_words(odd), 16)));
}

// Rows as those of a second factor: [padded / 2][width][2]. Rows from `rows` to `padded` (even) are zero.
inline void pack_rows(Rows<const bf16> from, int rows, int padded, int width, bf16* to) {
    for (int row = 0; row < padded; row += 2)
        for (int column = 0; column < width; column += kVector) {
            const auto half = [&](int r) {
                return r < rows ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[r] + column)))
                                : _mm512_setzero_si512();
            };
            _mm512_storeu_si512(to + (std::size_t(row / 2) * width + column) * 2,
                                _mm512_or_si512(half(row), _mm512_slli_epi32(half(row + 1), 16)));
        }
}

}  // namespace
}  // namespace isotrain
