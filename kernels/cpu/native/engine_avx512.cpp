// The encoder for processors with AVX-512 BF16 and VNNI (VDPBF16PS, VPDPBUSD): AMD Zen 4, Intel Cooper Lake and later.
#include "standard.h"

#if defined(__x86_64__)

#define ISOTRAIN_ISA "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni"
#include "../../include/isa_begin.h"

#include "gemm_avx512.h"
#include "engine.h"
#include "train_step.h"

namespace isotrain {

const Engine* avx512_engine() {
    static constexpr Training training = make_training<Avx512>();
    static constexpr Engine engine = make_engine<Avx512>("avx512_bf16", &training);
    return &engine;
}

const Engine* avx512_int8_engine() {
    static constexpr Engine engine = make_engine<Avx512Vnni>("avx512_vnni");
    return &engine;
}

}  // namespace isotrain

#include "../../include/isa_end.h"

#endif
