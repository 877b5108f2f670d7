// Shares attention out over rows, key/value heads, blocks of queries and chunks of keys.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t pieces_per_thread = 4;  // as which the work is at least cut, where its chunks allow it

bool is_decode(const AttentionJob& job, int64_t row) {
    return job.starts[row + 1] - job.starts[row] == 1 && job.group() <= direct_rows;
}

int64_t work(const AttentionJob& job, const AttentionTask& task) {
    const KeySpan span = key_span(job, task);
    return task.heads * (task.last - task.first) * (span.end - span.begin);
}

// One token's few queries wait for memory, where the heads of a block are neighbours: as many to a task as leaves enough
// tasks. Other tasks have one head.
int64_t heads_together(const AttentionJob& job) {
    int64_t chunks = 0;
    for (int64_t row = 0; row < job.rows; ++row) {
        if (is_decode(job, row)) chunks += (job.lengths[row] - job.first_visible(job.lengths[row] - 1) + key_chunk - 1) / key_chunk;
    }
    return std::clamp<int64_t>(job.cache.kv_heads * chunks / (pieces_per_thread * thread_count()), 1, job.cache.kv_heads);
}

// (token, head) pairs to a task: many share the packing of a tile, and leave enough tasks. A multiple of a tile's rows.
int64_t pairs_together(const AttentionJob& job, int64_t pairs) {
    constexpr int64_t tile_rows = 6, lanes = SoftmaxSums::lanes;
    const int64_t row_bytes = (job.cache.value_dim + lanes) * sizeof(float) + (job.cache.key_dim + lanes) * item_bytes(job.dtype);
    const int64_t fair = job.tokens * job.heads / (pieces_per_thread * thread_count());
    const int64_t most = std::max<int64_t>(query_rows, std::min(query_bytes / row_bytes, fair));
    const int64_t blocks = std::max<int64_t>(1, (pairs + most - 1) / most);
    return round_up((pairs + blocks - 1) / blocks, tile_rows);
}

// The longest first, so that no thread is left with one at the end.
std::vector<AttentionTask> list_tasks(const AttentionJob& job) {
    std::vector<AttentionTask> tasks;
    const int64_t together = heads_together(job);
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t pairs = (job.starts[row + 1] - job.starts[row]) * job.group(), step = is_decode(job, row) ? together : 1;
        const int64_t rows = pairs_together(job, pairs);
        for (int64_t first = 0; first < pairs; first += rows) {
            for (int64_t head = 0; head < job.cache.kv_heads; head += step) {
                tasks.push_back({row, head, std::min(step, job.cache.kv_heads - head), first, std::min(pairs, first + rows), -1, nullptr});
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
        return task.heads * key_span(job, task).chunks() * SoftmaxSums::floats(task.last - task.first, (job.cache.value_dim + 63) / 64);
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

}  // namespace inferplane
