// Shares attention out over rows, key/value heads and blocks of queries; writes keys and values into their slots.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t small_write = 1 << 15;  // bytes that one thread copies sooner than two would
constexpr int64_t pieces_per_thread = 4;    // as which the work is at least cut, where its chunks allow it

int64_t work(const AttentionJob& job, const AttentionTask& task) {
    const KeySpan span = key_span(job, task);
    return (task.last - task.first) * (span.end - span.begin);
}

// The longest first, so that no thread is left with one at the end.
std::vector<AttentionTask> list_tasks(const AttentionJob& job) {
    std::vector<AttentionTask> tasks;
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t pairs = (job.starts[row + 1] - job.starts[row]) * job.group();
        for (int64_t first = 0; first < pairs; first += query_rows) {
            for (int64_t head = 0; head < job.cache.kv_heads; ++head) {
                tasks.push_back({row, head, first, std::min(pairs, first + query_rows), -1, nullptr});
            }
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(), [&](const auto& a, const auto& b) { return work(job, a) > work(job, b); });
    return tasks;
}

// Tasks too long to be shared evenly are done chunk by chunk and folded in a second loop; their bits stay what they were.
struct Plan {
    std::vector<AttentionTask> first, folds;

    Plan(const AttentionJob& job, const std::vector<AttentionTask>& tasks) {
        int64_t total = 0, floats = 0;
        for (const AttentionTask& task : tasks) total += work(job, task);
        const int64_t most = total / (pieces_per_thread * thread_count());
        const auto split = [&](const AttentionTask& task) { return work(job, task) > most && key_span(job, task).chunks() > 1; };
        for (const AttentionTask& task : tasks) floats += split(task) ? part_floats(job, task) : 0;
        static thread_local Scratch scratch;
        float* parts = scratch.get<float>(floats);
        for (AttentionTask task : tasks) {
            if (split(task)) {
                task.parts = parts;
                folds.push_back(task);
                parts += part_floats(job, task);
                const KeySpan span = key_span(job, task);
                for (task.chunk = span.first_chunk(); task.chunk < span.first_chunk() + span.chunks(); ++task.chunk) first.push_back(task);
            } else {
                first.push_back(task);
            }
        }
    }

    static int64_t part_floats(const AttentionJob& job, const AttentionTask& task) {
        return key_span(job, task).chunks() * SoftmaxSums::floats(task.last - task.first, (job.cache.value_dim + 63) / 64);
    }
};

void clear_tokens(const AttentionJob& job, int64_t first, int64_t last) {
    const int64_t token_bytes = job.heads * job.cache.value_dim * item_bytes(job.dtype);
    if (first < last) std::memset(static_cast<char*>(job.out) + first * token_bytes, 0, (last - first) * token_bytes);
}

}  // namespace

void attention(const AttentionJob& job) {
    const auto attend = active_path().attend[int(job.dtype)][job.k_scale != nullptr];
    // Padding tokens belong to no row: zeros, so that nothing downstream meets old memory.
    clear_tokens(job, 0, job.starts[0]);
    clear_tokens(job, job.starts[job.rows], job.tokens);
    const Plan plan(job, list_tasks(job));
    for (const std::vector<AttentionTask>* tasks : {&plan.first, &plan.folds}) {
        parallel(int64_t(tasks->size()), [&](int64_t i) { attend(job, (*tasks)[i]); });
    }
}

void prefetch_slots(const WriteJob& job, int64_t first, int64_t last) {
    const CacheShape& cache = job.cache;
    const int64_t key_bytes = cache.key_dim * item_bytes(job.dtype), value_bytes = cache.value_dim * item_bytes(job.dtype);
    const auto fetch = [](const void* cells, int64_t start, int64_t bytes) {
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(cells) + start + at, 1);
    };
    for (int64_t token = first; token < last; ++token) {
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t to = cache.token(job.slots[token] / cache.block_tokens, head, job.slots[token] % cache.block_tokens);
            fetch(job.k_cache, to * key_bytes, key_bytes);
            fetch(job.v_cache, to * value_bytes, value_bytes);
        }
    }
}

void write_tokens(const WriteJob& job, int64_t first, int64_t last) {
    const CacheShape& cache = job.cache;
    const int64_t key_bytes = cache.key_dim * item_bytes(job.dtype), value_bytes = cache.value_dim * item_bytes(job.dtype);
    for (int64_t token = first; token < last; ++token) {
        const int64_t block = job.slots[token] / cache.block_tokens, offset = job.slots[token] % cache.block_tokens;
        if (block == 0) continue;  // padding: nobody reads the null block
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t to = cache.token(block, head, offset), from = token * cache.kv_heads + head;
            std::memcpy(static_cast<char*>(job.k_cache) + to * key_bytes, static_cast<const char*>(job.k) + from * key_bytes, key_bytes);
            std::memcpy(static_cast<char*>(job.v_cache) + to * value_bytes, static_cast<const char*>(job.v) + from * value_bytes,
                        value_bytes);
        }
    }
}

void write_kv(const WriteJob& job) {
    const int64_t token_bytes = job.cache.kv_heads * (job.cache.key_dim + job.cache.value_dim) * item_bytes(job.dtype);
    parallel_ranges(job.tokens, std::max<int64_t>(1, small_write / std::max<int64_t>(1, token_bytes)),
                    [&](int64_t first, int64_t last) { write_tokens(job, first, last); });
}

}  // namespace inferplane
