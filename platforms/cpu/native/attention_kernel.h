// One attention task: up to 96 (token, head) rows against the keys of their key/value head, 64 at a time.
//
//   pack      K tile -> [key_dim steps][64 keys]      V tile -> [panels of 64 dims][key steps][64]
//   scores    [6 rows, 64] = q K                      the tile kernel of linear
//   softmax   peak' = max(peak, scores), w = 2^(scores - peak'), total = total 2^(peak - peak') + w
//   out       [6 rows, value_dim] = out 2^(peak - peak') + w V
//
// Online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Tiles are aligned at absolute positions and
// invisible keys weigh exactly 0, so that a query's bits depend on its own row's past and on nothing else.
#pragma once

#include "attention.h"
#include "memory.h"
#include "tile.h"
#include "vector_math.h"

namespace inferplane {

template <class P, class T> class AttentionBlock {
  public:
    AttentionBlock(const AttentionJob& job, const AttentionTask& task);
    void run();

  private:
    using Isa = typename P::Isa;
    using Left = typename P::Left;
    using Right = typename P::Right;
    static constexpr int64_t value_steps = key_tile / P::k_per_step;
    static constexpr float log2_e = 1.44269504f;

    struct Range { int64_t low, high; };  // keys of a tile, relative to its start

    // One tile of keys: where each lies in the caches, in tokens. Only those in `seen` may be read.
    struct Keys {
        int64_t start, token[key_tile];
        Range seen;
    };

    int64_t first_visible(int64_t at) const { return job_.window && at >= job_.window ? at - job_.window + 1 : 0; }
    Range visible(int64_t row, int64_t start) const;

    int64_t carve(char* base);
    void stage_queries();
    void locate(int64_t start, Keys& keys) const;
    void prefetch(const Keys& keys, int64_t first, int64_t last) const;
    void pack_keys(const Keys& keys, const Keys& next);
    bool pack_values(const Keys& keys, Range range, const Keys& next);
    void attend_apart(int64_t first, const Keys& keys);
    void attend(int64_t first, int64_t last, int64_t start);
    void softmax(int64_t row, const float* scores, Left* weights, Range range);
    void rescale(int64_t row, float factor);
    void finish();

    const AttentionJob& job_;
    const AttentionTask task_;
    const CacheShape cache_;
    const int64_t rows_, group_, first_position_, key_steps_, panels_, query_stride_;
    Left *queries_, *weights_;  // [rows, query_stride], [tile rows, 64 keys]
    Right *keys_, *values_;     // [key steps, 64 keys], [panels, value steps, 64 dims]
    float *scores_, *out_;      // [tile rows, 64 keys], [panels, rows, 64 dims]
    float *peak_, *total_;      // [rows], [rows, 16 lanes]
    int64_t* position_;         // [rows]
    T* zeros_;                  // [value_dim]: what an unseen key's values read as
};

template <class P, class T>
AttentionBlock<P, T>::AttentionBlock(const AttentionJob& job, const AttentionTask& task)
    : job_(job), task_(task), cache_(job.cache), rows_(task.last - task.first), group_(job.heads / job.cache.kv_heads),
      first_position_(job.lengths[task.row] - (job.starts[task.row + 1] - job.starts[task.row])),
      key_steps_((cache_.key_dim + P::k_per_step - 1) / P::k_per_step), panels_((cache_.value_dim + panel_columns - 1) / panel_columns),
      query_stride_(round_up(cache_.key_dim, lanes) + lanes) {
    static thread_local Scratch scratch;
    carve(scratch.get<char>(carve(nullptr)));
}

// Lays the work arrays out from `base`, each on its own cache line; returns the bytes they take.
template <class P, class T> int64_t AttentionBlock<P, T>::carve(char* base) {
    int64_t used = 0;
    const auto take = [&](auto*& array, int64_t count) {
        using Item = typename std::remove_reference<decltype(*array)>::type;
        array = base ? reinterpret_cast<Item*>(base + used) : nullptr;
        used += round_up(count * int64_t(sizeof(Item)), cache_line_bytes);
    };
    take(queries_, rows_ * query_stride_);
    take(weights_, Isa::tile_rows * key_tile);
    take(keys_, round_up(key_steps_, lanes) * key_tile);
    take(values_, panels_ * value_steps * panel_columns);
    take(scores_, Isa::tile_rows * key_tile);
    take(out_, panels_ * rows_ * panel_columns);
    take(peak_, rows_);
    take(total_, rows_ * lanes);
    take(position_, rows_);
    take(zeros_, panels_ * panel_columns);
    return used;
}

template <class P, class T>
typename AttentionBlock<P, T>::Range AttentionBlock<P, T>::visible(int64_t row, int64_t start) const {
    const int64_t at = position_[row], low = first_visible(at) - start, high = at + 1 - start;
    return {low < 0 ? 0 : low, high < key_tile ? high : key_tile};
}

template <class P, class T> void AttentionBlock<P, T>::stage_queries() {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
        const int64_t head = task_.kv_head * group_ + flat % group_;
        const T* from = static_cast<const T*>(job_.q) + (token * job_.heads + head) * cache_.key_dim;
        Left* to = queries_ + row * query_stride_;
        if constexpr (P::k_per_step == 2) {
            __builtin_memcpy(to, from, cache_.key_dim * sizeof(T));
            to[cache_.key_dim] = Left{};  // an odd key_dim leaves half a pair
        } else {
            for (int64_t d = 0; d < cache_.key_dim; d += lanes) store<Isa>(to + d, load_upto<Isa>(from + d, cache_.key_dim - d));
        }
        peak_[row] = -__builtin_inff();
        position_[row] = first_position_ + flat / group_;
    }
    __builtin_memset(zeros_, 0, panels_ * panel_columns * sizeof(T));
    __builtin_memset(total_, 0, rows_ * lanes * sizeof(float));
    __builtin_memset(out_, 0, panels_ * rows_ * panel_columns * sizeof(float));
}

