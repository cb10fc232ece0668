// What the parts of the C interface share.
#pragma once

#include "common.h"

namespace isotrain {

struct Shape {
    std::int32_t hidden, intermediate, heads, embedding, vocab, positions, types, activation, project, layers,
        num_layers, block_tokens;
    float eps;
};

// Writes one line into a caller's `error`.
void say(char* error, std::size_t size, const std::string& text);

// The first assumption of the kernels that doesn't hold, or empty.
std::string unsupported(const Shape& shape, const std::int32_t* order);

}  // namespace isotrain
