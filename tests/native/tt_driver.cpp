// Runs the TT matrix unit on small shapes, each buffer exactly as large as the interface asks for, on every engine that
// this processor has. Built with the address and undefined-behaviour sanitizers by test_sanitizers.py.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

extern "C" {
const char* isotrain_tt_engine(const char*);
int isotrain_tt_matmul(const std::uint32_t*, std::int64_t, const std::uint32_t*, std::int64_t, std::uint32_t*,
                       std::int64_t, int, int, int, int, int, int, int, const char*);
int isotrain_tt_elementwise(const std::uint32_t*, const std::uint32_t*, std::uint32_t*, std::int64_t, int, int, int,
                            int, const char*);
}

namespace {

std::mt19937 generator(1);

// Any bits at all: exponent 0 and 255 included.
std::unique_ptr<std::uint32_t[]> random_bits(int count) {
    std::unique_ptr<std::uint32_t[]> bits(new std::uint32_t[count]);
    for (int i = 0; i < count; ++i) bits[i] = static_cast<std::uint32_t>(generator());
    return bits;
}

}  // namespace

int main() {
    int runs = 0;
    for (const char* engine : {"avx512", "avx2", "portable"}) {
        if (!isotrain_tt_engine(engine)) continue;
        for (int m : {1, 7, 8, 9, 17}) {
            for (int k : {1, 16, 31, 33, 64}) {
                for (int n : {1, 15, 32, 33, 70}) {
                    auto a = random_bits(m * k), b = random_bits(k * n), c = random_bits(m * n), d = random_bits(m * n);
                    std::unique_ptr<std::uint32_t[]> other(new std::uint32_t[m * n]), out(new std::uint32_t[m * n]);
                    std::memcpy(other.get(), c.get(), sizeof(std::uint32_t) * std::size_t(m) * std::size_t(n));
                    for (int threads : {1, 3}) {
                        auto* dst = threads == 1 ? c.get() : other.get();
                        if (isotrain_tt_matmul(a.get(), k, b.get(), n, dst, n, m, k, n, 4, runs % 2, 1, threads, engine))
                            return 1;
                    }
                    if (std::memcmp(other.get(), c.get(), sizeof(std::uint32_t) * std::size_t(m) * std::size_t(n)))
                        return 2;
                    for (int operation = 0; operation < 3; ++operation)
                        if (isotrain_tt_elementwise(c.get(), d.get(), out.get(), m * n, operation, 4, runs % 2, 0, engine))
                            return 3;
                    ++runs;
                }
            }
        }
    }
    std::printf("%d runs\n", runs);
    return 0;
}
