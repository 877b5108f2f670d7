// Measures with the pool's threads, over memory larger than the caches.
#include "limits.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t read_floats = int64_t(64) << 20;  // 256 MiB
constexpr int64_t read_pieces = 256;
constexpr int64_t peak_rounds = 1 << 14;
constexpr int read_repeats = 9, peak_repeats = 40;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<double> rates(double (*once)(), int repeats) {
    std::vector<double> found(repeats);
    for (double& rate : found) {
        const double start = seconds(), work = once();
        rate = work / (seconds() - start);
    }
    std::sort(found.begin(), found.end());
    return found;
}

// Of reading, the median: others on the machine take their share of the memory from one moment to the next, from a step too.
double usual(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

// Of multiplying, the best of many short runs: one that nobody interrupted.
double best(const std::vector<double>& sorted) { return sorted.back(); }

float* read_buffer() {
    static thread_local Scratch scratch;
    return scratch.get<float>(read_floats);
}

double read_once() {
    const Path& path = active_path();
    const float* buffer = read_buffer();
    std::vector<float> sinks(read_pieces);
    parallel(read_pieces, [&](int64_t i) {
        sinks[i] = path.read(buffer + read_floats / read_pieces * i, read_floats / read_pieces);
    });
    return 4.0 * double(read_floats);
}

template <double (*Path::*peak)(int64_t, float*)> double peak_once() {
    const Path& path = active_path();
    const int64_t tasks = 4 * thread_count();
    std::vector<double> work(tasks);
    std::vector<float> sinks(tasks);
    parallel(tasks, [&](int64_t i) { work[i] = (path.*peak)(peak_rounds, &sinks[i]); });
    double total = 0;
    for (double w : work) total += w;
    return total;
}

}  // namespace

Limits measure_limits() {
    float* buffer = read_buffer();
    for (int64_t i = 0; i < read_floats; i += 1024) buffer[i] = 1.0f;  // give every page its own memory
    return {usual(rates(read_once, read_repeats)), best(rates(peak_once<&Path::peak_f32>, peak_repeats)),
            best(rates(peak_once<&Path::peak_bf16>, peak_repeats)), best(rates(peak_once<&Path::peak_int8>, peak_repeats))};
}

}  // namespace inferplane