template <class P, class T> void AttentionBlock<P, T>::locate(int64_t start, Keys& keys) const {
    const int64_t low = first_visible(position_[0]) - start, high = position_[rows_ - 1] + 1 - start;
    keys.start = start;
    keys.seen = {low < 0 ? 0 : low, high < key_tile ? high : key_tile};
    const int32_t* table = job_.table + task_.row * job_.table_width;
    int64_t block = (start + keys.seen.low) / cache_.block_tokens, offset = (start + keys.seen.low) % cache_.block_tokens;
    int64_t token = cache_.token(table[block], task_.kv_head, offset);
    for (int64_t i = keys.seen.low; i < keys.seen.high; ++i) {
        keys.token[i] = token++;
        if (++offset == cache_.block_tokens && i + 1 < keys.seen.high) {
            offset = 0;
            token = cache_.token(table[++block], task_.kv_head, 0);
        }
    }
    // Keys that nobody sees stand for one that somebody does: the softmax drops their scores.
    for (int64_t i = 0; i < keys.seen.low; ++i) keys.token[i] = keys.token[keys.seen.low];
    for (int64_t i = keys.seen.high; i < key_tile; ++i) keys.token[i] = keys.token[keys.seen.low];
}

// Keys [first, last) of the tile that comes next, a few at a time between the packing of this one:
// a burst would fill the core's miss buffers and stall it.
template <class P, class T>
INFERPLANE_INLINE void AttentionBlock<P, T>::prefetch(const Keys& keys, int64_t first, int64_t last) const {
    const int64_t key_bytes = cache_.key_dim * int64_t(sizeof(T)), value_bytes = cache_.value_dim * int64_t(sizeof(T));
    for (int64_t i = first; i < last && i < keys.seen.high; ++i) {
        const char* key = static_cast<const char*>(job_.k_cache) + keys.token[i] * key_bytes;
        const char* value = static_cast<const char*>(job_.v_cache) + keys.token[i] * value_bytes;
        for (int64_t byte = 0; byte < key_bytes; byte += cache_line_bytes) Isa::prefetch(key + byte);
        for (int64_t byte = 0; byte < value_bytes; byte += cache_line_bytes) Isa::prefetch(value + byte);
    }
}

// Sixteen steps of one key, or the fewer that its last dims fill.
template <class P, class T> INFERPLANE_INLINE Words<typename P::Isa> load_steps(const T* from, int64_t dims) {
    using Isa = typename P::Isa;
    if constexpr (P::k_per_step == 2) {
        if (dims >= 2 * lanes) return load_words<Isa>(from);
        alignas(64) T edge[2 * lanes] = {};
        __builtin_memcpy(edge, from, dims * sizeof(T));
        return load_words<Isa>(edge);
    } else {
        return as_words(load_upto<Isa>(from, dims));
    }
}

// Keys become columns: sixteen keys by sixteen steps at a time.
template <class P, class T> void AttentionBlock<P, T>::pack_keys(const Keys& keys, const Keys& next) {
    constexpr int64_t dims = lanes * P::k_per_step;
    const T* cache = static_cast<const T*>(job_.k_cache);
    for (int64_t key = 0; key < key_tile; key += lanes) {
        for (int64_t step = 0; step < key_steps_; step += lanes) {
            const int64_t d = step * P::k_per_step, left = cache_.key_dim - d;
            Words<Isa> rows[lanes];
            if (left >= dims) {
                for (int i = 0; i < lanes; ++i) rows[i] = load_steps<P>(cache + keys.token[key + i] * cache_.key_dim + d, dims);
            } else {
                for (int i = 0; i < lanes; ++i) rows[i] = load_steps<P>(cache + keys.token[key + i] * cache_.key_dim + d, left);
            }
            Isa::transpose(rows);
            for (int i = 0; i < lanes; ++i) store_words(keys_ + (step + i) * key_tile + key, rows[i]);
        }
        prefetch(next, key / 2, key / 2 + lanes / 2);
    }
}

