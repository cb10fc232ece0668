// A training step of the whole encoder for any instruction set `Isa`: forward and backward over a packed batch.
//
// Every thread runs the same code, and a Team shares out the tasks of each loop: blocks of rows and columns of a
// product, rows of a LayerNorm, heads of a sequence. Each value is summed by one task in an order that depends on the
// batch only, so gradients have the same bits for any number of threads.
#pragma once

#include "train.h"
#include "train_attention.h"
#include "train_gradient.h"

namespace isotrain {
namespace {

template <class Isa>
struct TrainScratch final : Scratch {
    TrainScratch(const TrainModel& m, int longest, int depth)
        : attention(longest, m.head_size), width(std::max(m.hidden, m.intermediate)) {
        rows = allocate<bf16>(std::max(turned_size(kTaskRows, depth), std::size_t(kWeightRows) * spread(width)) + kDepth);
    }

    AttentionGradientScratch<Isa> attention;
    int width;
    Buffer<bf16> rows;  // of a weight, or of a gradient turned into columns
    alignas(64) float block[2 * Isa::kRows * Isa::kPanel];  // see Blocks
};

// One thread's part in a step.
template <class Isa>
class TrainStep {
   public:
    TrainStep(const TrainModel& m, TrainTape& t, Scratch& scratch, Team& team)
        : m_(m),
          t_(t),
          s_(static_cast<TrainScratch<Isa>&>(scratch)),
          team_(team),
          hidden_(m.hidden),
          line_(spread(m.hidden)),
          wide_(spread(m.intermediate)),
          triple_(spread(3 * m.hidden)),
          attention_dropout_(t.key, t.attention_dropout),
          attention_output_dropout_(t.key, t.attention_output_dropout),
          output_dropout_(t.key, t.output_dropout) {}

    void forward(const TrainForward& in) {
        pack_weights<kPanel>(team_, m_, in.masters, t_.keep != kNothing, {s_.rows.get(), spread(s_.width)});
        embed(in.embedded);
        const std::size_t layers = m_.weights_of_layer.size();
        const bool keep = t_.keep == kEverything;
        if (in.layer_states) copy_rows(in.layer_states, stream(0));
        begin_layer(stream(0), keep ? inputs_of(0) : LayerInputs{});
        for (std::size_t layer = 0; layer < layers; ++layer) {
            const bool last = layer + 1 == layers;
            const std::size_t states = t_.tokens * hidden_;
            if (in.given) {
                copy_rows(stream(layer), in.given + layer * states);
                begin_layer(stream(layer), LayerInputs{});
            }
            layer_forward(layer, stream(layer), last ? in.states : stream(layer + 1), saved(layer),
                          keep ? inputs_of(layer) : LayerInputs{},
                          keep && !last ? inputs_of(layer + 1).layer : PackedRows{});
            if (in.layer_states)
                copy_rows(in.layer_states + (layer + 1) * states, last ? in.states : stream(layer + 1));
        }
    }

    void backward(const TrainBackward& in) {
        const float* from = in.states;
        std::size_t end = m_.weights_of_layer.size();
        while (end > 0) {
            std::size_t first = end - 1;
            while (first > 0 && m_.weights_of_layer[first - 1] == m_.weights_of_layer[end - 1] &&
                   end - first < std::size_t(t_.uses))
                --first;
            for (std::size_t layer = end; layer-- > first;) {
                const LayerInputs inputs = inputs_of(layer, layer - first);
                if (t_.keep == kInputs) {
                    begin_layer(stream(layer), inputs);
                    layer_forward(layer, stream(layer), t_.sums, saved(layer), inputs, PackedRows{});
                }
                const bool out = layer == 0 && !m_.project && in.embedded;
                layer_backward(layer, layer - first, from, out ? in.embedded : t_.gradient);
                from = t_.gradient;
            }
            shared_gradients(first, end, in.gradients);
            end = first;
        }
        if (m_.project) projection_backward(in);
    }

   private:
    static constexpr int kPanel = Isa::kPanel;

    struct LayerInputs {
        PackedRows layer, attended, middle, inner;
    };

    float* stream(std::size_t layer) const { return t_.streams[t_.keep == kInputs ? layer : 0]; }
    const Saved& saved(std::size_t layer) const { return t_.saved[t_.keep == kEverything ? layer : 0]; }
    const TrainLayer& weights(std::size_t layer) const { return m_.layers[m_.weights_of_layer[layer]]; }

