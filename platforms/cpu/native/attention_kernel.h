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
    static constexpr bool raw_pairs = P::k_per_step == 2;
    static constexpr int64_t value_steps = key_tile / P::k_per_step;
    static constexpr float log2_e = 1.44269504f;

    struct Range { int64_t low, high; };  // keys of the tile that a query sees, relative to its start

    int64_t position(int64_t row) const { return first_position_ + (task_.first + row) / group_; }
    int64_t first_visible(int64_t at) const { return job_.window && at >= job_.window ? at - job_.window + 1 : 0; }
    Range visible(int64_t row, int64_t start) const;

    void carve_scratch();
    void stage_queries();
    void locate(int64_t start, int64_t* tokens) const;
    void pack_keys(const int64_t* tokens);
    bool pack_values(const int64_t* tokens, Range range);
    void prefetch(const int64_t* tokens) const;
    void attend(int64_t first, int64_t last, int64_t start);
    void softmax(int64_t row, const float* scores, Left* weights, Range range);
    void rescale(int64_t row, float factor);
    void finish();

    const AttentionJob& job_;
    const AttentionTask task_;
    const CacheShape cache_;
    const int64_t rows_, group_, first_position_, key_steps_, panels_, query_stride_;
    Left *queries_, *weights_;
    Right *keys_, *values_;
    float *scores_, *out_, *peak_, *total_;
};

template <class P, class T>
AttentionBlock<P, T>::AttentionBlock(const AttentionJob& job, const AttentionTask& task)
    : job_(job), task_(task), cache_(job.cache), rows_(task.last - task.first), group_(job.heads / job.cache.kv_heads),
      first_position_(job.lengths[task.row] - (job.starts[task.row + 1] - job.starts[task.row])),
      key_steps_((cache_.key_dim + P::k_per_step - 1) / P::k_per_step), panels_((cache_.value_dim + panel_columns - 1) / panel_columns),
      query_stride_(round_up(cache_.key_dim, lanes) + lanes) {
    carve_scratch();
}

template <class P, class T> void AttentionBlock<P, T>::carve_scratch() {
    static thread_local Scratch scratch;
    const int64_t sizes[] = {
        rows_ * query_stride_ * int64_t(sizeof(Left)), Isa::tile_rows * key_tile * int64_t(sizeof(Left)),
        round_up(key_steps_, lanes) * key_tile * int64_t(sizeof(Right)), panels_ * value_steps * panel_columns * int64_t(sizeof(Right)),
        Isa::tile_rows * key_tile * int64_t(sizeof(float)), panels_ * rows_ * panel_columns * int64_t(sizeof(float)),
        rows_ * int64_t(sizeof(float)), rows_ * lanes * int64_t(sizeof(float))};
    int64_t bytes = 0;
    for (int64_t size : sizes) bytes += round_up(size, cache_line_bytes);
    char* at = scratch.get<char>(bytes);
    char* parts[8];
    for (int i = 0; i < 8; ++i) {
        parts[i] = at;
        at += round_up(sizes[i], cache_line_bytes);
    }
    queries_ = reinterpret_cast<Left*>(parts[0]);
    weights_ = reinterpret_cast<Left*>(parts[1]);
    keys_ = reinterpret_cast<Right*>(parts[2]);
    values_ = reinterpret_cast<Right*>(parts[3]);
    scores_ = reinterpret_cast<float*>(parts[4]);
    out_ = reinterpret_cast<float*>(parts[5]);
    peak_ = reinterpret_cast<float*>(parts[6]);
    total_ = reinterpret_cast<float*>(parts[7]);
}

template <class P, class T>
typename AttentionBlock<P, T>::Range AttentionBlock<P, T>::visible(int64_t row, int64_t start) const {
    const int64_t at = position(row), low = first_visible(at) - start, high = at + 1 - start;
    return {low < 0 ? 0 : low, high < key_tile ? high : key_tile};
}

template <class P, class T> void AttentionBlock<P, T>::stage_queries() {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
        const int64_t head = task_.kv_head * group_ + flat % group_;
        const T* from = static_cast<const T*>(job_.q) + (token * job_.heads + head) * cache_.key_dim;
        Left* to = queries_ + row * query_stride_;
        if constexpr (raw_pairs) {
            __builtin_memcpy(to, from, cache_.key_dim * sizeof(T));
            to[cache_.key_dim] = Left{};  // an odd key_dim leaves half a pair
        } else {
            for (int64_t d = 0; d < cache_.key_dim; d += lanes) store<Isa>(to + d, load_upto<Isa>(from + d, cache_.key_dim - d));
        }
        peak_[row] = -__builtin_inff();
    }
    __builtin_memset(total_, 0, rows_ * lanes * sizeof(float));
    __builtin_memset(out_, 0, panels_ * rows_ * panel_columns * sizeof(float));
}

// Where each key of the tile lies in the caches, in tokens; -1 outside [first visible, last visible].
template <class P, class T> void AttentionBlock<P, T>::locate(int64_t start, int64_t* tokens) const {
    const int64_t low = first_visible(position(0)), high = position(rows_ - 1) + 1;
    const int32_t* table = job_.table + task_.row * job_.table_width;
    for (int64_t i = 0; i < key_tile; ++i) {
        const int64_t at = start + i;
        const bool seen = at >= low && at < high;
        tokens[i] = seen ? cache_.token(table[at / cache_.block_tokens], task_.kv_head, at % cache_.block_tokens) : -1;
    }
}

