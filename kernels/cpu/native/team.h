// The threads of one call: they all run the same code and share out the tasks of its loops.
#pragma once

#include "standard.h"

namespace isotrain {

// A training step is some hundred short loops, so a thread that has no task left spins for the others first, and gives
// its processor away only if they take long.
class Team {
   public:
    // Called once, by the thread that has started the others.
    void begin(int size) { size_.store(size, std::memory_order_release); }
    void await_begin() {
        while (!size_.load(std::memory_order_acquire)) give_way();
    }
    int size() const { return size_.load(std::memory_order_relaxed); }

    // f(task) for each task below `count`, in any order on any thread. Returns when all are done. Every thread calls it.
    template <class Task>
    void each(int count, const Task& f) {
        for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < count;) f(task);
        const unsigned loop = loop_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            loop_.store(loop + 1, std::memory_order_release);
            return;
        }
        for (int waits = 0; loop_.load(std::memory_order_acquire) == loop; ++waits)
            waits < kSpins ? pause() : give_way();
    }

   private:
    static constexpr int kSpins = 4000;

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#endif
    }

    static void give_way() {
#if defined(__linux__)
        sched_yield();
#else
        pause();
#endif
    }

    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> loop_{0};
    std::atomic<int> size_{0};
};

}  // namespace isotrain
