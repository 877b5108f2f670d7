// Measures with the pool's threads, over memory larger than the caches.
#include "limits.h"

#include <chrono>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t read_floats = int64_t(96) << 20;  // 384 MiB
constexpr int64_t read_pieces = 256;
constexpr int64_t rounds = 1 << 18;
constexpr int repeats = 3;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double best_rate(double (*once)()) {
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        const double start = seconds(), work = once(), rate = work / (seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

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
    const int64_t tasks = 16 * thread_count();
    std::vector<double> work(tasks);
    std::vector<float> sinks(tasks);
    parallel(tasks, [&](int64_t i) { work[i] = (path.*peak)(rounds / 8, &sinks[i]); });
    double total = 0;
    for (double w : work) total += w;
    return total;
}

}  // namespace

Limits measure_limits() {
    float* buffer = read_buffer();
    for (int64_t i = 0; i < read_floats; i += 1024) buffer[i] = 1.0f;  // give every page its own memory
    return {best_rate(read_once), best_rate(peak_once<&Path::peak_f32>), best_rate(peak_once<&Path::peak_bf16>)};
}

}  // namespace inferplane
