// The C interface of the training step: packed weights, the memory of passes, threads.
#include "standard.h"

#include "interface.h"
#include "train.h"

namespace isotrain {
namespace {

struct Batch {
    const std::int64_t* cu_seqlens;
    std::int64_t sequences;
    std::uint64_t key;  // of the dropout
    float attention_dropout, attention_output_dropout, output_dropout;
    std::int32_t keep, threads;
};

struct Trainer {
    TrainModel model;
    const Engine* engine;
    std::vector<Buffer<bf16>> packed;
    std::vector<Buffer<float>> vectors;
    std::vector<std::unique_ptr<Scratch>> scratch;  // of each thread, for sequences and depths up to:
    int longest = 0, depth = 0;
    std::mutex busy;
};

struct Tape {
    TrainTape pass;
    Buffer<char> memory;
    std::size_t bytes = 0;
};

float* vector(Trainer& trainer, int master, int count) {
    trainer.vectors.push_back(allocate<float>(count));
    float* to = trainer.vectors.back().get();
    trainer.model.vector_copies.push_back({master, count, to});
    return to;
}

// A weight of `n` rows, or of three such masters beneath each other. Each master's bias follows it.
TrainWeight weight(Trainer& trainer, int master, int n, int k, int masters = 1) {
    TrainModel& m = trainer.model;
    const auto panels = [&](int rows, int depth) {
        trainer.packed.push_back(allocate<bf16>(std::size_t(round_up(rows, m.panel)) * depth));
        return trainer.packed.back().get();
    };
    trainer.vectors.push_back(allocate<float>(std::size_t(masters) * n));
    const TrainWeight all{panels(masters * n, round_up(k, kDepth)), panels(k, masters * n),
                          trainer.vectors.back().get(), masters * n, k};
    for (int part = 0; part < masters; ++part) {
        m.weight_copies.push_back({master + 2 * part, part * n, n, all});
        m.vector_copies.push_back({master + 2 * part + 1, n, all.bias + part * n});
    }
    return all;
}

void fill(Trainer& trainer, const Shape& shape, const std::int32_t* order) {
    TrainModel& m = trainer.model;
    m.hidden = shape.hidden;
    m.intermediate = shape.intermediate;
    m.heads = shape.heads;
    m.head_size = shape.hidden / shape.heads;
    m.embedding = shape.embedding;
    m.activation = shape.activation;
    m.eps = shape.eps;
    m.panel = trainer.engine->panel;
    m.project = shape.project != 0;
    if (m.project) m.projection = weight(trainer, 0, m.hidden, m.embedding);
    const auto norm = [&](int master) {
        return Norm{vector(trainer, master, m.hidden), vector(trainer, master + 1, m.hidden)};
    };
    for (int index = 0; index < shape.layers; ++index) {
        const int first = kProjectionTensors + index * kLayerTensors;
        TrainLayer layer;
        layer.qkv = weight(trainer, first + kQuery, m.hidden, m.hidden, 3);
        layer.attention_output = weight(trainer, first + kAttentionOutput, m.hidden, m.hidden);
        layer.attention_norm = norm(first + kAttentionNorm);
        layer.ffn = weight(trainer, first + kFfn, m.intermediate, m.hidden);
        layer.ffn_output = weight(trainer, first + kFfnOutput, m.hidden, m.intermediate);
        layer.output_norm = norm(first + kOutputNorm);
        m.layers.push_back(layer);
    }
    m.weights_of_layer.assign(order, order + shape.num_layers);
    m.uses_of_weights.assign(shape.layers, 0);
    for (int weights : m.weights_of_layer) m.use_of_layer.push_back(m.uses_of_weights[weights]++);
}

// The most layers in a row with the same weights.
int longest_run(const std::vector<int>& weights_of_layer) {
    int longest = 0, run = 0;
    for (std::size_t layer = 0; layer < weights_of_layer.size(); ++layer) {
        run = layer && weights_of_layer[layer] == weights_of_layer[layer - 1] ? run + 1 : 1;
        longest = std::max(longest, run);
    }
    return longest;
}

// Gives out parts of one piece of memory, or, without one, says how much is needed.
class Parts {
   public:
    explicit Parts(char* memory) : memory_(memory) {}

    template <class T>
    void take(T*& part, std::size_t count) {
        part = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
        used_ = (used_ + count * sizeof(T) + 63) / 64 * 64;
    }

    std::size_t used() const { return used_; }

