// The thread pool: one parallel loop at a time, tasks claimed from a shared ticket.
//
// Which thread runs a task is left to chance; kernels make results independent of that.
#pragma once

#include <cstdint>
#include <type_traits>

namespace inferplane {

int thread_count();
void set_thread_count(int count);  // 0: as many as sched_getaffinity allows

using TaskFunction = void (*)(void* context, int64_t task);
void run_tasks(int64_t tasks, TaskFunction function, void* context);

// body(task) for task in [0, tasks), on the pool's threads and the caller's.
template <class Body> void parallel(int64_t tasks, Body&& body) {
    using Plain = typename std::remove_reference<Body>::type;
    run_tasks(tasks, [](void* context, int64_t task) { (*static_cast<Plain*>(context))(task); },
              const_cast<void*>(static_cast<const void*>(&body)));
}

// body(first, last) over [0, count) in ranges of at least `grain`, long ones first and short ones last, so that no thread
// waits long for another's (guided self-scheduling: Polychronopoulos and Kuck, IEEE Trans. Computers 36(12), 1987).
template <class Body> void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
    constexpr int most = 128;
    grain = grain > 0 ? grain : 1;
    const int threads = thread_count();
    int64_t starts[most + 1] = {0};
    int ranges = 0;
    while (starts[ranges] < count) {
        const int64_t left = count - starts[ranges], share = threads == 1 || ranges == most - 1 ? left : left / (2 * threads);
        const int64_t size = share > grain ? share : grain;
        starts[ranges + 1] = left - size < grain ? count : starts[ranges] + size;
        ++ranges;
    }
    parallel(ranges, [&](int64_t i) { body(starts[i], starts[i + 1]); });
}

}  // namespace inferplane
