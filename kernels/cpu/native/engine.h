// The frozen encoder over one block of whole sequences, for any instruction set `Isa` (Avx512, Avx512Vnni, Amx<...>).
//
// Every row (token) is computed by the same operations in the same order, whatever its neighbours are. A sequence's
// features therefore have the same bits in every batch, order and number of threads.
#pragma once

#include <algorithm>
#include <chrono>

#include "attention.h"
#include "probe.h"
#include "train_embedding.h"

namespace isotrain {
namespace {

template <class Isa>
struct Work final : Scratch {
    using Element = typename Isa::Element;

    Work(const Model& m, std::int64_t tokens, std::int64_t sequences, std::int64_t longest)
        : attention(int(longest), m.head_size) {
        // AMX reads whole tiles, so 32 rows after the last one are readable, and a tile's row after those.
        const auto rows = std::size_t(tokens) + 32, firsts = std::size_t(sequences) + 32;
        const auto inner_rows = std::size_t(std::min<std::int64_t>(std::max(tokens, sequences), m.block_tokens)) + 32;
        const auto hidden = std::size_t(m.hidden), line = spread(m.hidden), row = spread(m.hidden, sizeof(Element));
        const std::size_t wide = std::max(row, spread(m.embedding, sizeof(Element)));
        residual = allocate<float>(rows * hidden);
        input = allocate<Element>(rows * wide + kTileBytes);
        input_scale = allocate<float>(rows);
        qkv = allocate<bf16>(rows * spread(3 * m.hidden) + kDepth);
        attended = allocate<bf16>(rows * line + kDepth);
        inner = allocate<bf16>(inner_rows * spread(m.intermediate) + kDepth);
        slice_scale = allocate<float>(inner_rows);
        first_residual = allocate<float>(firsts * hidden);
        first_input = allocate<Element>(firsts * row + kTileBytes);
        first_scale = allocate<float>(firsts);
        first_query = allocate<bf16>(firsts * line + kDepth);
    }

