// The C interface of single parts of a training step, for tests. Each function returns 1, or 0 if this processor can't
// run the instruction set `name`.
#include "standard.h"

#include "common.h"

using isotrain::engine_called;

extern "C" {

int isotrain_cpu_probe_attention(const char* name, const isotrain::AttentionProbe* probe) {
    const isotrain::Engine* engine = engine_called(name);
    if (engine) engine->probe_attention(*probe);
    return engine != nullptr;
}

// factors: float32 [columns], 0 where a value is dropped. columns: a multiple of 16.
int isotrain_cpu_probe_dropout(const char* name, std::uint64_t key, float rate, std::uint32_t site, std::uint32_t row,
                               int columns, float* factors) {
    const isotrain::Engine* engine = engine_called(name);
    if (engine) engine->probe_dropout(key, rate, site, row, columns, factors);
    return engine != nullptr;
}

// counters, bits: 16 counters of four words, [4][16].
int isotrain_cpu_probe_philox(const char* name, const std::uint32_t* counters, std::uint64_t key,
                              std::uint32_t* bits) {
    const isotrain::Engine* engine = engine_called(name);
    if (engine) engine->probe_philox(counters, key, bits);
    return engine != nullptr;
}

}  // extern "C"
