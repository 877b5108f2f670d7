// One attention task: up to 96 (token, head) rows against the keys of their key/value head, 64 at a time.
//
//   scores    [6 rows, 64 keys] = q K                  over packed keys, by the tile kernel of linear
//   softmax   weights [6 rows, 64 keys]                attention_softmax.h
//   out       [6 rows, value_dim] += weights V         over packed values; of one token's few heads straight from the cache
//
// Tiles are aligned at absolute positions and invisible keys weigh exactly 0, so that a query's bits depend on its own
// row's past and on nothing else: not on the queries beside it, nor on which of the two ways its values take.
#pragma once

#include "attention_pack.h"

namespace inferplane {

// T: of queries and results. S: of the caches, T or int8 codes.
template <class P, class T, class S> class AttentionBlock {
  public:
    AttentionBlock(const AttentionJob& job, const AttentionTask& task);
    void run();

  private:
    using Isa = typename P::Isa;
    using Left = typename P::Left;
    using Right = typename P::Right;
    using Prefetcher = Ahead<P>;
    static constexpr int64_t value_steps = key_tile / P::k_per_step;
    static constexpr int64_t most_direct_rows = 8;  // no fewer than tile_rows
    static constexpr bool rough = sizeof(T) == 2;

    KeyRange visible(int64_t row, int64_t start) const;
    int64_t carve(char* base);
    void stage_queries();
    KeyRange seen_of(int64_t start) const;
    void attend_chunk(int64_t chunk);
    void attend_direct(const KeyTile<S>& keys, Prefetcher& values_ahead, Prefetcher& keys_ahead);
    void attend_apart(int64_t first, const KeyTile<S>& keys);
    void attend(int64_t first, int64_t last, const KeyTile<S>& keys);
    void weigh(int64_t low, int rows, const float* scores, const KeyTile<S>& keys);
    void score(const KeyTile<S>& keys, Prefetcher& ahead);
    void fold_chunk(int64_t chunk);
    void finish(const SoftmaxSums& sums);

    const AttentionJob& job_;
    const AttentionTask task_;
    const CacheShape cache_;
    const KeySpan span_;
    const int64_t rows_, group_, key_steps_, panels_, query_stride_;
    const bool direct_;
    Left *queries_, *weights_;  // [rows, query_stride], [tile rows, 64 keys]
    Right *keys_, *values_;     // [key steps, 64 keys], [panels, value steps, 64 dims]
    float* scores_;             // [rows of a tile or of a direct block, 64 keys]
    float *chunk_memory_, *folded_memory_;
    int64_t* position_;         // [rows]
    S* zeros_;                  // [value_dim]: what an unseen key's values read as
    SoftmaxSums sums_{nullptr, 0, 0}, folded_{nullptr, 0, 0};  // of this chunk, of those before it
};

template <class P, class T, class S>
AttentionBlock<P, T, S>::AttentionBlock(const AttentionJob& job, const AttentionTask& task)
    : job_(job), task_(task), cache_(job.cache), span_(key_span(job, task)), rows_(task.last - task.first), group_(job.group()),
      key_steps_((cache_.key_dim + P::k_per_step - 1) / P::k_per_step), panels_((cache_.value_dim + panel_columns - 1) / panel_columns),
      query_stride_(round_up(cache_.key_dim, lanes) + lanes),
      direct_(task.first / group_ == (task.last - 1) / group_ && rows_ <= most_direct_rows && cache_.value_dim % panel_columns == 0) {
    static thread_local Scratch scratch;
    carve(scratch.get<char>(carve(nullptr)));
    sums_ = SoftmaxSums(chunk_memory_, rows_, panels_);
    folded_ = SoftmaxSums(folded_memory_, rows_, panels_);
}

// Lays the work arrays out from `base`, each on its own cache line; returns the bytes they take.
template <class P, class T, class S> int64_t AttentionBlock<P, T, S>::carve(char* base) {
    int64_t used = 0;
    const auto take = [&](auto*& array, int64_t count) {
        using Item = typename std::remove_reference<decltype(*array)>::type;
        array = base ? reinterpret_cast<Item*>(base + used) : nullptr;
        used += round_up(count * int64_t(sizeof(Item)), cache_line_bytes);
    };
    const int64_t sums = SoftmaxSums::floats(rows_, panels_);
    take(queries_, (rows_ + most_direct_rows) * query_stride_);  // score_keys may read more rows than there are
    take(weights_, Isa::tile_rows * key_tile);
    take(keys_, direct_ ? 0 : round_up(key_steps_, lanes) * key_tile);
    take(values_, direct_ ? 0 : panels_ * value_steps * panel_columns);
    take(scores_, most_direct_rows * key_tile);
    take(chunk_memory_, task_.parts ? 0 : sums);
    take(folded_memory_, span_.chunks() > 1 ? sums : 0);
    take(position_, rows_);
    take(zeros_, panels_ * panel_columns);
    return used;
}

template <class P, class T, class S> KeyRange AttentionBlock<P, T, S>::visible(int64_t row, int64_t start) const {
    const int64_t at = position_[row], low = job_.first_visible(at) - start, high = at + 1 - start;
    return {low < 0 ? 0 : low, high < key_tile ? high : key_tile};
}

// What anyone sees of the tile.
template <class P, class T, class S> KeyRange AttentionBlock<P, T, S>::seen_of(int64_t start) const {
    return {visible(0, start).low, visible(rows_ - 1, start).high};
}

template <class P, class T, class S> void AttentionBlock<P, T, S>::stage_queries() {
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
        position_[row] = job_.first_position(task_.row) + flat / group_;
    }
    __builtin_memset(zeros_, 0, panels_ * panel_columns * sizeof(S));
}

