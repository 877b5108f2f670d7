// One attention task: some hundred (token, head) rows against the keys of their key/value head, 64 at a time.
//
//   scores    [some rows, 64 keys] = q K               over packed keys, by the tile kernel of linear or on a matrix unit
//   softmax   weights [some rows, 64 keys]             attention_softmax.h
//   out       [some rows, value_dim] += weights V      over packed values; of one token's few heads straight from the cache
//
// Tiles are aligned at absolute positions and invisible keys weigh exactly 0, so that a query's bits depend on its own
// row's past and on nothing else: not on the queries beside it, nor on which of the two ways its values take.
#pragma once

#include "attention_pack.h"

namespace inferplane {

// Products over packed keys and values, by the tile kernel of linear.
template <class P> class VectorProducts {
  public:
    static constexpr int rows_together = P::Isa::tile_rows;
    static constexpr bool whole_tiles = false;  // else 64 keys are multiplied where fewer are seen, and no row does without packing

    // scores [rows, 64] = left [rows, steps] keys [steps, 64], `vectors` of them; `part` has room for as many.
    INFERPLANE_INLINE void scores(int rows, const typename P::Left* left, int64_t stride, const typename P::Right* keys, int64_t key_steps,
                                  float* scores, float* part, int vectors) {
        using Isa = typename P::Isa;
        for (int64_t step = 0; step < key_steps; step += score_steps<P>) {
            const int64_t steps = key_steps - step < score_steps<P> ? key_steps - step : score_steps<P>;
            multiply_some<P>(rows, left + step * P::left_per_step, stride, keys + step * key_tile, steps, step ? part : scores, vectors);
            for (int i = 0; step && i < rows * key_tile; i += lanes) store<Isa>(scores + i, load<Isa>(scores + i) + load<Isa>(part + i));
        }
    }

    // out [rows, 64] += weights [rows, 64 keys] values [steps, 64], `vectors` of them.
    INFERPLANE_INLINE void mix(int rows, const typename P::Left* weights, const typename P::Right* values, int64_t steps, float* out, int vectors) {
        multiply_tile<P>(rows, weights, key_tile, values, steps, out, vectors, true);
    }
};

// T: of queries and results. S: of the caches, T or int8 codes.
template <class P, class T, class S, class Products> class AttentionBlock {
  public:
    AttentionBlock(const AttentionJob& job, const AttentionTask& task, Products& products);
    int64_t carve_own(char* base);
    int64_t carve_shared(char* base);
    void begin();
    void begin_chunk(int64_t chunk);
    void locate_tile(int64_t start, KeyTile<S>& keys) const;
    void attend_tile(const KeyTile<S>& keys, const KeyTile<S>& next);
    void fold_chunk(int64_t chunk);
    void finish();

  private:
    using Isa = typename P::Isa;
    using Left = typename P::Left;
    using Right = typename P::Right;
    using Prefetcher = Ahead<P>;
    static constexpr int64_t value_steps = key_tile / P::k_per_step;
    static constexpr bool rough = sizeof(T) == 2;
    static constexpr int64_t padded_dims = lanes * P::k_per_step;  // queries are padded with zeros to a multiple
    static constexpr int64_t most_rows = Products::rows_together > direct_rows ? Products::rows_together : direct_rows;
    static constexpr int64_t rows_ahead = 24;  // whose queries are fetched before they are staged

    KeyRange visible(int64_t row, int64_t start) const;
    int64_t pair(int64_t row) const;
    const T* query(int64_t row) const { return static_cast<const T*>(job_.q) + pair(row) * cache_.key_dim; }
    T* result(int64_t row) const { return static_cast<T*>(job_.out) + pair(row) * cache_.value_dim; }
    void fetch(const T* row) const;
    void fetch_results(int64_t low, int rows, int64_t tile_end) const;
    void stage_queries(int64_t end);
    void attend_direct(const KeyTile<S>& keys, Prefetcher& keys_ahead, Prefetcher& values_ahead);
    void attend_apart(int64_t first, const KeyTile<S>& keys);
    void attend(int64_t first, int64_t last, const KeyTile<S>& keys);
    void store_result(const float* from, Floats<Isa> normal, int64_t dims, T* to) const;
    void weigh(int64_t low, int rows, int vectors, const float* scores, const KeyTile<S>& keys);
    template <bool plain, int vectors> void weigh_rows(int64_t low, int rows, const float* scores, const KeyTile<S>& keys);
    void score(const KeyTile<S>& keys, Prefetcher& ahead);
    void mix(int64_t low, int rows, int64_t steps);

    Products& products_;
    const AttentionJob& job_;
    const AttentionTask task_;
    const CacheShape cache_;
    const KeySpan span_;
    const int64_t rows_, group_, key_steps_, panels_, query_stride_;
    const bool direct_;
    ScoreRule rule_;            // of every row and tile, but for what is theirs
    Left *queries_, *weights_;  // [rows, query_stride], [tile rows, 64 keys]
    Right *keys_, *values_;     // [key steps, 64 keys], [panels, value steps, 64 dims]
    float* scores_;             // [most_rows, 64 keys], twice
    float *chunk_memory_, *folded_memory_;
    int64_t* position_;         // [rows]
    int64_t first_row_ = 0;     // rows before it see nothing from here on
    int64_t staged_ = 0;        // rows whose queries lie in queries_
    S* zeros_;                  // [value_dim]: what an unseen key's values read as
    SoftmaxSums sums_{nullptr, 0, 0}, folded_{nullptr, 0, 0};  // of this chunk, of those before it
};

template <class P, class T, class S, class Products>
AttentionBlock<P, T, S, Products>::AttentionBlock(const AttentionJob& job, const AttentionTask& task, Products& products)
    : products_(products), job_(job), task_(task), cache_(job.cache), span_(key_span(job, task)), rows_(task.last - task.first), group_(job.group()),
      key_steps_((cache_.key_dim + P::k_per_step - 1) / P::k_per_step), panels_((cache_.value_dim + panel_columns - 1) / panel_columns),
      query_stride_(round_up(cache_.key_dim, padded_dims) + lanes),
      direct_(!Products::whole_tiles && task.first / group_ == (task.last - 1) / group_ && rows_ <= direct_rows && cache_.value_dim % panel_columns == 0),
      rule_(score_rule<P>(job)) {}

// What lasts from tile to tile; returns the bytes it takes.
template <class P, class T, class S, class Products> int64_t AttentionBlock<P, T, S, Products>::carve_own(char* base) {
    Carver own(base);
    const int64_t sums = SoftmaxSums::floats(rows_, panels_);
    own.take(queries_, (rows_ + most_rows) * query_stride_);  // score_keys may read more rows than there are
    own.take(chunk_memory_, task_.parts ? 0 : sums);
    own.take(folded_memory_, span_.chunks() > 1 ? sums : 0);
    own.take(position_, rows_);
    if (base) sums_ = SoftmaxSums(chunk_memory_, rows_, panels_), folded_ = SoftmaxSums(folded_memory_, rows_, panels_);
    return own.used();
}

// What the heads of a task take turns with.
template <class P, class T, class S, class Products> int64_t AttentionBlock<P, T, S, Products>::carve_shared(char* base) {
    Carver shared(base);
    shared.take(weights_, Products::rows_together * key_tile);
    shared.take(scores_, 2 * most_rows * key_tile);
    shared.take(keys_, direct_ ? 0 : round_up(key_steps_, lanes) * key_tile);
    shared.take(values_, direct_ ? 0 : panels_ * value_steps * panel_columns);
    shared.take(zeros_, panels_ * panel_columns);
    if (base) __builtin_memset(zeros_, 0, panels_ * panel_columns * sizeof(S));
    return shared.used();
}

template <class P, class T, class S, class Products> KeyRange AttentionBlock<P, T, S, Products>::visible(int64_t row, int64_t start) const {
    const int64_t at = position_[row], low = job_.first_visible(at) - start, high = at + 1 - start;
    return {low < 0 ? 0 : low, high < key_tile ? high : key_tile};
}

// With what anyone sees of the tile.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::locate_tile(int64_t start, KeyTile<S>& keys) const {
    locate<P>(job_, task_, start, {visible(0, start).low, visible(rows_ - 1, start).high}, zeros_, keys);
}