    // Where a layer's inputs are packed. With checkpoints, `use` counts those of the gradient that is computed next.
    LayerInputs inputs_of(std::size_t layer, std::size_t use = 0) const {
        const bool all = t_.keep == kEverything;
        const PackedInputs& packed = t_.inputs[all ? m_.weights_of_layer[layer] : 0];
        if (all) use = m_.use_of_layer[layer];
        const auto rows = [&](bf16* data) { return PackedRows{data, packed.depth, use * t_.even}; };
        return {rows(packed.layer), rows(packed.attended), rows(packed.middle), rows(packed.inner)};
    }

    // f(first, count): blocks of rows.
    template <class F>
    void each_rows(const F& f) {
        team_.each((t_.tokens + kNormRows - 1) / kNormRows, [&](int task) {
            const int first = task * kNormRows;
            f(first, std::min(t_.tokens - first, kNormRows));
        });
    }

    // finish(row, column, sums): all rows of a x b as vectors of 16 columns. b: a weight's packed panels, `columns` x k.
    // after(column, columns, first, count) follows each task.
    template <class Finish, class After>
    void multiply(Rows<const bf16> a, const bf16* b, int columns, int k, const Finish& finish, const After& after) {
        const int panels = (columns + kPanel - 1) / kPanel, blocks = (t_.tokens + Isa::kRows - 1) / Isa::kRows;
        const int wanted = std::max((blocks * Isa::kRows + kTaskRows - 1) / kTaskRows,
                                    (kTasksPerThread * team_.size() + panels - 1) / panels);
        const int rows = (blocks + std::min(wanted, blocks) - 1) / std::min(wanted, blocks) * Isa::kRows;
        const int parts = (t_.tokens + rows - 1) / rows;
        team_.each(panels * parts, [&](int task) {
            const int column = task / parts * kPanel, first = task % parts * rows;
            const int count = std::min(t_.tokens - first, rows), width = std::min(columns - column, kPanel);
            product<Isa>(s_.block, {a[first], a.stride}, count, b + std::size_t(column) * k, 2 * kPanel, width, k,
                         [&](int row, int part, __m512 sums) { finish(first + row, column + part, sums); });
            after(column, width, first, count);
        });
    }

    template <class Finish>
    void multiply(Rows<const bf16> a, const bf16* b, int columns, int k, const Finish& finish) {
        multiply(a, b, columns, k, finish, [](int, int, int, int) {});
    }

    void copy_rows(float* to, const float* from) {
        each_rows([&](int first, int count) {
            std::memcpy(to + first * hidden_, from + first * hidden_, count * hidden_ * sizeof(float));
        });
    }

    // The residual stream of the first layer.
    void embed(const float* embedded) {
        float* to = stream(0);
        if (!m_.project) {
            copy_rows(to, embedded);
            return;
        }
        const int width = m_.embedding, depth = round_up(width, kDepth);
        const Rows<bf16> rows{t_.embedded_rows, spread(width)};
        each_rows([&](int first, int count) {
            round_rows(embedded + std::size_t(first) * width, width, count, {rows[first], rows.stride});
            if (t_.keep != kNothing)
                pack_inputs<kPanel>({rows.data, rows.stride}, first, count, 0, width,
                                    {t_.embedded_packed, std::size_t(t_.even), 0});
        });
        const float* bias = m_.projection.bias;
        multiply({rows.data, rows.stride}, m_.projection.forward, m_.hidden, depth,
                 [&](int row, int column, __m512 sums) {
                     _mm512_storeu_ps(to + row * hidden_ + column, _mm512_add_ps(sums, _mm512_loadu_ps(bias + column)));
                 });
    }

    // A layer's input in bfloat16.
    void begin_layer(const float* from, const LayerInputs& inputs) {
        each_rows([&](int first, int count) {
            const Rows<bf16> rows{t_.layer_rows, line_};
            round_rows(from + first * hidden_, m_.hidden, count, {rows[first], line_});
            pack_inputs<kPanel>({rows.data, line_}, first, count, 0, m_.hidden, inputs.layer);
        });
    }

