// The frozen encoder over one block of whole sequences, for any instruction set `Isa` (Avx512, Amx<...>).
//
// Every row (token) is computed by the same operations in the same order, whatever its neighbours are. A sequence's
// features therefore have the same bits in every batch, order and number of threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "vector_math.h"

namespace isotrain {
namespace {

constexpr int kQueryRows = 96;  // queries of one sequence with scores in memory together

// The distance between rows of `width` bfloat16 values: an odd number of cache lines, so that the 16 rows of a tile
// never fall onto a few sets of the first-level cache (a multiple of 4 KB would put all of them onto one).
constexpr std::size_t spread(int width) { return (std::size_t(width + 31) / 32 | 1) * 32; }

template <class Isa>
struct Work final : Scratch {
    Work(const Model& m, std::int64_t tokens, std::int64_t sequences, std::int64_t longest_sequence)
        : longest(round_up(int(longest_sequence), kDepth)) {
        // AMX reads whole tiles, so 32 rows after the last one are readable, and 32 columns after those.
        const auto rows = std::size_t(tokens) + 32, firsts = std::size_t(sequences) + 32;
        const auto inner_rows = std::size_t(std::min<std::int64_t>(std::max(tokens, sequences), m.block_tokens)) + 32;
        const auto hidden = std::size_t(m.hidden), line = spread(m.hidden);
        const std::size_t wide = std::max(line, spread(m.embedding));
        residual = allocate<float>(rows * hidden);
        input = allocate<bf16>(rows * wide + kDepth);
        qkv = allocate<bf16>(rows * spread(3 * m.hidden) + kDepth);
        attended = allocate<bf16>(rows * line + kDepth);
        inner = allocate<bf16>(inner_rows * spread(m.intermediate) + kDepth);
        first_residual = allocate<float>(firsts * hidden);
        first_input = allocate<bf16>(firsts * line + kDepth);
        first_query = allocate<bf16>(firsts * line + kDepth);
        const auto keys = std::size_t(longest), width = std::size_t(round_up(m.head_size, kDepth));
        const auto queries = std::size_t(kQueryRows) + 32;
        query = allocate<bf16>(queries * width);
        key = allocate<bf16>(keys * width);
        value = allocate<bf16>(keys * width);
        score = allocate<float>(queries * keys);
        weight = allocate<bf16>(queries * keys + kDepth);
        sum = allocate<float>(queries);
    }

    int longest;
    Buffer<float> residual, first_residual, score, sum;
    Buffer<bf16> input, qkv, attended, inner, first_input, first_query, query, key, value, weight;
    alignas(64) float block[Isa::kRows * Isa::kPanel];
};

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

// LayerNorm (Ba et al. 2016) of `width` values in place, two passes, and its bfloat16 rounding. Squares that overflow
// give NaN: divided by infinity, every value would come out as a plausible 0.
inline void normalise(float* x, bf16* rounded, int width, const Norm& norm, float eps) {
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < width; i += kVector) total = _mm512_add_ps(total, _mm512_loadu_ps(x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / float(width));
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += kVector) {
        const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / float(width);
    const float deviation = std::isfinite(variance) ? std::sqrt(variance + eps) : std::numeric_limits<float>::quiet_NaN();
    const __m512 scale = _mm512_set1_ps(1.0f / deviation);
    for (int i = 0; i < width; i += kVector) {
        const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), scale);
        const __m512 y = _mm512_fmadd_ps(unit, _mm512_loadu_ps(norm.weight + i), _mm512_loadu_ps(norm.bias + i));
        _mm512_storeu_ps(x + i, y);
        store_bf16(rounded + i, y);
    }
}

// One sequence's keys of one head as the second factor of Q K^T: [width / 2][keys][2], and its values as that of P V:
// [keys / 2][width][2]. Entries beyond the last key and the head's width are zero.
inline void pack_key_value(const bf16* key_rows, const bf16* value_rows, std::size_t stride, int length, int keys,
                           int head_size, int width, bf16* key, bf16* value) {
    for (int j = 0; j < length; ++j) {
        const bf16* row = key_rows + j * stride;
        for (int pair = 0; pair < head_size / 2; ++pair)
            std::memcpy(key + (std::size_t(pair) * keys + j) * 2, row + 2 * pair, 2 * sizeof(bf16));
    }
    for (int pair = 0; pair < width / 2; ++pair) {
        const int from = pair < head_size / 2 ? length : 0;
        std::memset(key + (std::size_t(pair) * keys + from) * 2, 0, std::size_t(keys - from) * 2 * sizeof(bf16));
    }
    for (int pair = 0; pair < keys / 2; ++pair) {
        bf16* to = value + std::size_t(pair) * 2 * head_size;
        const bf16* even = value_rows + std::size_t(2) * pair * stride;
        for (int d = 0; d < head_size; d += kVector) {
            __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
            if (2 * pair < length) low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + d));
            if (2 * pair + 1 < length) high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + stride + d));
            const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                 _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            _mm512_storeu_si512(to + 2 * d, both);
        }
    }
}