// (token, head) of the whole batch.
template <class P, class T, class S, class Products> int64_t AttentionBlock<P, T, S, Products>::pair(int64_t row) const {
    const int64_t flat = task_.first + row, token = job_.starts[task_.row] + flat / group_;
    return token * job_.heads + task_.kv_head * group_ + flat % group_;
}

template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::begin() {
    for (int64_t row = 0; row < rows_; ++row) position_[row] = job_.first_position(task_.row) + (task_.first + row) / group_;
    for (int64_t row = 0; row < rows_ && row < rows_ahead; ++row) fetch(query(row));
    if (direct_) stage_queries(rows_);
}

template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::fetch(const T* row) const {
    for (int64_t d = 0; d < cache_.key_dim; d += cache_line_bytes / int64_t(sizeof(T))) __builtin_prefetch(row + d);
}

// Up to row `end`, and fetches those that come next.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::stage_queries(int64_t end) {
    for (; staged_ < end; ++staged_) {
        const T* from = query(staged_);
        if (staged_ + rows_ahead < rows_) fetch(query(staged_ + rows_ahead));
        Left* to = queries_ + staged_ * query_stride_;
        int64_t d = 0;
        if constexpr (P::k_per_step == 2) {
            for (; d + 2 * lanes <= cache_.key_dim; d += 2 * lanes) store_words(to + d, load_words<Isa>(from + d));
            if (d == cache_.key_dim) continue;
            __builtin_memset(to + d, 0, padded_dims * sizeof(Left));
            __builtin_memcpy(to + d, from + d, (cache_.key_dim - d) * sizeof(T));
        } else {
            for (; d < cache_.key_dim; d += lanes) store<Isa>(to + d, load_upto<Isa>(from + d, cache_.key_dim - d));
        }
    }
}