// Scores of all of a direct block's rows.
template <class P, class T, class S> void AttentionBlock<P, T, S>::score(const KeyTile<S>& keys, Prefetcher& ahead) {
    const auto kernel = rows_ == 1 ? score_keys<P, 1, S> : rows_ == 2 ? score_keys<P, 2, S> : rows_ <= 4 ? score_keys<P, 4, S> : score_keys<P, 8, S>;
    kernel(queries_, query_stride_, keys, cache_.key_dim, key_steps_, scores_, ahead);
}

// Weights of rows low .. low + rows - 1, from scores of `rows` rows.
template <class P, class T, class S> void AttentionBlock<P, T, S>::weigh(int64_t low, int rows, const float* scores, const KeyTile<S>& keys) {
    const bool codes = sizeof(S) == 1;
    for (int r = 0; r < rows; ++r) {
        const int64_t row = low + r, head = task_.kv_head * group_ + (task_.first + row) % group_;
        const ScoreRule rule{job_.scale, job_.softcap, job_.slopes ? job_.slopes[head] : 0.0f, float(keys.start - position_[row]),
                             codes ? keys.key_scale : nullptr, codes ? keys.value_scale : nullptr, visible(row, keys.start)};
        softmax<P, rough>(sums_, row, rule, scores + r * key_tile, weights_ + r * key_tile);
    }
}

// Rows [first, last) against the packed tile.
template <class P, class T, class S> void AttentionBlock<P, T, S>::attend(int64_t first, int64_t last, const KeyTile<S>& keys) {
    const int64_t most = Isa::tile_rows, tiles = (last - first + most - 1) / most;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t low = first + (last - first) * t / tiles, high = first + (last - first) * (t + 1) / tiles;
        const int rows = int(high - low);
        multiply_tile<P>(rows, queries_ + low * query_stride_, query_stride_, keys_, key_steps_, scores_, key_tile / lanes, false);
        weigh(low, rows, scores_, keys);
        const int64_t steps = (visible(high - 1, keys.start).high + P::k_per_step - 1) / P::k_per_step;
        for (int64_t panel = 0; panel < panels_; ++panel) {
            const int64_t dims = cache_.value_dim - panel * panel_columns;
            const int vectors = dims >= panel_columns ? panel_columns / lanes : int((dims + lanes - 1) / lanes);
            multiply_tile<P>(rows, weights_, key_tile, values_ + panel * value_steps * panel_columns, steps,
                             sums_.row_out(panel, low), vectors, true);
        }
    }
}

// All rows see the same keys, and nobody else's values are in the way.
template <class P, class T, class S> void AttentionBlock<P, T, S>::attend_direct(const KeyTile<S>& keys, Prefetcher& values_ahead, Prefetcher& keys_ahead) {
    const int64_t most = Isa::tile_rows, tiles = (rows_ + most - 1) / most;
    score(keys, values_ahead);
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t low = rows_ * t / tiles, high = rows_ * (t + 1) / tiles;
        weigh(low, int(high - low), scores_ + low * key_tile, keys);
        for (int64_t panel = 0; panel < panels_; ++panel) {
            mix_values<P>(int(high - low), weights_, keys, panel * panel_columns, sums_.row_out(panel, low), keys_ahead);
        }
    }
}

// An infinity or NaN must not reach queries that do not see it through 0 * NaN: a packing per token.
template <class P, class T, class S> void AttentionBlock<P, T, S>::attend_apart(int64_t first, const KeyTile<S>& keys) {
    for (int64_t row = first, next; row < rows_; row = next) {
        next = row + 1;
        while (next < rows_ && position_[next] == position_[row]) ++next;
        const KeyRange range = visible(row, keys.start);
        if (range.low >= range.high) continue;
        Prefetcher none(nullptr, 0);
        pack_values<P>(keys, range, cache_.value_dim, zeros_, values_, none);
        attend(row, next, keys);
    }
}