// p = exp(scale (s - max s)) over the first `length` of `keys` scores, zero after them. Returns the sum of p.
inline float exponentiate(const float* score, bf16* p, int length, int keys, float scale) {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 largest = lowest;
    for (int i = 0; i < length; i += kVector) {
        const __mmask16 real = length - i >= kVector ? 0xFFFF : __mmask16((1u << (length - i)) - 1);
        largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(lowest, real, score + i));
    }
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    const __m512 factor = _mm512_set1_ps(scale * kLog2e);
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < keys; i += kVector) {
        const __mmask16 real =
            length - i >= kVector ? 0xFFFF : (length > i ? __mmask16((1u << (length - i)) - 1) : __mmask16(0));
        const __m512 s = _mm512_sub_ps(_mm512_maskz_loadu_ps(real, score + i), most);
        const __m512 e = _mm512_maskz_mov_ps(real, exp2_ps(_mm512_mul_ps(s, factor)));
        total = _mm512_add_ps(total, e);
        store_bf16(p + i, e);
    }
    return _mm512_reduce_add_ps(total);
}

// softmax(Q K^T / sqrt(d)) V of one sequence. key, value: its rows in the qkv buffer; query, out: `queries` rows.
template <class Isa>
void attend(const Model& m, Work<Isa>& w, Rows<const bf16> query, int queries, const bf16* key_rows,
            const bf16* value_rows, int length, Rows<bf16> out) {
    const int d = m.head_size, width = round_up(d, Isa::kStep), keys = round_up(length, kDepth);
    // Scores are computed for whole vectors of keys. The deeper padding is only for P V.
    const int scored = round_up(length, kVector);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int head = 0; head < m.heads; ++head) {
        const std::size_t at = std::size_t(head) * d;
        pack_key_value(key_rows + at, value_rows + at, spread(3 * m.hidden), length, keys, d, width, w.key.get(),
                       w.value.get());
        for (int first = 0; first < queries; first += kQueryRows) {
            const int count = std::min(queries - first, kQueryRows);
            Rows<const bf16> q{query[first] + at, query.stride};
            if (width != d) {
                // The columns after a head belong to another head, and zero times its infinity would be NaN.
                for (int row = 0; row < count; ++row)
                    std::memcpy(w.query.get() + std::size_t(row) * width, q[row], d * sizeof(bf16));
                q = {w.query.get(), std::size_t(width)};
            }
            product<Isa>(w.block, q, count, w.key.get(), std::size_t(2) * keys, scored, width,
                         [&](int row, int column, __m512 s) {
                             _mm512_storeu_ps(w.score.get() + std::size_t(row) * keys + column, s);
                         });
            for (int row = 0; row < count; ++row)
                w.sum[row] = exponentiate(w.score.get() + std::size_t(row) * keys,
                                          w.weight.get() + std::size_t(row) * keys, length, keys, scale);
            const Rows<const bf16> p{w.weight.get(), std::size_t(keys)};
            product<Isa>(w.block, p, count, w.value.get(), std::size_t(2) * d, d, keys,
                         [&](int row, int column, __m512 v) {
                             store_bf16(out[first + row] + at + column,
                                        _mm512_mul_ps(v, _mm512_set1_ps(1.0f / w.sum[row])));
                         });
        }
    }
}

// x = norm(x + attended W + b); x = norm(x + ffn(x)): what follows the attention, on `rows` rows.
template <class Isa>
void finish_layer(const Model& m, Work<Isa>& w, const Layer& layer, Rows<const bf16> attended, float* x,
                       bf16* input, int rows) {
    const auto hidden = std::size_t(m.hidden), line = spread(m.hidden), width = spread(m.intermediate);
    const auto add = [&](float* base) {
        return [=](int row, int column, __m512 y) {
            float* at = base + std::size_t(row) * hidden + column;
            _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), y));
        };
    };
    // Slices whose intermediate activations stay in the second-level cache.
    for (int start = 0; start < rows; start += m.block_tokens) {
        const int count = std::min(rows - start, m.block_tokens);
        float* residual = x + start * hidden;
        bf16* rounded = input + start * line;
        linear<Isa>(w.block, {attended[start], attended.stride}, count, layer.attention_output, 0, m.hidden,
                    add(residual));
        for (int row = 0; row < count; ++row)
            normalise(residual + row * hidden, rounded + row * line, m.hidden, layer.attention_norm, m.eps);
        bf16* inner = w.inner.get();
        linear<Isa>(w.block, {rounded, line}, count, layer.ffn, 0, m.intermediate,
                    [&](int row, int column, __m512 y) {
                        store_bf16(inner + row * width + column, activate_ps(m.activation, y));
                    });
        linear<Isa>(w.block, {inner, width}, count, layer.ffn_output, 0, m.hidden, add(residual));
        for (int row = 0; row < count; ++row)
            normalise(residual + row * hidden, rounded + row * line, m.hidden, layer.output_norm, m.eps);
    }
}