    // to = norm(from + dropout(sums)), its rounded rows, and what the backward pass needs.
    void add_and_normalise(const float* from, const Dropout& dropout, std::uint32_t site, const Norm& norm, float* to,
                           bf16* rounded, bf16* unit, float* scale, const PackedRows& packed) {
        each_rows([&](int first, int count) {
            for (int row = first; row < first + count; ++row) {
                DropoutRow kept(dropout, site, std::uint32_t(row));
                const std::size_t at = row * hidden_;
                for (int i = 0; i < m_.hidden; i += kVector) {
                    const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(t_.sums + at + i), kept.factors(i));
                    _mm512_storeu_ps(to + at + i, _mm512_add_ps(_mm512_loadu_ps(from + at + i), sum));
                }
                scale[row] = normalise_and_keep(to + at, rounded + row * line_, unit + at, m_.hidden, norm, m_.eps);
            }
            pack_inputs<kPanel>({rounded, line_}, first, count, 0, m_.hidden, packed);
        });
    }

    Head head_of(const Saved& saved, int task, std::size_t layer) const {
        const int sequence = task / m_.heads, head = task % m_.heads;
        const auto start = std::size_t(t_.bounds[sequence]);
        const int length = int(t_.bounds[sequence + 1] - t_.bounds[sequence]);
        const bf16* query = saved.qkv + start * triple_ + std::size_t(head) * m_.head_size;
        return {{query, triple_},
                {query + hidden_, triple_},
                {query + 2 * hidden_, triple_},
                length,
                length,
                m_.head_size,
                {attention_dropout_, dropout_site(layer, kDropAttention),
                 std::uint32_t(start) * std::uint32_t(m_.heads) + std::uint32_t(head), std::uint32_t(m_.heads)}};
    }

    // The first of a head's log_sums.
    float* log_sums_of(const Saved& saved, int task, int length) const {
        return saved.log_sums + t_.bounds[task / m_.heads] * m_.heads + task % m_.heads * length;
    }

    void layer_forward(std::size_t layer, const float* from, float* to, const Saved& saved, const LayerInputs& inputs,
                       const PackedRows& next) {
        const TrainLayer& w = weights(layer);
        const int tasks = int(t_.bounds.size() - 1) * m_.heads;
        multiply({t_.layer_rows, line_}, w.qkv.forward, w.qkv.n, w.qkv.k, [&](int row, int column, __m512 sums) {
            store_bf16(saved.qkv + row * triple_ + column, _mm512_add_ps(sums, _mm512_loadu_ps(w.qkv.bias + column)));
        });
        team_.each(tasks, [&](int task) {
            const Head head = head_of(saved, task, layer);
            const std::size_t at = std::size_t(t_.bounds[task / m_.heads]) * line_ + task % m_.heads * m_.head_size;
            attention_forward<Isa>(s_.attention, head, {saved.attended + at, line_},
                                   log_sums_of(saved, task, head.length));
        });
        const auto to_sums = [&](const TrainWeight& weight) {
            return [this, bias = weight.bias](int row, int column, __m512 sums) {
                _mm512_storeu_ps(t_.sums + row * hidden_ + column, _mm512_add_ps(sums, _mm512_loadu_ps(bias + column)));
            };
        };
        // As many panels go out as came in: a task also packs those of its own columns.
        multiply({saved.attended, line_}, w.attention_output.forward, m_.hidden, m_.hidden, to_sums(w.attention_output),
                 [&](int column, int width, int first, int count) {
                     pack_inputs<kPanel>({saved.attended, line_}, first, count, column, width, inputs.attended);
                 });
        add_and_normalise(from, attention_output_dropout_, dropout_site(layer, kDropAttentionOutput), w.attention_norm,
                          t_.middle, t_.middle_rows, saved.attention_unit, saved.attention_scale, inputs.middle);
        multiply(
            {t_.middle_rows, line_}, w.ffn.forward, w.ffn.n, w.ffn.k,
            [&](int row, int column, __m512 sums) {
                const Activated y =
                    activate_with_slope_ps(m_.activation, _mm512_add_ps(sums, _mm512_loadu_ps(w.ffn.bias + column)));
                store_bf16(t_.inner_rows + row * wide_ + column, y.value);
                store_bf16(saved.slope + row * wide_ + column, y.slope);
            },
            [&](int column, int width, int first, int count) {
                pack_inputs<kPanel>({t_.inner_rows, wide_}, first, count, column, width, inputs.inner);
            });
        multiply({t_.inner_rows, wide_}, w.ffn_output.forward, m_.hidden, w.ffn_output.k, to_sums(w.ffn_output));
        add_and_normalise(t_.middle, output_dropout_, dropout_site(layer, kDropOutput), w.output_norm, to,
                          t_.layer_rows, saved.output_unit, saved.output_scale, next);
    }

