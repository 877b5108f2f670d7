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

// body(first, last) over [0, count) in ranges of at least `grain`: few enough to be worth a thread.
template <class Body> void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
    const int64_t most = 4 * thread_count();
    int64_t ranges = grain > 0 ? count / grain : count;
    ranges = ranges < 1 ? 1 : ranges > most ? most : ranges;
    if (thread_count() == 1) ranges = 1;
    parallel(ranges, [&](int64_t i) { body(count * i / ranges, count * (i + 1) / ranges); });
}

}  // namespace inferplane