    AttentionScratch<typename Isa::Bf16> attention;
    Buffer<float> residual, first_residual, input_scale, first_scale, slice_scale;
    Buffer<Element> input, first_input;
    Buffer<bf16> qkv, attended, inner, first_query;
    alignas(64) float block[2 * Isa::kRows * Isa::kPanel];  // see Blocks
};

// softmax(Q K^T / sqrt(d)) V of one sequence. key, value: its rows in the qkv buffer; query, out: `queries` rows.
template <class Isa>
void attend(const Model& m, Work<Isa>& w, Rows<const bf16> query, int queries, const bf16* key_rows,
            const bf16* value_rows, int length, Rows<bf16> out) {
    const std::size_t triple = spread(3 * m.hidden);
    for (int head = 0; head < m.heads; ++head) {
        const int at = head * m.head_size;
        attention_forward(w.attention,
                          {{query.data + at, query.stride}, {key_rows + at, triple}, {value_rows + at, triple},
                           queries, length, m.head_size, {}},
                          {out.data + at, out.stride}, nullptr);
    }
}

// x = norm(x + attended W + b); x = norm(x + ffn(x)): what follows the attention, on `rows` rows. next: the factors of
// the next layer's input.
template <class Isa>
void finish_layer(const Model& m, Work<Isa>& w, const Layer& layer, Rows<bf16> attended, float* x,
                  Rows<typename Isa::Element> input, int rows, const float* next) {
    using Element = typename Isa::Element;
    const auto hidden = std::size_t(m.hidden), width = spread(m.intermediate);
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
        float* scale = w.slice_scale.get();
        const Rows<Element> rounded{input[start], input.stride, input.scale + start};
        const auto norm = [&](const Norm& weights, const float* factors) {
            for (int row = 0; row < count; ++row)
                rounded.scale[row] =
                    normalise(residual + row * hidden, rounded[row], m.hidden, weights, m.eps, factors);
        };
        linear<Isa>(w.block, operands<Element>({attended[start], attended.stride}, count, m.hidden, scale), count,
                    layer.attention_output, 0, m.hidden, add(residual));
        norm(layer.attention_norm, layer.ffn.input);
        bf16* inner = w.inner.get();
        linear<Isa>(w.block, {rounded.data, rounded.stride, rounded.scale}, count, layer.ffn, 0, m.intermediate,
                    [&](int row, int column, __m512 y) {
                        store_bf16(inner + row * width + column, activate_ps(m.activation, y));
                    });
        linear<Isa>(w.block, operands<Element>({inner, width}, count, m.intermediate, scale), count,
                    layer.ffn_output, 0, m.hidden, add(residual));
        norm(layer.output_norm, next);
    }
}

// The factors of the input of the layer at `depth`, or null.
inline const float* input_factors(const Model& m, std::size_t depth) {
    return depth < m.weights_of_layer.size() ? m.layers[m.weights_of_layer[depth]].qkv.input : nullptr;
}

// The residual stream of `rows` rows as input of the layer at `depth`.
template <class Isa>
void round_residual(const Model& m, Work<Isa>& w, int rows, std::size_t depth) {
    const std::size_t line = spread(m.hidden, sizeof(typename Isa::Element));
    for (int row = 0; row < rows; ++row)
        w.input_scale[row] =
            round_row(w.residual.get() + row * std::size_t(m.hidden), w.input.get() + row * line, m.hidden,
                      input_factors(m, depth));
}

// The first layer's input: LayerNorm(word + type + position), and ALBERT's projection to the hidden size.
template <class Isa>
void embed_block(const Model& m, Work<Isa>& w, const Input& in, const Block& block) {
    constexpr int bytes = sizeof(typename Isa::Element);
    const int e = m.embedding, k = round_up(e, kTileBytes / bytes);
    const std::size_t stride = spread(e, bytes);
    const int rows = int(block.tokens);
    alignas(64) float x[4096];
    for (int row = 0; row < rows; ++row) {
        const std::int64_t token = block.first_token + row;
        const bf16* word = m.word_embeddings + in.input_ids[token] * e;
        const float* position = m.position_embeddings + in.position_ids[token] * e;
        const float* type = m.type_embeddings + (in.token_type_ids ? in.token_type_ids[token] * e : 0);
        for (int i = 0; i < e; i += kVector)
            _mm512_store_ps(x + i, _mm512_add_ps(_mm512_add_ps(load_bf16(word + i), _mm512_loadu_ps(type + i)),
                                                 _mm512_loadu_ps(position + i)));
        auto* rounded = w.input.get() + row * stride;
        w.input_scale[row] =
            normalise(x, rounded, e, m.embedding_norm, m.eps, m.project ? nullptr : input_factors(m, 0));
        if (k > e) std::memset(rounded + e, 0, (k - e) * bytes);
        if (!m.project) std::memcpy(w.residual.get() + std::size_t(row) * m.hidden, x, e * sizeof(float));
    }
    if (!m.project) return;
    const auto hidden = std::size_t(m.hidden);
    linear<Isa>(w.block, {w.input.get(), stride, w.input_scale.get()}, rows, m.projection, 0, m.hidden,
                [&](int row, int column, __m512 y) {
                    _mm512_storeu_ps(w.residual.get() + row * hidden + column, y);
                });
    round_residual(m, w, rows, 0);
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
    round_residual(m, w, int(block.tokens), depth);
}

template <class Isa>
void forward(const Model& m, Scratch& scratch, const Input& in, const Block& block, float* features,
             const Watch* watch) {
    auto& w = static_cast<Work<Isa>&>(scratch);
    using Element = typename Isa::Element;
    const auto hidden = std::size_t(m.hidden), line = spread(m.hidden), triple = spread(3 * m.hidden);
    const Rows<Element> input{w.input.get(), spread(m.hidden, sizeof(Element)), w.input_scale.get()};
    const Rows<Element> first_input{w.first_input.get(), input.stride, w.first_scale.get()};
    const int rows = int(block.tokens), sequences = int(block.sequences);
    const std::int64_t* bounds = in.cu_seqlens + block.first_sequence;
    const auto store_to = [](bf16* base, std::size_t stride) {
        return [=](int row, int column, __m512 y) { store_bf16(base + row * stride + column, y); };
    };
    embed_block<Isa>(m, w, in, block);
    if (watch) watch_states(m, w, *watch, block, 0);
    const std::size_t num_layers = m.weights_of_layer.size();
    for (std::size_t depth = 0; depth + !watch < num_layers; ++depth) {
        if (watch && watch->given) take_given(m, w, *watch, block, depth);
        const Layer& layer = m.layers[m.weights_of_layer[depth]];
        linear<Isa>(w.block, {input.data, input.stride, input.scale}, rows, layer.qkv, 0, 3 * m.hidden,
                    store_to(w.qkv.get(), triple));
        for (int s = 0; s < sequences; ++s) {
            const auto start = std::size_t(bounds[s] - block.first_token);
            const int length = int(bounds[s + 1] - bounds[s]);
            const bf16* qkv = w.qkv.get() + start * triple;
            attend<Isa>(m, w, {qkv, triple}, length, qkv + hidden, qkv + 2 * hidden, length,
                        {w.attended.get() + start * line, line});
        }
        finish_layer<Isa>(m, w, layer, {w.attended.get(), line}, w.residual.get(), input, rows,
                          input_factors(m, depth + 1));
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
    linear<Isa>(w.block, {input.data, input.stride, input.scale}, rows, layer.qkv, m.hidden, 3 * m.hidden,
                store_to(w.qkv.get(), triple));
    for (int s = 0; s < sequences; ++s) {
        const auto start = std::size_t(bounds[s] - block.first_token);
        std::memcpy(first_input[s], input[start], hidden * sizeof(Element));
        first_input.scale[s] = input.scale[start];
        std::memcpy(w.first_residual.get() + s * hidden, w.residual.get() + start * hidden, hidden * sizeof(float));
    }
    linear<Isa>(w.block, {first_input.data, first_input.stride, first_input.scale}, sequences, layer.qkv, 0, m.hidden,
                store_to(w.first_query.get(), line));
    for (int s = 0; s < sequences; ++s) {
        const auto start = std::size_t(bounds[s] - block.first_token);
        const bf16* qkv = w.qkv.get() + start * triple;
        attend<Isa>(m, w, {w.first_query.get() + s * line, line}, 1, qkv + hidden, qkv + 2 * hidden,
                    int(bounds[s + 1] - bounds[s]), {w.attended.get() + s * line, line});
    }
    finish_layer<Isa>(m, w, layer, {w.attended.get(), line}, w.first_residual.get(), first_input, sequences, nullptr);
    std::memcpy(features + block.first_sequence * hidden, w.first_residual.get(), sequences * hidden * sizeof(float));
}

// The rate of the register block itself: its operands come from `bytes` of memory, its sums go to the first-level
// cache, and nothing else is computed.
template <class Isa>
double unit_rate(std::size_t bytes, double seconds) {
    using Element = typename Isa::Element;
    using Weight = typename Isa::Weight;
    // Not a constant: GCC 12 would keep the sums of a block of known depth in memory.
    const volatile int depth = 768;
    const int k = depth;
    const std::size_t panel = std::size_t(k) * Isa::kPanel;
    const std::size_t row_block = std::size_t(Isa::kRows) * k;
    // Half of the working set each: as many panels as fit, and as many blocks of rows.
    const auto panels = std::max<std::size_t>(1, bytes / 2 / (panel * sizeof(Weight)));
    const auto blocks = std::max<std::size_t>(1, bytes / 2 / (row_block * sizeof(Element)));
    auto b = allocate<Weight>(panels * panel);
    auto a = allocate<Element>(blocks * row_block + 32 * k);
    alignas(64) float c[Isa::kRows * Isa::kPanel];
    Nothing nothing;
    Isa::enter_thread();
    using Clock = std::chrono::steady_clock;
    double best = 0.0;
    const auto begin = Clock::now();
    do {
        const auto start = Clock::now();
        for (std::size_t p = 0; p < panels; ++p)
            for (std::size_t r = 0; r < blocks; ++r) {
                Isa::block(a.get() + r * row_block, k, Isa::kRows, b.get() + p * panel, Isa::kGroup * Isa::kPanel,
                           Isa::kPanel / kVector, k, c, nothing);
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
constexpr Engine make_engine(const char* name, const Training* training = nullptr) {
    return {name,
            Isa::kPanel,
            sizeof(typename Isa::Element),
            make_scratch<Isa>,
            forward<Isa>,
            unit_rate<Isa>,
            Isa::enter_thread,
            Isa::leave_thread,
            training,
            embed,
            embed_backward,
            probe_attention<typename Isa::Bf16>,
            probe_dropout,
            probe_philox};
}

}  // namespace
}  // namespace isotrain