// One step's sixteen dims: values of a key, or those of a pair of keys side by side in 32 bits.
template <class P, class T> INFERPLANE_INLINE Words<typename P::Isa> value_step(const T* even, const T* odd, int64_t dims) {
    using Isa = typename P::Isa;
    const Words<Isa> first = as_words(load_upto<Isa>(even, dims));
    if constexpr (P::k_per_step == 1) return first;
    return shift_right(first, 16) | as_words(load_upto<Isa>(odd, dims));
}

// Values of the keys in `range`, zeros for others up to its end; says whether all are finite.
template <class P, class T> bool AttentionBlock<P, T>::pack_values(const Keys& keys, Range range, const Keys& next) {
    const T* cache = static_cast<const T*>(job_.v_cache);
    const auto value = [&](int64_t key) {
        return key >= range.low && key < range.high ? cache + keys.token[key] * cache_.value_dim : zeros_;
    };
    const typename P::Vector nothing = P::zero();
    Floats<Isa> probe[panel_columns / lanes];  // 0 * infinity = NaN
    for (Floats<Isa>& p : probe) p = fill<Isa>(0.0f);
    for (int64_t step = 0; step * P::k_per_step < range.high; ++step) {
        const T *even = value(step * P::k_per_step), *odd = value(step * P::k_per_step + P::k_per_step - 1);
        for (int64_t panel = 0; panel < panels_; ++panel, even += panel_columns, odd += panel_columns) {
            Right* to = values_ + (panel * value_steps + step) * panel_columns;
            const int64_t dims = cache_.value_dim - panel * panel_columns;
            for (int j = 0; j < panel_columns / lanes; ++j) {
                const int64_t left = dims - j * lanes;
                if (left <= 0) break;
                const Words<Isa> made = value_step<P>(even + j * lanes, odd + j * lanes, left);
                store_words(to + j * lanes, made);
                probe[j] = P::multiply(nothing, P::as_vector(made), probe[j]);
            }
        }
        const int64_t ahead = key_tile / 2 + step * key_tile / 2 / value_steps;
        prefetch(next, ahead, key_tile / 2 + (step + 1) * key_tile / 2 / value_steps);
    }
    return sum(probe[0] + probe[1] + (probe[2] + probe[3])) == 0.0f;
}

template <class P, class T> void AttentionBlock<P, T>::rescale(int64_t row, float factor) {
    const Floats<Isa> f = fill<Isa>(factor);
    store<Isa>(total_ + row * lanes, load<Isa>(total_ + row * lanes) * f);
    for (int64_t panel = 0; panel < panels_; ++panel) {
        float* out = out_ + (panel * rows_ + row) * panel_columns;
        for (int j = 0; j < panel_columns; j += lanes) store<Isa>(out + j, load<Isa>(out + j) * f);
    }
}

template <class P, class T>
void AttentionBlock<P, T>::softmax(int64_t row, const float* scores, Left* weights, Range range) {
    constexpr int vectors = key_tile / lanes;
    const Floats<Isa> never = fill<Isa>(-__builtin_inff());
    Floats<Isa> s[vectors], best = never;
    for (int j = 0; j < vectors; ++j) {
        s[j] = load<Isa>(scores + j * lanes);
        if (job_.softcap > 0) {
            s[j] = tanh(s[j] * fill<Isa>(job_.scale / job_.softcap)) * fill<Isa>(job_.softcap * log2_e);
        } else {
            s[j] = s[j] * fill<Isa>(job_.scale * log2_e);
        }
    }
    if (range.low > 0 || range.high < key_tile) {  // the mask guards the diagonal, the window and the row's end
        const Floats<Isa> low = fill<Isa>(float(range.low)), high = fill<Isa>(float(range.high));
        for (int j = 0; j < vectors; ++j) {
            const Floats<Isa> key = from_integers(lane_index<Isa>()) + fill<Isa>(float(j * lanes));
            s[j] = where_less(key, high, where_less(key, low, never, s[j]), never);
        }
    }
    for (int j = 0; j < vectors; ++j) best = larger(best, s[j]);
    const float highest = maximum(best), old = peak_[row], peak = highest > old ? highest : old;
    if (peak > old) {
        peak_[row] = peak;
        if (old > -__builtin_inff()) {
            alignas(64) float factor[lanes];
            store<Isa>(factor, exp2_nonpositive(fill<Isa>(old - peak)));
            rescale(row, factor[0]);
        }
    }
    // A row that has seen nothing yet has the peak -infinity: its weights are 2^-infinity, not NaN.
    const Floats<Isa> base = fill<Isa>(peak > -__builtin_inff() ? peak : 0.0f);
    Floats<Isa> total = load<Isa>(total_ + row * lanes);
    for (int j = 0; j < vectors; ++j) {
        const Floats<Isa> w = exp2_nonpositive(s[j] - base);
        P::store_left(weights + j * lanes, w);
        total = total + w;
    }
    store<Isa>(total_ + row * lanes, total);
}

