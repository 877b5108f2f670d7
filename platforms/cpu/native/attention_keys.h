// Where the keys of a tile lie in the paged caches, and their way towards the core ahead of need.
#pragma once

#include "attention.h"
#include "attention_softmax.h"
#include "memory.h"

namespace inferplane {

// One tile of keys. Only those in `seen` are read: unseen ones stand for one that is seen (the softmax drops their
// scores), and their values for zeros.
template <class S> struct KeyTile {
    int64_t start;
    KeyRange seen;
    const S *key[key_tile], *value[key_tile];
    float key_scale[key_tile], value_scale[key_tile];  // of codes
};

template <class Isa, class S>
void locate(const AttentionJob& job, const AttentionTask& task, int64_t start, KeyRange seen, const S* zeros, KeyTile<S>& keys) {
    const CacheShape& cache = job.cache;
    const int64_t value_stride = job.v_cache ? cache.value_dim : cache.key_dim;
    const S *k_cache = static_cast<const S*>(job.k_cache), *v_cache = job.v_cache ? static_cast<const S*>(job.v_cache) : k_cache;
    const float* v_scale = job.v_scale ? job.v_scale : job.k_scale;
    const int32_t* table = job.table + task.row * job.table_width;
    keys.start = start;
    keys.seen = seen;
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

// Fetches the next tile a few keys at a time: a burst would fill the core's miss buffers and stall it, a pause drain them.
template <class Isa, class S> class Ahead {
  public:
    Ahead(const AttentionJob& job, const KeyTile<S>& keys)
        : keys_(keys), at_(keys.seen.low), key_bytes_(job.cache.key_dim * int64_t(sizeof(S))),
          value_bytes_(job.v_cache ? job.cache.value_dim * int64_t(sizeof(S)) : 0) {}

    INFERPLANE_INLINE void until(int64_t key) {
        for (; at_ < key && at_ < keys_.seen.high; ++at_) {
            touch(reinterpret_cast<const char*>(keys_.key[at_]), key_bytes_);
            touch(reinterpret_cast<const char*>(keys_.value[at_]), value_bytes_);
        }
    }

  private:
    static INFERPLANE_INLINE void touch(const char* from, int64_t bytes) {
        for (int64_t byte = 0; byte < bytes; byte += cache_line_bytes) Isa::prefetch(from + byte);
    }

    const KeyTile<S>& keys_;
    int64_t at_;
    const int64_t key_bytes_, value_bytes_;
};

}  // namespace inferplane
