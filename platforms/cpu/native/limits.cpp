// Measures with the pool's threads, over memory larger than the caches.
#include "limits.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t least_read = int64_t(256) << 20, most_read = int64_t(1) << 30;  // bytes
constexpr int64_t read_pieces = 1024;
constexpr int64_t peak_rounds = 1 << 14;
constexpr int read_repeats = 9, peak_repeats = 40;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class Once> std::vector<double> rates(const Once& once, int repeats) {
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

// Twice the last cache, which may be a share of a large server's: what is left of one pass must not serve the next.
int64_t bytes_to_read() {
#ifdef _SC_LEVEL3_CACHE_SIZE
    return std::clamp(round_up(2 * int64_t(sysconf(_SC_LEVEL3_CACHE_SIZE)), least_read), least_read, most_read);
#else
    return least_read;
#endif
}

class ReadBuffer {
  public:
    ReadBuffer() : bytes_(bytes_to_read()), memory_(static_cast<float*>(allocate_pages(bytes_))) {
        for (int64_t i = 0; i < bytes_ / 4; i += 1024) memory_[i] = 1.0f;  // give every page its own memory
    }
    ~ReadBuffer() { free_pages(memory_, bytes_); }

    double read_once() const {
        const Path& path = active_path();
        const int64_t piece = bytes_ / 4 / read_pieces;
        std::vector<float> sinks(read_pieces);
        parallel(read_pieces, [&](int64_t i) { sinks[i] = path.read(memory_ + piece * i, piece); });
        return double(bytes_);
    }

  private:
    const int64_t bytes_;
    float* const memory_;
};

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
    const ReadBuffer buffer;
    return {usual(rates([&] { return buffer.read_once(); }, read_repeats)), best(rates(peak_once<&Path::peak_f32>, peak_repeats)),
            best(rates(peak_once<&Path::peak_bf16>, peak_repeats)), best(rates(peak_once<&Path::peak_int8>, peak_repeats))};
}

}  // namespace inferplane