// The residual stream of `rows` rows in bfloat16, as input of products.
template <class Isa>
void round_residual(const Model& m, Work<Isa>& w, int rows) {
    const auto hidden = std::size_t(m.hidden), line = spread(m.hidden);
    for (int row = 0; row < rows; ++row)
        for (std::size_t i = 0; i < hidden; i += kVector)
            store_bf16(w.input.get() + row * line + i, _mm512_loadu_ps(w.residual.get() + row * hidden + i));
}

// The first layer's input: LayerNorm(word + type + position), and ALBERT's projection to the hidden size.
template <class Isa>
void embed(const Model& m, Work<Isa>& w, const Input& in, const Block& block) {
    const int e = m.embedding, k = round_up(e, kDepth);
    const std::size_t stride = spread(e);
    const int rows = int(block.tokens);
    alignas(64) float x[4096];
    alignas(64) bf16 rounded[4096];
    for (int row = 0; row < rows; ++row) {
        const std::int64_t token = block.first_token + row;
        const bf16* word = m.word_embeddings + in.input_ids[token] * e;
        const float* position = m.position_embeddings + in.position_ids[token] * e;
        const float* type = m.type_embeddings + (in.token_type_ids ? in.token_type_ids[token] * e : 0);
        for (int i = 0; i < e; i += kVector)
            _mm512_store_ps(x + i, _mm512_add_ps(_mm512_add_ps(load_bf16(word + i), _mm512_loadu_ps(type + i)),
                                                 _mm512_loadu_ps(position + i)));
        normalise(x, rounded, e, m.embedding_norm, m.eps);
        std::memcpy(w.input.get() + row * stride, rounded, e * sizeof(bf16));
        if (k > e) std::memset(w.input.get() + row * stride + e, 0, (k - e) * sizeof(bf16));
        if (!m.project) std::memcpy(w.residual.get() + std::size_t(row) * m.hidden, x, e * sizeof(float));
    }
    if (!m.project) return;
    const auto hidden = std::size_t(m.hidden);
    linear<Isa>(w.block, {w.input.get(), stride}, rows, m.projection, 0, m.hidden,
                [&](int row, int column, __m512 y) {
                    _mm512_storeu_ps(w.residual.get() + row * hidden + column, y);
                });
    round_residual(m, w, rows);
}

// Hidden states out of (residual to states) or into (given to residual and its rounded copy) a block's scratch memory.
template <class Isa>
void watch_states(const Model& m, const Work<Isa>& w, const Watch& watch, const Block& block, std::size_t place) {
    const auto hidden = std::size_t(m.hidden);
    float* to = watch.states + (place * std::size_t(watch.tokens) + std::size_t(block.first_token)) * hidden;
    std::memcpy(to, w.residual.get(), std::size_t(block.tokens) * hidden * sizeof(float));
}

template <class Isa>
void take_given(const Model& m, Work<Isa>& w, const Watch& watch, const Block& block, std::size_t depth) {
    const auto hidden = std::size_t(m.hidden);
    const float* from = watch.given + (depth * std::size_t(watch.tokens) + std::size_t(block.first_token)) * hidden;
    std::memcpy(w.residual.get(), from, std::size_t(block.tokens) * hidden * sizeof(float));
    round_residual(m, w, int(block.tokens));
}