template <class P, class T> void AttentionBlock<P, T>::prefetch(const int64_t* tokens) const {
    for (int64_t i = 0; i < key_tile; ++i) {
        if (tokens[i] < 0) continue;
        const char* key = reinterpret_cast<const char*>(static_cast<const T*>(job_.k_cache) + tokens[i] * cache_.key_dim);
        const char* value = reinterpret_cast<const char*>(static_cast<const T*>(job_.v_cache) + tokens[i] * cache_.value_dim);
        for (int64_t byte = 0; byte < cache_.key_dim * int64_t(sizeof(T)); byte += 64) Isa::prefetch(key + byte);
        for (int64_t byte = 0; byte < cache_.value_dim * int64_t(sizeof(T)); byte += 64) Isa::prefetch(value + byte);
    }
}

// Keys as columns: sixteen keys by sixteen steps at a time. Keys that nobody sees keep whatever stood there.
template <class P, class T> void AttentionBlock<P, T>::pack_keys(const int64_t* tokens) {
    for (int64_t key = 0; key < key_tile; key += lanes) {
        for (int64_t step = 0; step < key_steps_; step += lanes) {
            const int64_t d = step * P::k_per_step, left = cache_.key_dim - d;
            Words<Isa> rows[lanes];
            for (int i = 0; i < lanes; ++i) {
                rows[i] = fill_words<Isa>(0);
                if (tokens[key + i] < 0) continue;
                const T* from = static_cast<const T*>(job_.k_cache) + tokens[key + i] * cache_.key_dim + d;
                if constexpr (raw_pairs) {
                    if (left >= 2 * lanes) rows[i] = load_words<Isa>(from);
                    else __builtin_memcpy(&rows[i], from, left * sizeof(T));
                } else {
                    rows[i] = as_words(load_upto<Isa>(from, left));
                }
            }
            Isa::transpose(rows);
            for (int i = 0; i < lanes; ++i) store_words(keys_ + (step + i) * key_tile + key, rows[i]);
        }
    }
}

// Values of the keys in `range`, others zero, up to the last step used; says whether all are finite.
template <class P, class T> bool AttentionBlock<P, T>::pack_values(const int64_t* tokens, Range range) {
    const T* cache = static_cast<const T*>(job_.v_cache);
    const auto value = [&](int64_t key) -> const T* {
        return key >= range.low && key < range.high && tokens[key] >= 0 ? cache + tokens[key] * cache_.value_dim : nullptr;
    };
    Floats<Isa> zero = fill<Isa>(0.0f), probe[4] = {zero, zero, zero, zero};  // 0 * infinity = NaN
    for (int64_t step = 0; step * P::k_per_step < range.high; ++step) {
        const T* even = value(step * P::k_per_step);
        const T* odd = raw_pairs ? value(step * P::k_per_step + 1) : nullptr;
        for (int64_t d = 0; d < cache_.value_dim; d += lanes) {
            const int64_t left = cache_.value_dim - d;
            const Floats<Isa> a = even ? load_upto<Isa>(even + d, left) : zero;
            Right* to = values_ + (d / panel_columns * value_steps + step) * panel_columns + d % panel_columns;
            Floats<Isa>& finite = probe[d / lanes % 4];
            finite = multiply_add(a, zero, finite);
            if constexpr (raw_pairs) {
                const Floats<Isa> b = odd ? load_upto<Isa>(odd + d, left) : zero;
                finite = multiply_add(b, zero, finite);
                store_words(to, shift_right(as_words(a), 16) | as_words(b));
            } else {
                store<Isa>(to, a);
            }
        }
    }
    const float sum_of_zeros = sum(probe[0] + probe[1] + (probe[2] + probe[3]));
    return sum_of_zeros == 0.0f;
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

template <class P, class T> void AttentionBlock<P, T>::run() {
    stage_queries();
    const int64_t begin = first_visible(position(0)) / key_tile * key_tile, end = position(rows_ - 1) + 1;
    int64_t tokens[2][key_tile];
    locate(begin, tokens[0]);
    for (int64_t start = begin, turn = 0; start < end; start += key_tile, turn ^= 1) {
        if (start + key_tile < end) {
            locate(start + key_tile, tokens[turn ^ 1]);
            prefetch(tokens[turn ^ 1]);
        }
        pack_keys(tokens[turn]);
        const bool finite = pack_values(tokens[turn], {0, end - start < key_tile ? end - start : key_tile});
        int64_t row = 0;
        while (position(row) < start) ++row;  // earlier queries see none of this tile
        if (finite) {
            attend(row, rows_, start);
            continue;
        }
        // An infinity or NaN must not reach queries that do not see it through 0 * NaN: a packing per token.
        while (row < rows_) {
            int64_t next = row + 1;
            while (next < rows_ && position(next) == position(row)) ++next;
            const Range range = visible(row, start);
            if (range.low < range.high) {
                pack_values(tokens[turn], range);
                attend(row, next, start);
            }
            row = next;
        }
    }
    finish();
}

template <class P, class T> void AttentionBlock<P, T>::finish() {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
        const int64_t head = task_.kv_head * group_ + flat % group_;
        float total = sum(load<Isa>(total_ + row * lanes)), factor = 1.0f;
        if (job_.sinks) {
            const float sink = job_.sinks[head] * log2_e, peak = peak_[row] > sink ? peak_[row] : sink;
            alignas(64) float kept[lanes], added[lanes];
            store<Isa>(kept, exp2_nonpositive(fill<Isa>(peak_[row] - peak)));
            store<Isa>(added, exp2_nonpositive(fill<Isa>(sink - peak)));
            factor = kept[0];
            total = total * factor + added[0];
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