   private:
    char* memory_;
    std::size_t used_ = 0;
};

// Places every buffer of a pass. Returns the bytes that they take.
std::size_t lay_out(const TrainModel& m, TrainTape& t, char* memory) {
    Parts parts(memory);
    const auto tokens = std::size_t(t.tokens), hidden = std::size_t(m.hidden), rows = tokens + 32;
    const std::size_t line = spread(m.hidden), wide = spread(m.intermediate), triple = spread(3 * m.hidden);
    const std::size_t layers = m.weights_of_layer.size();
    const bool all = t.keep == kEverything;
    t.saved.resize(all ? layers : 1);
    for (Saved& s : t.saved) {
        parts.take(s.qkv, rows * triple + kDepth);
        parts.take(s.attended, rows * line + kDepth);
        parts.take(s.slope, tokens * wide);
        parts.take(s.attention_unit, tokens * hidden);
        parts.take(s.output_unit, tokens * hidden);
        parts.take(s.attention_scale, tokens);
        parts.take(s.output_scale, tokens);
        parts.take(s.log_sums, tokens * m.heads);
    }
    t.streams.resize(t.keep == kInputs ? layers : 1);
    for (float*& stream : t.streams) parts.take(stream, tokens * hidden);
    parts.take(t.layer_rows, rows * line + kDepth);
    parts.take(t.middle_rows, rows * line + kDepth);
    parts.take(t.inner_rows, rows * wide + kDepth);
    parts.take(t.embedded_rows, m.project ? rows * spread(m.embedding) + kDepth : 0);
    parts.take(t.middle, tokens * hidden);
    parts.take(t.sums, tokens * hidden);
    if (t.keep == kNothing) {
        t.inputs.assign(1, {});
        return parts.used();
    }
    // An instruction set may read up to 32 rows after the last.
    const auto packed = [&](int width, int depth) { return std::size_t(round_up(width, m.panel)) * (depth + 32); };
    t.inputs.resize(all ? m.layers.size() : 1);
    for (std::size_t weights = 0; weights < t.inputs.size(); ++weights) {
        const int depth = t.even * (all ? m.uses_of_weights[weights] : t.uses);
        PackedInputs& inputs = t.inputs[weights];
        for (bf16** part : {&inputs.layer, &inputs.attended, &inputs.middle}) parts.take(*part, packed(m.hidden, depth));
        parts.take(inputs.inner, packed(m.intermediate, depth));
        inputs.depth = std::size_t(depth);
    }
    parts.take(t.embedded_packed, m.project ? packed(m.embedding, t.even) : 0);
    const std::size_t gradients = std::size_t(t.uses) * t.even + 32;
    parts.take(t.qkv_gradient, gradients * triple + kDepth);
    parts.take(t.attention_gradient, gradients * line + kDepth);
    parts.take(t.inner_gradient, gradients * wide + kDepth);
    parts.take(t.output_gradient, gradients * line + kDepth);
    parts.take(t.attended_gradient, rows * line + kDepth);
    parts.take(t.gradient, tokens * hidden);
    parts.take(t.norm_sums, std::size_t(t.uses) * 4 * ((tokens + kNormRows - 1) / kNormRows) * hidden);
    return parts.used();
}

// A weight's gradient multiplies rows after the last one of its inputs by zeros, up to the depth of its product's step.
// Those that this pass doesn't write must be zeros too: NaN that an earlier pass left there would stay NaN.
void clear_unwritten(const TrainModel& m, const TrainTape& t) {
    if (t.keep == kNothing) return;
    const auto clear = [&](bf16* inputs, int width, std::size_t depth, bool whole) {
        const std::size_t size = std::size_t(round_up(width, m.panel)) * depth, start = whole ? 0 : size;
        std::memset(inputs + start, 0, (size - start + std::size_t(kDepth) * m.panel) * sizeof(bf16));
    };
    // With checkpoints, a product of fewer uses than there is room for doesn't fill its panels.
    const bool whole = t.keep == kInputs && t.uses > 1;
    for (const PackedInputs& inputs : t.inputs) {
        for (bf16* part : {inputs.layer, inputs.attended, inputs.middle}) clear(part, m.hidden, inputs.depth, whole);
        clear(inputs.inner, m.intermediate, inputs.depth, whole);
    }
    if (m.project) clear(t.embedded_packed, m.embedding, std::size_t(t.even), false);
}

void begin_pass(const TrainModel& m, Tape& tape, const Batch& batch) {
    TrainTape& t = tape.pass;
    t.bounds.assign(batch.cu_seqlens, batch.cu_seqlens + batch.sequences + 1);
    t.tokens = int(t.bounds.back());
    t.even = round_up(t.tokens, 2);
    t.longest = 0;
    for (std::int64_t s = 0; s < batch.sequences; ++s)
        t.longest = std::max(t.longest, int(t.bounds[s + 1] - t.bounds[s]));
    t.uses = std::max(1, std::min(longest_run(m.weights_of_layer), kGradientTokens / t.even));
    t.keep = Keep(batch.keep);
    t.key = batch.key;
    t.attention_dropout = batch.attention_dropout;
    t.attention_output_dropout = batch.attention_output_dropout;
    t.output_dropout = batch.output_dropout;
    const std::size_t bytes = lay_out(m, t, nullptr);
    if (bytes > tape.bytes) {
        tape.memory.reset();
        tape.bytes = 0;
        // An eighth more, so that batches of slowly growing length don't all allocate.
        tape.memory = allocate<char>(bytes + bytes / 8);
        tape.bytes = bytes + bytes / 8;
    }
    lay_out(m, t, tape.memory.get());
    clear_unwritten(m, t);
    // Behind an odd number of tokens, a row of zeros completes the last pair of each use's gradients.
    if (t.even > t.tokens && t.keep != kNothing)
        for (int use = 0; use < t.uses; ++use) {
            const std::size_t row = std::size_t(use) * t.even + t.tokens;
            const std::size_t triple = spread(3 * m.hidden), wide = spread(m.intermediate);
            std::memset(t.qkv_gradient + row * triple, 0, triple * sizeof(bf16));
            std::memset(t.inner_gradient + row * wide, 0, wide * sizeof(bf16));
        }
}

// step(scratch, team) on each of the threads.
template <class Step>
void run(Trainer& trainer, const TrainTape& t, int threads, const Step& step) {
    const int longest = round_up(t.longest, kDepth), depth = std::min(t.uses * t.even, kGradientTokens);
    if (longest > trainer.longest || depth > trainer.depth) {
        trainer.scratch.clear();
        trainer.longest = std::max(trainer.longest, longest);
        trainer.depth = std::max(trainer.depth, depth);
    }
    const auto members = std::size_t(std::max(threads, 1));
    while (trainer.scratch.size() < members)
        trainer.scratch.emplace_back(
            trainer.engine->training->make_scratch(trainer.model, trainer.longest, trainer.depth));
    Team team;
    const auto work = [&](std::size_t member) {
        team.await_begin();
        trainer.engine->enter_thread();
        step(*trainer.scratch[member], team);
        trainer.engine->leave_thread();
    };
    // Threads live for one call: starting them costs tens of microseconds, and a fork then loses none.
    std::vector<std::thread> helpers;
    for (std::size_t member = 1; member < members; ++member) {
        try {
            helpers.emplace_back(work, member);
        } catch (const std::system_error&) {
            break;  // Fewer threads do the same work.
        }
    }
    team.begin(int(helpers.size()) + 1);
    work(0);
    for (std::thread& helper : helpers) helper.join();
}

// What `f` returns, or `failed` and a line in `error`.
template <class Result, class F>
Result guarded(char* error, std::size_t error_size, Result failed, const F& f) {
    try {
        return f();
    } catch (const std::exception& failure) {
        say(error, error_size, failure.what());
        return failed;
    }
}

}  // namespace
}  // namespace isotrain

