// The C interface of a trained encoder's embedding. Each function returns 1, or 0 if this processor can't run the
// instruction set `name`.
#include "standard.h"

#include "common.h"

using isotrain::Embedding;
using isotrain::EmbeddingGradients;
using isotrain::Engine;

extern "C" {

// out: float32 [tokens][width].
int isotrain_cpu_embed(const char* name, const Embedding* embedding, float* out) {
    const Engine* engine = isotrain::engine_called(name);
    if (engine) engine->embed(*embedding, out);
    return engine != nullptr;
}

// gradient: float32 [tokens][width].
int isotrain_cpu_embed_backward(const char* name, const Embedding* embedding, const float* gradient,
                                const EmbeddingGradients* gradients) {
    const Engine* engine = isotrain::engine_called(name);
    if (engine) engine->embed_backward(*embedding, gradient, *gradients);
    return engine != nullptr;
}

}  // extern "C"