    // The first row of a use in a buffer of `uses` gradients.
    Rows<bf16> rows_of(bf16* data, std::size_t stride, std::size_t use) const {
        return {data + use * t_.even * stride, stride};
    }

    float* norm_sums_of(std::size_t use, int norm, int block) const {
        const std::size_t blocks = (t_.tokens + kNormRows - 1) / kNormRows;
        return t_.norm_sums + ((use * 2 + norm) * blocks + block) * 2 * hidden_;
    }

    // Through norm(x + dropout(y)): from `from` to the gradient of x, and that of y in bfloat16.
    void norm_backward(const float* from, const Norm& norm, const bf16* unit, const float* scale,
                       const Dropout& dropout, std::uint32_t site, std::size_t use, int index, Rows<bf16> rounded) {
        each_rows([&](int first, int count) {
            float* sums = norm_sums_of(use, index, first / kNormRows);
            std::memset(sums, 0, 2 * hidden_ * sizeof(float));
            for (int row = first; row < first + count; ++row) {
                const std::size_t at = row * hidden_;
                normalise_backward(from + at, unit + at, scale[row], norm.weight, m_.hidden, t_.gradient + at,
                                   rounded[row], DropoutRow(dropout, site, std::uint32_t(row)), sums, sums + hidden_);
            }
            if (first + count == t_.tokens && t_.even > t_.tokens)
                std::memset(rounded[t_.tokens], 0, hidden_ * sizeof(bf16));
        });
    }

    // From the gradient `from` of a layer's output to that of its input, `to`, and those of its products' outputs.
    void layer_backward(std::size_t layer, std::size_t use, const float* from, float* to) {
        const TrainLayer& w = weights(layer);
        const Saved& kept = saved(layer);
        const Rows<bf16> output = rows_of(t_.output_gradient, line_, use), inner = rows_of(t_.inner_gradient, wide_, use);
        const Rows<bf16> attention = rows_of(t_.attention_gradient, line_, use);
        const Rows<bf16> qkv = rows_of(t_.qkv_gradient, triple_, use);
        const auto add_to = [&](float* base) {
            return [=](int row, int column, __m512 sums) {
                const std::size_t at = row * hidden_ + column;
                _mm512_storeu_ps(base + at, _mm512_add_ps(_mm512_loadu_ps(t_.gradient + at), sums));
            };
        };
        norm_backward(from, w.output_norm, kept.output_unit, kept.output_scale, output_dropout_,
                      dropout_site(layer, kDropOutput), use, 1, output);
        multiply({output.data, line_}, w.ffn_output.backward, w.ffn_output.k, m_.hidden,
                 [&](int row, int column, __m512 sums) {
                     const __m512 slope = load_bf16(kept.slope + row * wide_ + column);
                     store_bf16(inner[row] + column, _mm512_mul_ps(sums, slope));
                 });
        multiply({inner.data, wide_}, w.ffn.backward, m_.hidden, w.ffn.n, add_to(t_.gradient));
        norm_backward(t_.gradient, w.attention_norm, kept.attention_unit, kept.attention_scale,
                      attention_output_dropout_, dropout_site(layer, kDropAttentionOutput), use, 0, attention);
        const Rows<bf16> attended{t_.attended_gradient, line_};
        multiply({attention.data, line_}, w.attention_output.backward, m_.hidden, m_.hidden,
                 [&](int row, int column, __m512 sums) { store_bf16(attended[row] + column, sums); });
        team_.each(int(t_.bounds.size() - 1) * m_.heads, [&](int task) {
            const Head head = head_of(kept, task, layer);
            const auto start = std::size_t(t_.bounds[task / m_.heads]);
            const std::size_t column = std::size_t(task % m_.heads) * m_.head_size;
            bf16* query = qkv[start] + column;
            attention_backward<Isa>(s_.attention, head, {attended[start] + column, line_},
                                    log_sums_of(kept, task, head.length), {query, triple_},
                                    {query + hidden_, triple_}, {query + 2 * hidden_, triple_});
        });
        multiply({qkv.data, triple_}, w.qkv.backward, m_.hidden, w.qkv.n, add_to(to));
    }