template <class Isa>
void forward(const Model& m, Scratch& scratch, const Input& in, const Block& block, float* features,
             const Watch* watch) {
    auto& w = static_cast<Work<Isa>&>(scratch);
    const auto hidden = std::size_t(m.hidden), line = spread(m.hidden), triple = spread(3 * m.hidden);
    const int rows = int(block.tokens), sequences = int(block.sequences);
    const std::int64_t* bounds = in.cu_seqlens + block.first_sequence;
    const auto store_to = [](bf16* base, std::size_t stride) {
        return [=](int row, int column, __m512 y) { store_bf16(base + row * stride + column, y); };
    };
    embed<Isa>(m, w, in, block);
    if (watch) watch_states(m, w, *watch, block, 0);
    const std::size_t num_layers = m.weights_of_layer.size();
    for (std::size_t depth = 0; depth + !watch < num_layers; ++depth) {
        if (watch && watch->given) take_given(m, w, *watch, block, depth);
        const Layer& layer = m.layers[m.weights_of_layer[depth]];
        linear<Isa>(w.block, {w.input.get(), line}, rows, layer.qkv, 0, 3 * m.hidden,
                    store_to(w.qkv.get(), triple));
        for (int s = 0; s < sequences; ++s) {
            const auto start = std::size_t(bounds[s] - block.first_token);
            const int length = int(bounds[s + 1] - bounds[s]);
            const bf16* qkv = w.qkv.get() + start * triple;
            attend<Isa>(m, w, {qkv, triple}, length, qkv + hidden, qkv + 2 * hidden, length,
                        {w.attended.get() + start * line, line});
        }
        finish_layer<Isa>(m, w, layer, {w.attended.get(), line}, w.residual.get(), w.input.get(), rows);
        if (watch) watch_states(m, w, *watch, block, depth + 1);
    }
    if (watch) {
        for (int s = 0; s < sequences; ++s)
            std::memcpy(features + (block.first_sequence + s) * hidden,
                        w.residual.get() + (bounds[s] - block.first_token) * hidden, hidden * sizeof(float));
        return;
    }

    // The last layer: keys and values of all tokens, everything else only of each sequence's first token.
    const Layer& layer = m.layers[m.weights_of_layer[num_layers - 1]];
    linear<Isa>(w.block, {w.input.get(), line}, rows, layer.qkv, m.hidden, 3 * m.hidden,
                store_to(w.qkv.get(), triple));
    for (int s = 0; s < sequences; ++s) {
        const auto start = std::size_t(bounds[s] - block.first_token);
        std::memcpy(w.first_input.get() + s * line, w.input.get() + start * line, hidden * sizeof(bf16));
        std::memcpy(w.first_residual.get() + s * hidden, w.residual.get() + start * hidden, hidden * sizeof(float));
    }
    linear<Isa>(w.block, {w.first_input.get(), line}, sequences, layer.qkv, 0, m.hidden,
                store_to(w.first_query.get(), line));
    for (int s = 0; s < sequences; ++s) {
        const auto start = std::size_t(bounds[s] - block.first_token);
        const bf16* qkv = w.qkv.get() + start * triple;
        attend<Isa>(m, w, {w.first_query.get() + s * line, line}, 1, qkv + hidden, qkv + 2 * hidden,
                    int(bounds[s + 1] - bounds[s]), {w.attended.get() + s * line, line});
    }
    finish_layer<Isa>(m, w, layer, {w.attended.get(), line}, w.first_residual.get(), w.first_input.get(),
                           sequences);
    std::memcpy(features + block.first_sequence * hidden, w.first_residual.get(), sequences * hidden * sizeof(float));
}

// The rate of the register block itself: its operands come from `bytes` of memory, its sums go to the first-level
// cache, and nothing else is computed.
template <class Isa>
double unit_rate(std::size_t bytes, double seconds) {
    constexpr int k = 768;
    const std::size_t panel = std::size_t(k) * Isa::kPanel;
    const std::size_t row_block = std::size_t(Isa::kRows) * k;
    // Half of the working set each: as many panels as fit, and as many blocks of rows.
    const auto panels = std::max<std::size_t>(1, bytes / 2 / (panel * sizeof(bf16)));
    const auto blocks = std::max<std::size_t>(1, bytes / 2 / (row_block * sizeof(bf16)));
    auto b = allocate<bf16>(panels * panel);
    auto a = allocate<bf16>(blocks * row_block + 32 * k);
    alignas(64) float c[Isa::kRows * Isa::kPanel];
    Isa::enter_thread();
    using Clock = std::chrono::steady_clock;
    double best = 0.0;
    const auto begin = Clock::now();
    do {
        const auto start = Clock::now();
        for (std::size_t p = 0; p < panels; ++p)
            for (std::size_t r = 0; r < blocks; ++r) {
                Isa::block(a.get() + r * row_block, k, Isa::kRows, b.get() + p * panel, 2 * Isa::kPanel,
                           Isa::kPanel / kVector, k, c);
                __asm__ volatile("" ::"r"(c) : "memory");  // Without a reader of c, nothing would be computed.
            }
        const double spent = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::max(best, 2.0 * double(panels * blocks) * Isa::kRows * Isa::kPanel * k / spent);
    } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
    Isa::leave_thread();
    return best;
}

template <class Isa>
Scratch* make_scratch(const Model& m, std::int64_t tokens, std::int64_t sequences, std::int64_t longest) {
    return new Work<Isa>(m, tokens, sequences, longest);
}

template <class Isa>
constexpr Engine make_engine(const char* name) {
    return {name, Isa::kPanel, make_scratch<Isa>, forward<Isa>, unit_rate<Isa>, Isa::enter_thread, Isa::leave_thread};
}

}  // namespace
}  // namespace isotrain
