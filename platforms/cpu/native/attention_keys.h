// Where the keys of a tile lie in the paged caches, and their way towards the core ahead of need.
#pragma once

#include "attention.h"
#include "attention_softmax.h"
#include "memory.h"

namespace inferplane {

// One tile of keys. Only those in `seen` are read: unseen ones stand for one that is seen (the softmax drops their
// scores), and their values for zeros.
struct MemoryRun { const char *begin, *end; };

template <class S> struct KeyTile {
    int64_t start;
    KeyRange seen;
    const S *key[key_tile], *value[key_tile];
    float key_scale[key_tile], value_scale[key_tile];  // of codes
    MemoryRun key_runs[key_tile], value_runs[key_tile];  // the same as pieces of memory, for prefetching
    int runs;
};

template <class P, class S>
void locate(const AttentionJob& job, const AttentionTask& task, int64_t start, KeyRange seen, const S* zeros, KeyTile<S>& keys) {
    const CacheShape& cache = job.cache;
    const int64_t value_stride = job.v_cache ? cache.value_dim : cache.key_dim;
    const S *k_cache = static_cast<const S*>(job.k_cache), *v_cache = job.v_cache ? static_cast<const S*>(job.v_cache) : k_cache;
    const float* v_scale = job.v_scale ? job.v_scale : job.k_scale;
    const int32_t* table = job.table + task.row * job.table_width;
    keys.start = start;
    keys.seen = seen;
    keys.runs = 0;
    int64_t block = (start + seen.low) / cache.block_tokens, offset = (start + seen.low) % cache.block_tokens;
    for (int64_t i = seen.low; i < seen.high; ++block, offset = 0) {
        const int64_t token = cache.token(table[block], task.kv_head, offset), run = cache.block_tokens - offset;
        const int64_t stop = run < seen.high - i ? i + run : seen.high, first = token - i;
        for (int64_t j = i; j < stop; ++j) {
            keys.key[j] = k_cache + (first + j) * cache.key_dim;
            keys.value[j] = v_cache + (first + j) * value_stride;
        }
        for (int64_t j = i; job.k_scale && j < stop; ++j) {
            keys.key_scale[j] = job.k_scale[first + j];
            keys.value_scale[j] = v_scale[first + j];
        }
        const auto piece = [&](const S* from, int64_t dim) {
            return MemoryRun{reinterpret_cast<const char*>(from), reinterpret_cast<const char*>(from + (stop - i) * dim)};
        };
        keys.key_runs[keys.runs] = piece(keys.key[i], cache.key_dim);
        keys.value_runs[keys.runs++] = piece(keys.value[i], cache.value_dim);
        i = stop;
    }
    for (int64_t i = 0; i < key_tile; i = i + 1 == seen.low ? seen.high : i + 1) {
        if (i == seen.low) i = seen.high;
        if (i >= key_tile) break;
        keys.key[i] = keys.key[seen.low];
        keys.value[i] = zeros;
        keys.key_scale[i] = keys.value_scale[i] = 0;
    }
}

// Fetches the next tile into the nearest cache, keys with keys and values with values, a few lines at a time and evenly: a
// burst would fill the core's miss buffers and stall it, a pause would drain them.
template <class P> class Ahead {
  public:
    Ahead(const MemoryRun* runs, int count) : run_(runs), stop_(runs + count) {}

    template <int lines> INFERPLANE_INLINE void fetch() {
        if (at_ >= end_ && !turn()) return;
        for (int i = 0; i < lines; ++i) __builtin_prefetch(at_ + i * cache_line_bytes, 0, 3);
        at_ += lines * cache_line_bytes;
    }

  private:
    INFERPLANE_INLINE bool turn() {
        if (run_ == stop_) return false;
        at_ = run_->begin;
        end_ = (run_++)->end;
        return true;
    }

    const MemoryRun *run_, *stop_;
    const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace inferplane
