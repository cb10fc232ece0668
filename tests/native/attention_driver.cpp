// Runs attention's gradients and the trained embedding on small shapes with every buffer exactly as large as the
// interface asks for. Built with the address and undefined-behaviour sanitizers by test_sanitizers.py.
#include "../../kernels/cpu/native/standard.h"

#include "../../kernels/cpu/native/common.h"

#include <random>

using isotrain::bf16;

extern "C" {
int isotrain_cpu_probe_attention(const char*, const isotrain::AttentionProbe*);
int isotrain_cpu_embed(const char*, const isotrain::Embedding*, float*);
int isotrain_cpu_embed_backward(const char*, const isotrain::Embedding*, const float*,
                                const isotrain::EmbeddingGradients*);
}

namespace {

std::mt19937 generator(1);

// The smallest heap block of its size: the sanitizer sees the first byte behind it.
template <class T>
std::unique_ptr<T[]> filled(std::size_t count) {
    std::unique_ptr<T[]> values(new T[count]);
    for (std::size_t i = 0; i < count; ++i) {
        const float value = std::normal_distribution<float>()(generator);
        if constexpr (std::is_same_v<T, float>) {
            values[i] = value;
        } else {
            std::uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            values[i] = bf16(bits >> 16);
        }
    }
    return values;
}

bool attention(const char* isa, int size, int length, float rate) {
    const std::size_t rows = std::size_t(length) + 32;
    const auto qkv = filled<bf16>(rows * 3 * size), gradient = filled<bf16>(rows * size);
    const auto out = filled<bf16>(std::size_t(length) * size), slopes = filled<bf16>(std::size_t(length) * 3 * size);
    const auto log_sums = filled<float>(length);
    const isotrain::AttentionProbe probe{size, length, 7, rate, 1, 0, 2, qkv.get(), gradient.get(), out.get(),
                                         log_sums.get(), slopes.get()};
    return isotrain_cpu_probe_attention(isa, &probe);
}

bool embedding(const char* isa, int width, bool types) {
    constexpr int kWords = 9, kPositions = 5, kTypes = 2;
    const std::int64_t ids[] = {0, 8, 3, 3, 1}, positions[] = {0, 1, 2, 3, 4}, kinds[] = {0, 0, 1, 1, 1};
    const auto word = filled<float>(kWords * width), position = filled<float>(kPositions * width);
    const auto type = filled<float>(kTypes * width), weight = filled<float>(width), bias = filled<float>(width);
    const auto out = filled<float>(5 * width);
    const isotrain::Embedding e{width, 1e-12f, 0.3f, 5, 5, word.get(), position.get(), type.get(),
                                {weight.get(), bias.get()}, ids, positions, types ? kinds : nullptr};
    if (!isotrain_cpu_embed(isa, &e, out.get())) return false;
    const auto words = filled<float>(kWords * width), places = filled<float>(kPositions * width);
    const auto others = filled<float>(kTypes * width), scale = filled<float>(width), shift = filled<float>(width);
    const isotrain::EmbeddingGradients to{words.get(), places.get(), others.get(), scale.get(), shift.get(), 8};
    return isotrain_cpu_embed_backward(isa, &e, out.get(), &to);
}

}  // namespace

int main() {
    int runs = 0;
    for (const char* isa : {"amx_bf16", "avx512_bf16", "amx_emulated"}) {
        for (int size : {16, 48, 64})
            for (int length : {1, 2, 15, 17, 33, 96, 97, 130})
                for (float rate : {0.0f, 0.4f}) runs += attention(isa, size, length, rate);
        for (int width : {16, 48, 128, 4096})
            for (bool types : {false, true}) runs += embedding(isa, width, types);
    }
    std::printf("%d runs\n", runs);
    return 0;
}
