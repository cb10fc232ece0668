// The C interface: which instruction sets the processor has, packing, blocks, threads.
// Every function that can fail returns null or a negative number and writes one line into `error`.
#include "standard.h"

#include "../../include/processor.h"

#include "interface.h"

using isotrain::bf16;
using isotrain::Block;
using isotrain::Engine;
using isotrain::engine_called;
using isotrain::Input;
using isotrain::Linear;
using isotrain::Model;
using isotrain::Norm;
using isotrain::say;
using isotrain::Scratch;
using isotrain::Shape;
using isotrain::unsupported;
using isotrain::Watch;

namespace {

constexpr int kInterface = 6;

// The model's own tensors and those of a layer, in the order of the tensor list (see isotrain_cpu_create).
constexpr int kModelTensors = 8, kLayerTensors = 18;

struct Encoder {
    Model model;
    const Engine* engine;
    std::vector<isotrain::Buffer<unsigned char>> packed;
    std::vector<isotrain::Buffer<float>> vectors;
    std::vector<isotrain::Buffer<std::int32_t>> offsets;
    struct Slot {
        std::unique_ptr<Scratch> scratch;
        std::int64_t tokens = 0, sequences = 0, longest = 0;
    };
    std::vector<Slot> slots;
    std::mutex busy;
};

#if defined(__x86_64__)

bool has_avx512() {
    const isotrain::Processor found = isotrain::processor();
    return found.avx512_bf16 && found.avx512_vnni;
}

// CPUID says whether the unit exists. The operating system must also grant its state to this process.
bool has_amx() {
#if defined(__linux__)
    const isotrain::Processor found = isotrain::processor();
    if (!has_avx512() || !found.amx_tile || !found.amx_bf16 || !found.amx_int8) return false;
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace

const Engine* isotrain::engine_called(const char* name) {
    if (has_amx())
        for (const Engine* engine : {isotrain::amx_engine(), isotrain::amx_int8_engine()})
            if (!std::strcmp(name, engine->name)) return engine;
    if (!has_avx512()) return nullptr;
    for (const Engine* engine : {isotrain::avx512_engine(), isotrain::avx512_int8_engine(),
                                 isotrain::amx_emulated_engine(), isotrain::amx_int8_emulated_engine()})
        if (!std::strcmp(name, engine->name)) return engine;
    return nullptr;
}

#else
}  // namespace

const Engine* isotrain::engine_called(const char*) { return nullptr; }
#endif

void isotrain::say(char* error, std::size_t size, const std::string& text) {
    if (error && size) std::snprintf(error, size, "%s", text.c_str());
}

std::string isotrain::unsupported(const Shape& s, const std::int32_t* order) {
    if (s.hidden < 64 || s.hidden % 64 || s.hidden > 4096) return "hidden_size must be a multiple of 64 up to 4096";
    if (s.intermediate < 64 || s.intermediate % 64) return "intermediate_size must be a multiple of 64";
    if (s.heads < 1 || s.hidden % s.heads || s.hidden / s.heads % 16) return "head size must be a multiple of 16";
    if (s.embedding < 16 || s.embedding % 16 || s.embedding > 4096)
        return "embedding_size must be a multiple of 16 up to 4096";
    if (!s.project && s.embedding != s.hidden) return "embedding_size must be hidden_size without a projection";
    if (s.activation < 0 || s.activation > isotrain::kTanh) return "unknown activation";
    if (s.vocab < 1 || s.positions < 1 || s.types < 1 || s.layers < 1 || s.num_layers < 1 || s.block_tokens < 1)
        return "sizes must be above 0";
    for (int index = 0; index < s.num_layers; ++index)
        if (order[index] < 0 || order[index] >= s.layers) return "weights_of_layer names a layer that isn't there";
    return "";
}

namespace {

const float* keep(Encoder& encoder, const void* source, std::size_t count) {
    encoder.vectors.push_back(isotrain::allocate<float>(count));
    std::memcpy(encoder.vectors.back().get(), source, count * sizeof(float));
    return encoder.vectors.back().get();
}

// weight: [n][k] in the engine's format, n a multiple of the panel. tensors: weight, scales [n] or null, bias [n].
Linear pack(Encoder& encoder, const void* const* tensors, int n, int k) {
    const int element = encoder.engine->element, panel = encoder.model.panel;
    const int padded = isotrain::round_up(k, isotrain::kTileBytes / element);
    encoder.packed.push_back(isotrain::allocate<unsigned char>(std::size_t(n) * padded * element));
    unsigned char* packed = encoder.packed.back().get();
    const auto* rows = static_cast<const unsigned char*>(tensors[0]);
    const std::size_t row_bytes = std::size_t(k) * element;
    for (int row = 0; row < n; ++row) {
        unsigned char* strip = packed + std::size_t(row / panel) * panel * padded * element + row % panel * 4;
        for (std::size_t at = 0; at < row_bytes; at += 4)
            std::memcpy(strip + at * panel, rows + row * row_bytes + at, 4);
    }
    Linear layer{packed, keep(encoder, tensors[2], n), n, padded};
    if (element == 1) {
        layer.scale = keep(encoder, tensors[1], n);
        encoder.offsets.push_back(isotrain::allocate<std::int32_t>(n));
        std::int32_t* offset = encoder.offsets.back().get();
        layer.offset = offset;
        const auto* bytes = static_cast<const std::int8_t*>(tensors[0]);
        for (int row = 0; row < n; ++row)
            for (int column = 0; column < k; ++column)
                offset[row] += isotrain::kZero * bytes[std::size_t(row) * k + column];
    }
    return layer;
}

Norm norm(Encoder& encoder, const void* weight, const void* bias, int width) {
    return {keep(encoder, weight, width), keep(encoder, bias, width)};
}

void fill(Encoder& encoder, const Shape& shape, const void* const* tensors, const std::int32_t* order) {
    Model& m = encoder.model;
    m.hidden = shape.hidden;
    m.intermediate = shape.intermediate;
    m.heads = shape.heads;
    m.head_size = shape.hidden / shape.heads;
    m.embedding = shape.embedding;
    m.vocab = shape.vocab;
    m.positions = shape.positions;
    m.types = shape.types;
    m.activation = shape.activation;
    m.eps = shape.eps;
    m.panel = encoder.engine->panel;
    m.block_tokens = shape.block_tokens;
    m.project = shape.project != 0;
    m.word_embeddings = static_cast<const bf16*>(tensors[0]);
    m.position_embeddings = keep(encoder, tensors[1], std::size_t(shape.positions) * shape.embedding);
    m.type_embeddings = keep(encoder, tensors[2], std::size_t(shape.types) * shape.embedding);
    m.embedding_norm = norm(encoder, tensors[3], tensors[4], shape.embedding);
    if (m.project) m.projection = pack(encoder, tensors + 5, shape.hidden, shape.embedding);
    for (int index = 0; index < shape.layers; ++index) {
        const void* const* t = tensors + kModelTensors + index * kLayerTensors;
        isotrain::Layer layer;
        layer.qkv = pack(encoder, t, 3 * m.hidden, m.hidden);
        layer.attention_output = pack(encoder, t + 3, m.hidden, m.hidden);
        layer.attention_norm = norm(encoder, t[6], t[7], m.hidden);
        layer.ffn = pack(encoder, t + 8, m.intermediate, m.hidden);
        layer.ffn_output = pack(encoder, t + 11, m.hidden, m.intermediate);
        layer.output_norm = norm(encoder, t[14], t[15], m.hidden);
        if (t[16]) layer.qkv.input = keep(encoder, t[16], m.hidden);
        if (t[17]) layer.ffn.input = keep(encoder, t[17], m.hidden);
        m.layers.push_back(layer);
    }
    m.weights_of_layer.assign(order, order + shape.num_layers);
}

// Why the encoder's engine can't multiply these weights, or empty.
std::string unfit(const Shape& s, const void* const* tensors, const Engine& engine) {
    const bool bytes = engine.element == 1;
    if (bytes != (tensors[kModelTensors + 1] != nullptr)) return std::string("the weights are not for ") + engine.name;
    return bytes && s.intermediate > 65536 ? "intermediate_size must be at most 65536 for int32 sums" : "";
}

std::string out_of_range(const Model& m, const Input& in, std::int64_t sequences) {
    if (sequences < 1 || in.cu_seqlens[0] != 0) return "cu_seqlens must begin with 0 and hold at least one sequence";
    for (std::int64_t s = 0; s < sequences; ++s)
        if (in.cu_seqlens[s + 1] <= in.cu_seqlens[s]) return "sequence " + std::to_string(s) + " is empty";
    const auto outside = [](std::int64_t value, int limit) { return value < 0 || value >= limit; };
    for (std::int64_t token = 0; token < in.cu_seqlens[sequences]; ++token) {
        if (outside(in.input_ids[token], m.vocab))
            return "token id " + std::to_string(in.input_ids[token]) + " is outside the vocabulary of " +
                   std::to_string(m.vocab);
        if (outside(in.position_ids[token], m.positions))
            return "position " + std::to_string(in.position_ids[token]) + " is outside the encoder's " +
                   std::to_string(m.positions) + " positions";
        if (in.token_type_ids && outside(in.token_type_ids[token], m.types))
            return "token type " + std::to_string(in.token_type_ids[token]) + " is outside the encoder's " +
                   std::to_string(m.types) + " types";
    }
    return "";
}

// Runs of whole sequences with about equally many tokens, enough of them to keep all threads busy.
std::vector<Block> cut(const std::int64_t* bounds, std::int64_t sequences, int limit, int threads) {
    const std::int64_t tokens = bounds[sequences];
    std::int64_t count = (tokens + limit - 1) / limit;
    count = (count + threads - 1) / threads * threads;
    const std::int64_t target = (tokens + count - 1) / count;
    std::vector<Block> blocks;
    for (std::int64_t s = 0; s < sequences;) {
        Block block{s, 0, bounds[s], 0};
        while (s < sequences && (block.sequences == 0 || bounds[s + 1] - block.first_token <= target)) {
            ++s;
            ++block.sequences;
        }
        block.tokens = bounds[s] - block.first_token;
        blocks.push_back(block);
    }
    return blocks;
}

void make_room(Encoder& encoder, const std::vector<Block>& blocks, const std::int64_t* bounds, std::size_t threads) {
    std::int64_t tokens = 0, sequences = 0, longest = 0;
    for (const Block& block : blocks) {
        tokens = std::max(tokens, block.tokens);
        sequences = std::max(sequences, block.sequences);
        for (std::int64_t s = block.first_sequence; s < block.first_sequence + block.sequences; ++s)
            longest = std::max(longest, bounds[s + 1] - bounds[s]);
    }
    if (encoder.slots.size() < threads) encoder.slots.resize(threads);
    for (std::size_t index = 0; index < threads; ++index) {
        Encoder::Slot& slot = encoder.slots[index];
        if (slot.scratch && slot.tokens >= tokens && slot.sequences >= sequences && slot.longest >= longest) continue;
        slot.tokens = std::max(slot.tokens, tokens);
        slot.sequences = std::max(slot.sequences, sequences);
        slot.longest = std::max(slot.longest, longest);
        slot.scratch.reset();
        slot.scratch.reset(encoder.engine->make_scratch(encoder.model, slot.tokens, slot.sequences, slot.longest));
    }
}

// Computes all blocks of a batch, shared among the threads. Returns 0, or -1 with a line in `error`.
int encode(Encoder& encoder, const Input& in, std::int64_t sequences, int threads, float* features, const Watch* watch,
           char* error, std::size_t error_size) {
    try {
        const std::string reason = out_of_range(encoder.model, in, sequences);
        if (!reason.empty()) {
            say(error, error_size, reason);
            return -1;
        }
        const std::lock_guard<std::mutex> lock(encoder.busy);
        const auto blocks = cut(in.cu_seqlens, sequences, encoder.model.block_tokens, std::max(threads, 1));
        const std::size_t workers = std::min<std::size_t>(std::max(threads, 1), blocks.size());
        make_room(encoder, blocks, in.cu_seqlens, workers);
        std::atomic<std::size_t> next{0};
        const auto work = [&](std::size_t slot) {
            encoder.engine->enter_thread();
            for (std::size_t index; (index = next.fetch_add(1)) < blocks.size();)
                encoder.engine->forward(encoder.model, *encoder.slots[slot].scratch, in, blocks[index], features,
                                        watch);
            encoder.engine->leave_thread();
        };
        // Threads live for one call: starting them costs tens of microseconds, and a fork then loses none.
        std::vector<std::thread> helpers;
        for (std::size_t slot = 1; slot < workers; ++slot) {
            try {
                helpers.emplace_back(work, slot);
            } catch (const std::system_error&) {
                break;  // Fewer threads do the same work.
            }
        }
        work(0);
        for (std::thread& helper : helpers) helper.join();
        return 0;
    } catch (const std::exception& failure) {
        say(error, error_size, failure.what());
        return -1;
    }
}

}  // namespace

extern "C" {

int isotrain_cpu_interface() { return kInterface; }

// Whether the instruction set `name` can run here: 1 or 0. Names with "emulated" are the AMX path over plain memory.
int isotrain_cpu_has(const char* name) { return engine_called(name) != nullptr; }

// tensors: word (bfloat16), position and type embeddings (float32), embedding norm, projection (null without one), then
// for each layer qkv, attention output, attention norm, ffn, ffn output, output norm, and what the inputs of qkv and ffn
// are multiplied by (null for bfloat16). A norm is (weight, bias). A product is (weight, scales, bias): bfloat16 [n][k]
// without scales, or int8 [n][k] with a scale for each row. All else is float32. The word embeddings are used in place
// and must outlive the encoder.
void* isotrain_cpu_create(const char* name, const Shape* shape, const void* const* tensors, const std::int32_t* order,
                          char* error, std::size_t error_size) {
    try {
        auto encoder = std::make_unique<Encoder>();
        encoder->engine = engine_called(name);
        if (!encoder->engine) {
            say(error, error_size, std::string("this processor can't run ") + name);
            return nullptr;
        }
        std::string reason = unsupported(*shape, order);
        if (reason.empty()) reason = unfit(*shape, tensors, *encoder->engine);
        if (!reason.empty()) {
            say(error, error_size, reason);
            return nullptr;
        }
        fill(*encoder, *shape, tensors, order);
        return encoder.release();
    } catch (const std::exception& failure) {
        say(error, error_size, failure.what());
        return nullptr;
    }
}

void isotrain_cpu_destroy(void* handle) { delete static_cast<Encoder*>(handle); }

// features: float32 [sequences][hidden]. ids, positions, types: int64 [tokens]; cu_seqlens: int64 [sequences + 1].
int isotrain_cpu_encode(void* handle, const std::int64_t* ids, const std::int64_t* positions, const std::int64_t* types,
                        const std::int64_t* cu_seqlens, std::int64_t sequences, int threads, float* features,
                        char* error, std::size_t error_size) {
    const Input in{ids, positions, types, cu_seqlens};
    return encode(*static_cast<Encoder*>(handle), in, sequences, threads, features, nullptr, error, error_size);
}

// The same with every layer's hidden states (see Watch).
int isotrain_cpu_watch(void* handle, const std::int64_t* ids, const std::int64_t* positions, const std::int64_t* types,
                       const std::int64_t* cu_seqlens, std::int64_t sequences, int threads, float* features,
                       const float* given, float* states, char* error, std::size_t error_size) {
    const Input in{ids, positions, types, cu_seqlens};
    const Watch watch{cu_seqlens[sequences], given, states};
    return encode(*static_cast<Encoder*>(handle), in, sequences, threads, features, &watch, error, error_size);
}

// Operations/s of one thread's register blocks fed from a working set of `bytes`; 0 if `name` can't run here.
double isotrain_cpu_unit_rate(const char* name, std::size_t bytes, double seconds) {
    const Engine* engine = engine_called(name);
    try {
        return engine ? engine->unit_rate(bytes, seconds) : 0.0;
    } catch (const std::exception&) {
        return 0.0;
    }
}

}  // extern "C"