// The lines of results that rows low .. low + rows - 1 are about to be written to, where this tile is their last.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::fetch_results(int64_t low, int rows, int64_t tile_end) const {
    for (int64_t row = low; row < low + rows && !task_.parts; ++row) {
        if (position_[row] >= tile_end) continue;
        for (int64_t d = 0; d < cache_.value_dim; d += cache_line_bytes / int64_t(sizeof(T))) __builtin_prefetch(result(row) + d, 1);
    }
}

// Scores of all of a direct block's rows.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::score(const KeyTile<S>& keys, Prefetcher& ahead) {
    const auto kernel = rows_ == 1 ? score_keys<P, 1, S> : rows_ == 2 ? score_keys<P, 2, S> : rows_ <= 4 ? score_keys<P, 4, S> : score_keys<P, 8, S>;
    kernel(queries_, query_stride_, keys, cache_.key_dim, key_steps_, scores_, ahead);
}

// Weights of rows low .. low + rows - 1, from scores of `rows` rows; nobody sees a key behind `vectors` of them.
template <class P, class T, class S, class Products>
void AttentionBlock<P, T, S, Products>::weigh(int64_t low, int rows, int vectors, const float* scores, const KeyTile<S>& keys) {
    const bool plain = job_.softcap == 0 && !job_.slopes && sizeof(S) > 1;  // scores are products times a factor
    if (!plain) return weigh_rows<false, 4>(low, rows, scores, keys);
    if constexpr (Products::whole_tiles) return weigh_rows<true, 4>(low, rows, scores, keys);
    switch (vectors) {
        case 1: return weigh_rows<true, 1>(low, rows, scores, keys);
        case 2: return weigh_rows<true, 2>(low, rows, scores, keys);
        case 3: return weigh_rows<true, 3>(low, rows, scores, keys);
        default: return weigh_rows<true, 4>(low, rows, scores, keys);
    }
}

template <class P, class T, class S, class Products>
template <bool plain, int vectors>
void AttentionBlock<P, T, S, Products>::weigh_rows(int64_t low, int rows, const float* scores, const KeyTile<S>& keys) {
    ScoreRule rule = rule_;
    if (!plain && sizeof(S) == 1) rule.key_scale = keys.key_scale, rule.value_scale = keys.value_scale;
    for (int r = 0; r < rows; ++r, scores += key_tile) {
        const int64_t row = low + r;
        Left* weights = weights_ + r * key_tile;
        rule.seen = visible(row, keys.start);
        if (!plain) {
            rule.distance = float(keys.start - position_[row]);
            if (job_.slopes) rule.slope = job_.slopes[task_.kv_head * group_ + (task_.first + row) % group_];
        }
        const bool partial = rule.seen.low > 0 || rule.seen.high < vectors * lanes;
        if (partial) softmax<P, rough, plain, true, vectors>(sums_, row, rule, scores, weights);
        else softmax<P, rough, plain, false, vectors>(sums_, row, rule, scores, weights);
    }
}

// Adds the values of `steps` steps of keys, weighed, to rows low .. low + rows - 1.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::mix(int64_t low, int rows, int64_t steps) {
    for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t dims = cache_.value_dim - panel * panel_columns;
        const int vectors = dims >= panel_columns ? panel_columns / lanes : int((dims + lanes - 1) / lanes);
        products_.mix(rows, weights_, values_ + panel * value_steps * panel_columns, steps, sums_.row_out(panel, low), vectors);
    }
}