using namespace isotrain;

extern "C" {

// shape: its vocabulary, positions, types and block are not used. order: the weights of each layer.
void* isotrain_cpu_train_create(const char* name, const Shape* shape, const std::int32_t* order, char* error,
                                std::size_t error_size) {
    return guarded(error, error_size, static_cast<void*>(nullptr), [&]() -> void* {
        auto trainer = std::make_unique<Trainer>();
        trainer->engine = engine_called(name);
        const std::string reason = trainer->engine && trainer->engine->training
                                       ? unsupported(*shape, order)
                                       : std::string("this processor can't run ") + name;
        if (!reason.empty()) {
            say(error, error_size, reason);
            return nullptr;
        }
        fill(*trainer, *shape, order);
        return trainer.release();
    });
}

void isotrain_cpu_train_destroy(void* trainer) { delete static_cast<Trainer*>(trainer); }

void* isotrain_cpu_train_tape() { return new (std::nothrow) Tape; }

void isotrain_cpu_train_destroy_tape(void* tape) { delete static_cast<Tape*>(tape); }

// masters: see TrainForward.
// embedded: float32 [tokens][embedding]; states: float32 [tokens][hidden]. given,
// layer_states: see TrainForward. The batch's bounds are the caller's care.
int isotrain_cpu_train_forward(void* handle, void* tape, const Batch* batch, const float* const* masters,
                               const float* embedded, float* states, const float* given, float* layer_states,
                               char* error, std::size_t error_size) {
    auto& trainer = *static_cast<Trainer*>(handle);
    auto& pass = *static_cast<Tape*>(tape);
    return guarded(error, error_size, -1, [&] {
        const std::lock_guard<std::mutex> lock(trainer.busy);
        begin_pass(trainer.model, pass, *batch);
        run(trainer, pass.pass, batch->threads, [&](Scratch& scratch, Team& team) {
            trainer.engine->training->forward(trainer.model, pass.pass, scratch, team,
                                               {masters, embedded, states, given, layer_states});
        });
        return 0;
    });
}

// Once after a forward pass with this tape. states: its gradients. embedded and each of gradients: null, or where the
// gradients of the input and of a master go.
int isotrain_cpu_train_backward(void* handle, void* tape, int threads, const float* states, float* embedded,
                                float* const* gradients, char* error, std::size_t error_size) {
    auto& trainer = *static_cast<Trainer*>(handle);
    auto& pass = *static_cast<Tape*>(tape);
    return guarded(error, error_size, -1, [&] {
        const std::lock_guard<std::mutex> lock(trainer.busy);
        run(trainer, pass.pass, threads, [&](Scratch& scratch, Team& team) {
            trainer.engine->training->backward(trainer.model, pass.pass, scratch, team, {states, embedded, gradients});
        });
        return 0;
    });
}

}  // extern "C"