    // The gradients of the weights that the layers [first, end) share, added to those of the layers after them.
    void shared_gradients(std::size_t first, std::size_t end, float* const* gradients) {
        const int group = m_.weights_of_layer[first];
        float* const* to = gradients + kProjectionTensors + group * kLayerTensors;
        const bool add = m_.use_of_layer[end - 1] + 1 < m_.uses_of_weights[group];
        const LayerInputs in = inputs_of(first);
        const auto gradient = [&](Rows<const bf16> rows, const PackedRows& input, int n, int k, int tensor) {
            return WeightGradient{rows, input, n, k, to[tensor], to[tensor + 1]};
        };
        const int hidden = m_.hidden;
        // The largest first, so that threads end about together.
        const WeightGradient list[] = {
            gradient({t_.output_gradient, line_}, in.inner, hidden, m_.intermediate, kFfnOutput),
            gradient({t_.inner_gradient, wide_}, in.middle, m_.intermediate, hidden, kFfn),
            gradient({t_.qkv_gradient, triple_}, in.layer, hidden, hidden, kQuery),
            gradient({t_.qkv_gradient + hidden_, triple_}, in.layer, hidden, hidden, kKey),
            gradient({t_.qkv_gradient + 2 * hidden_, triple_}, in.layer, hidden, hidden, kValue),
            gradient({t_.attention_gradient, line_}, in.attended, hidden, hidden, kAttentionOutput)};
        const int uses = int(end - first);
        weight_gradients<Isa>(team_, s_.block, s_.rows.get(), list, 6, uses * t_.even, add);
        team_.each(4, [&](int task) {
            float* sum = to[(task < 2 ? kAttentionNorm : kOutputNorm) + task % 2];
            if (!sum) return;
            if (!add) std::memset(sum, 0, hidden_ * sizeof(float));
            for (int use = 0; use < uses; ++use)
                for (int block = 0; block * kNormRows < t_.tokens; ++block)
                    add_vector(sum, norm_sums_of(use, task / 2, block) + task % 2 * hidden_, hidden);
        });
    }

    void projection_backward(const TrainBackward& in) {
        const Rows<bf16> rows{t_.layer_rows, line_};
        each_rows([&](int first, int count) {
            round_rows(t_.gradient + first * hidden_, m_.hidden, count, {rows[first], line_});
            if (first + count == t_.tokens && t_.even > t_.tokens)
                std::memset(rows[t_.tokens], 0, hidden_ * sizeof(bf16));
        });
        const WeightGradient gradient{{rows.data, line_}, {t_.embedded_packed, std::size_t(t_.even), 0}, m_.hidden,
                                      m_.embedding, in.gradients[0], in.gradients[1]};
        weight_gradients<Isa>(team_, s_.block, s_.rows.get(), &gradient, 1, t_.even, false);
        if (!in.embedded) return;
        multiply({rows.data, line_}, m_.projection.backward, m_.embedding, m_.hidden,
                 [&](int row, int column, __m512 sums) {
                     _mm512_storeu_ps(in.embedded + std::size_t(row) * m_.embedding + column, sums);
                 });
    }

    const TrainModel& m_;
    TrainTape& t_;
    TrainScratch<Isa>& s_;
    Team& team_;
    const std::size_t hidden_, line_, wide_, triple_;
    const Dropout attention_dropout_, attention_output_dropout_, output_dropout_;
};

template <class Isa>
Scratch* make_train_scratch(const TrainModel& m, int longest, int depth) {
    return new TrainScratch<Isa>(m, longest, depth);
}

template <class Isa>
void train_forward(const TrainModel& m, TrainTape& t, Scratch& scratch, Team& team, const TrainForward& in) {
    TrainStep<Isa>(m, t, scratch, team).forward(in);
}

template <class Isa>
void train_backward(const TrainModel& m, TrainTape& t, Scratch& scratch, Team& team, const TrainBackward& in) {
    TrainStep<Isa>(m, t, scratch, team).backward(in);
}

template <class Isa>
constexpr Training make_training() {
    return {make_train_scratch<Isa>, train_forward<Isa>, train_backward<Isa>};
}

}  // namespace
}  // namespace isotrain