// Rows [first, last) against the packed tile. The values of a few rows come after the scores of the next few, so that
// the softmax between waits for neither and no product waits for it.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::attend(int64_t first, int64_t last, const KeyTile<S>& keys) {
    const int64_t most = Products::rows_together, tiles = (last - first + most - 1) / most;
    int64_t low = first, steps = 0;
    int rows = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t next = low + rows, high = first + (last - first) * (t + 1) / tiles;
        const int64_t seen = visible(high - 1, keys.start).high;
        const int vectors = int((seen + lanes - 1) / lanes);
        stage_queries(high);
        products_.scores(int(high - next), queries_ + next * query_stride_, query_stride_, keys_, key_steps_, scores_,
                         scores_ + most_rows * key_tile, vectors);
        if (t) mix(low, rows, steps);
        low = next, rows = int(high - next), steps = (seen + P::k_per_step - 1) / P::k_per_step;
        weigh(low, rows, vectors, scores_, keys);
        fetch_results(low, rows, keys.start + key_tile);
    }
    mix(low, rows, steps);
}

// All rows see the same keys, and nobody else's values are in the way.
template <class P, class T, class S, class Products>
void AttentionBlock<P, T, S, Products>::attend_direct(const KeyTile<S>& keys, Prefetcher& keys_ahead, Prefetcher& values_ahead) {
    const int64_t most = Isa::tile_rows, tiles = (rows_ + most - 1) / most;
    const int vectors = int((keys.seen.high + lanes - 1) / lanes);
    score(keys, keys_ahead);
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t low = rows_ * t / tiles, high = rows_ * (t + 1) / tiles;
        weigh(low, int(high - low), vectors, scores_ + low * key_tile, keys);
        for (int64_t panel = 0; panel < panels_; ++panel) {
            mix_values<P>(int(high - low), weights_, keys, panel * panel_columns, sums_.row_out(panel, low), values_ahead);
        }
    }
}

// An infinity or NaN must not reach queries that do not see it through 0 * NaN: a packing per token.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::attend_apart(int64_t first, const KeyTile<S>& keys) {
    for (int64_t row = first, next; row < rows_; row = next) {
        next = row + 1;
        while (next < rows_ && position_[next] == position_[row]) ++next;
        const KeyRange range = visible(row, keys.start);
        if (range.low >= range.high) continue;
        Prefetcher none(nullptr, 0);
        pack_values<P, Products::whole_tiles>(keys, range, cache_.value_dim, zeros_, values_, none);
        attend(row, next, keys);
    }
}

template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::begin_chunk(int64_t chunk) {
    const int64_t floats = SoftmaxSums::floats(rows_, panels_);
    if (task_.parts) sums_ = SoftmaxSums(task_.parts + (chunk - span_.first_chunk()) * floats, rows_, panels_);
    if (task_.parts && task_.chunk < 0) return;
    clear<P>(sums_);
    first_row_ = 0;
}

template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::attend_tile(const KeyTile<S>& keys, const KeyTile<S>& next) {
    Prefetcher keys_ahead(next.key_runs, next.runs), values_ahead(next.value_runs, job_.v_cache ? next.runs : 0);
    if (direct_) return attend_direct(keys, keys_ahead, values_ahead);
    pack_keys<P>(keys, cache_.key_dim, key_steps_, keys_, keys_ahead);
    const bool finite = pack_values<P, Products::whole_tiles>(keys, keys.seen, cache_.value_dim, zeros_, values_, values_ahead);
    while (position_[first_row_] < keys.start) ++first_row_;
    if (finite) attend(first_row_, rows_, keys);
    else attend_apart(first_row_, keys);
}

// Each row folds the chunks of which it sees a key, the first being a copy.
template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::fold_chunk(int64_t chunk) {
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t first = job_.first_visible(position_[row]) / key_chunk;
        if (chunk < first || chunk > position_[row] / key_chunk) continue;
        if (chunk == first) copy_row<P>(folded_, sums_, row);
        else fold<P>(folded_, sums_, row);
    }
}