// Rows [first, last) against the packed tile that starts at position `start`.
template <class P, class T> void AttentionBlock<P, T>::attend(int64_t first, int64_t last, int64_t start) {
    const int64_t most = Isa::tile_rows, tiles = (last - first + most - 1) / most;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t low = first + (last - first) * t / tiles, high = first + (last - first) * (t + 1) / tiles;
        const int rows = int(high - low);
        const Range seen = visible(high - 1, start);
        multiply_tile<P>(rows, queries_ + low * query_stride_, query_stride_, keys_, key_steps_, scores_, key_tile / lanes, false);
        for (int r = 0; r < rows; ++r) softmax(low + r, scores_ + r * key_tile, weights_ + r * key_tile, visible(low + r, start));
        const int64_t steps = (seen.high + P::k_per_step - 1) / P::k_per_step;
        for (int64_t panel = 0; panel < panels_; ++panel) {
            const int64_t dims = cache_.value_dim - panel * panel_columns;
            const int vectors = dims >= panel_columns ? panel_columns / lanes : int((dims + lanes - 1) / lanes);
            multiply_tile<P>(rows, weights_, key_tile, values_ + panel * value_steps * panel_columns, steps,
                             out_ + (panel * rows_ + low) * panel_columns, vectors, true);
        }
    }
}

// An infinity or NaN must not reach queries that do not see it through 0 * NaN: a packing per token.
template <class P, class T> void AttentionBlock<P, T>::attend_apart(int64_t first, const Keys& keys) {
    for (int64_t row = first, next; row < rows_; row = next) {
        next = row + 1;
        while (next < rows_ && position_[next] == position_[row]) ++next;
        const Range range = visible(row, keys.start);
        if (range.low >= range.high) continue;
        pack_values(keys, range, Keys{});
        attend(row, next, keys.start);
    }
}

template <class P, class T> void AttentionBlock<P, T>::run() {
    stage_queries();
    const int64_t begin = first_visible(position_[0]) / key_tile * key_tile, end = position_[rows_ - 1] + 1;
    Keys keys[2];
    locate(begin, keys[0]);
    int64_t row = 0;
    for (int64_t start = begin, turn = 0; start < end; start += key_tile, turn ^= 1) {
        Keys& next = keys[turn ^ 1];
        next.seen = {0, 0};
        if (start + key_tile < end) locate(start + key_tile, next);
        pack_keys(keys[turn], next);
        const bool finite = pack_values(keys[turn], keys[turn].seen, next);
        while (position_[row] < start) ++row;  // earlier queries see none of this tile
        if (finite) attend(row, rows_, start);
        else attend_apart(row, keys[turn]);
    }
    finish();
}

template <class P, class T> void AttentionBlock<P, T>::finish() {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
        const int64_t head = task_.kv_head * group_ + flat % group_;
        float total = sum(load<Isa>(total_ + row * lanes)), factor = 1.0f;
        if (job_.sinks) {
            // In double: a sink far above the scores would turn its rounding into a relative error of all.
            const double sink = double(job_.sinks[head]) * 1.4426950408889634, peak = peak_[row] > sink ? peak_[row] : sink;
            factor = float(__builtin_exp2(peak_[row] - peak));
            total = total * factor + float(__builtin_exp2(sink - peak));
        }
        const Floats<Isa> normal = fill<Isa>(factor / total);
        T* to = static_cast<T*>(job_.out) + (token * job_.heads + head) * cache_.value_dim;
        for (int64_t d = 0; d < cache_.value_dim; d += lanes) {
            const float* from = out_ + (d / panel_columns * rows_ + row) * panel_columns + d % panel_columns;
            store_upto<Isa>(to + d, load<Isa>(from) * normal, cache_.value_dim - d);
        }
    }
}

template <class P, class T> void attend_task(const AttentionJob& job, const AttentionTask& task) {
    AttentionBlock<P, T>(job, task).run();
}

}  // namespace inferplane