template <class P, class T, class S> void AttentionBlock<P, T, S>::attend_chunk(int64_t chunk) {
    clear<P>(sums_);
    const int64_t begin = chunk * key_chunk > span_.begin ? chunk * key_chunk : span_.begin;
    const int64_t end = (chunk + 1) * key_chunk < span_.end ? (chunk + 1) * key_chunk : span_.end;
    KeyTile<S> keys[2];
    locate<P>(job_, task_, begin, seen_of(begin), zeros_, keys[0]);
    int64_t row = 0;
    for (int64_t start = begin, turn = 0; start < end; start += key_tile, turn ^= 1) {
        KeyTile<S>& next = keys[turn ^ 1];
        next.runs = 0;
        if (start + key_tile < end) locate<P>(job_, task_, start + key_tile, seen_of(start + key_tile), zeros_, next);
        Prefetcher values_ahead(keys[turn].value_runs, job_.v_cache ? keys[turn].runs : 0), keys_ahead(next.key_runs, next.runs);
        if (direct_) {
            attend_direct(keys[turn], values_ahead, keys_ahead);
            continue;
        }
        pack_keys<P>(keys[turn], cache_.key_dim, key_steps_, keys_, values_ahead);
        const bool finite = pack_values<P>(keys[turn], keys[turn].seen, cache_.value_dim, zeros_, values_, keys_ahead);
        while (position_[row] < start) ++row;  // earlier queries see none of this tile
        if (finite) attend(row, rows_, keys[turn]);
        else attend_apart(row, keys[turn]);
    }
}

// Each row folds the chunks of which it sees a key, the first being a copy.
template <class P, class T, class S> void AttentionBlock<P, T, S>::fold_chunk(int64_t chunk) {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t first = job_.first_visible(position_[row]) / key_chunk;
        if (chunk < first || chunk > position_[row] / key_chunk) continue;
        if (chunk == first) copy_row<P>(folded_, sums_, row);
        else fold<P>(folded_, sums_, row);
    }
}

template <class P, class T, class S> void AttentionBlock<P, T, S>::run() {
    stage_queries();
    const bool one_part = task_.chunk >= 0, only_fold = task_.parts && !one_part;
    for (int64_t i = 0; i < span_.chunks(); ++i) {
        const int64_t chunk = span_.first_chunk() + i;
        if (one_part && chunk != task_.chunk) continue;
        if (task_.parts) sums_ = SoftmaxSums(task_.parts + i * SoftmaxSums::floats(rows_, panels_), rows_, panels_);
        if (!only_fold) attend_chunk(chunk);
        if (!one_part && span_.chunks() > 1) fold_chunk(chunk);
    }
    if (!one_part) finish(span_.chunks() > 1 ? folded_ : sums_);
}

template <class P, class T, class S> void AttentionBlock<P, T, S>::finish(const SoftmaxSums& sums) {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
        const int64_t head = task_.kv_head * group_ + flat % group_;
        float total = sum(load<Isa>(sums.total + row * lanes)), factor = 1.0f;
        if (job_.sinks) {
            // In double: a sink far above the scores would turn its rounding into a relative error of all.
            const double sink = double(job_.sinks[head]) * 1.4426950408889634, peak = sums.peak[row] > sink ? sums.peak[row] : sink;
            factor = float(__builtin_exp2(sums.peak[row] - peak));
            total = total * factor + float(__builtin_exp2(sink - peak));
        }
        const Floats<Isa> normal = fill<Isa>(factor / total);
        T* to = static_cast<T*>(job_.out) + (token * job_.heads + head) * cache_.value_dim;
        if constexpr (P::k_per_step == 2) {
            for (int64_t d = 0; direct_ && d < cache_.value_dim; d += 2 * lanes) {
                float* pair = sums.row_out(d / panel_columns, row) + d % panel_columns;
                Floats<Isa> low = load<Isa>(pair), high = load<Isa>(pair + lanes);
                P::straighten(low, high);
                store<Isa>(pair, low);
                store<Isa>(pair + lanes, high);
            }
        }
        for (int64_t d = 0; d < cache_.value_dim; d += lanes) {
            const float* from = sums.row_out(d / panel_columns, row) + d % panel_columns;
            store_upto<Isa>(to + d, load<Isa>(from) * normal, cache_.value_dim - d);
        }
    }
}

template <class P, class T, class S> void attend_task(const AttentionJob& job, const AttentionTask& task) {
    AttentionBlock<P, T, S>(job, task).run();
}

}  // namespace inferplane