template <class P, class T, class S, class Products> void AttentionBlock<P, T, S, Products>::finish() {
    const SoftmaxSums& sums = span_.chunks() > 1 ? folded_ : sums_;
    for (int64_t row = 0; row < rows_; ++row) {
        float total = sum(load<Isa>(sums.total + row * lanes)), factor = 1.0f;
        if (job_.sinks) {
            // In double: a sink far above the scores would turn its rounding into a relative error of all.
            const double sink = double(job_.sinks[pair(row) % job_.heads]) * 1.4426950408889634;
            const double peak = sums.peak[row] > sink ? sums.peak[row] : sink;
            factor = float(__builtin_exp2(sums.peak[row] - peak));
            total = total * factor + float(__builtin_exp2(sink - peak));
        }
        const Floats<Isa> normal = fill<Isa>(factor / total);
        T* to = result(row);
        for (int64_t panel = 0; panel < panels_; ++panel, to += panel_columns) {
            store_result(sums.row_out(panel, row), normal, cache_.value_dim - panel * panel_columns, to);
        }
    }
}

// One row's sums over a panel, the first `dims` of them.
template <class P, class T, class S, class Products>
INFERPLANE_INLINE void AttentionBlock<P, T, S, Products>::store_result(const float* from, Floats<Isa> normal, int64_t dims, T* to) const {
    Floats<Isa> v[panel_columns / lanes];
    for (int j = 0; j < panel_columns / lanes; ++j) v[j] = load<Isa>(from + j * lanes) * normal;
    if constexpr (P::k_per_step == 2) {
        for (int j = 0; direct_ && j < panel_columns / lanes; j += 2) P::straighten(v[j], v[j + 1]);
    }
    for (int j = 0; j < panel_columns / lanes; ++j) {
        const int64_t left = dims - j * lanes;
        if (left >= lanes) {
            if constexpr (P::k_per_step == 2) P::store_left(to + j * lanes, v[j]);
            else store<Isa>(to + j * lanes, v[j]);
        } else if (left > 0) {
            store_first<Isa>(to + j * lanes, v[j], left);
        }
    }
}

// Head after head at each tile: their keys are neighbours in memory.
template <class Block, class S> void attend_chunk(std::vector<Block>& blocks, const KeySpan& span, int64_t chunk) {
    const int64_t begin = chunk * key_chunk > span.begin ? chunk * key_chunk : span.begin;
    const int64_t end = (chunk + 1) * key_chunk < span.end ? (chunk + 1) * key_chunk : span.end;
    const int64_t heads = int64_t(blocks.size()), units = (end - begin + key_tile - 1) / key_tile * heads;
    KeyTile<S> keys[2];
    blocks[0].locate_tile(begin, keys[0]);
    for (int64_t unit = 0; unit < units; ++unit) {
        KeyTile<S>& next = keys[(unit + 1) % 2];
        next.runs = 0;
        if (unit + 1 < units) blocks[(unit + 1) % heads].locate_tile(begin + (unit + 1) / heads * key_tile, next);
        blocks[unit % heads].attend_tile(keys[unit % 2], next);
    }
}

template <class P, class T, class S, class Products = VectorProducts<P>> void attend_task(const AttentionJob& job, const AttentionTask& task) {
    using Block = AttentionBlock<P, T, S, Products>;
    Products products;
    const KeySpan span = key_span(job, task);
    const bool one_part = task.chunk >= 0, only_fold = task.parts && !one_part;
    const int64_t part = span.chunks() * SoftmaxSums::floats(task.last - task.first, (job.cache.value_dim + panel_columns - 1) / panel_columns);
    std::vector<Block> blocks;
    blocks.reserve(task.heads);
    AttentionTask head = task;
    for (int64_t h = 0; h < task.heads; ++h, ++head.kv_head, head.parts += head.parts ? part : 0) blocks.emplace_back(job, head, products);
    const int64_t own = blocks[0].carve_own(nullptr), shared = blocks[0].carve_shared(nullptr);
    static thread_local Scratch scratch;
    char* base = scratch.get<char>(shared + own * task.heads);
    for (int64_t h = 0; h < task.heads; ++h) {
        blocks[h].carve_shared(base);
        blocks[h].carve_own(base + shared + h * own);
        blocks[h].begin();
    }
    for (int64_t chunk = span.first_chunk(); chunk < span.first_chunk() + span.chunks(); ++chunk) {
        if (one_part && chunk != task.chunk) continue;
        for (Block& block : blocks) block.begin_chunk(chunk);
        if (!only_fold) attend_chunk<Block, S>(blocks, span, chunk);
        for (Block& block : blocks) {
            if (!one_part && span.chunks() > 1) block.fold_chunk(chunk);
        }
    }
    for (Block& block : blocks) {
        if (!one_part) block.finish();
    }
}

}  // namespace inferplane
