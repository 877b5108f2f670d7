// Online softmax of a query's scores, 64 keys at a time, and the folding of chunks of keys.
//
//   peak' = max(peak, scores)    w = 2^(scores - peak')    total = total 2^(peak - peak') + w    out = out 2^(peak - peak') + w V
//
// The peak moves only where a score passes it by more than 8: weights are then 256 at most, and sums are rarely rescaled.
// Milakov and Gimelshein 2018; Dao et al. 2022. Each chunk of 1,024 keys begins anew and is folded into those before it
// by the same rule, so that who computes a chunk, and when, changes no bit.
#pragma once

#include "attention.h"
#include "tile.h"
#include "vector_math.h"

namespace inferplane {

constexpr float log2_e = 1.44269504f;
constexpr float peak_slack = 8;         // in log 2
constexpr float nothing_seen = -1e38f;  // a row's first peak: finite, so that nothing less it is no NaN

struct KeyRange { int64_t low, high; };  // keys of a tile, relative to its start

template <class P> void clear(const SoftmaxSums& sums) {
    __builtin_memset(sums.out, 0, (sums.total - sums.out + sums.rows * lanes) * sizeof(float));
    for (int64_t row = 0; row < sums.rows; ++row) sums.peak[row] = nothing_seen;
}

// How one query turns 64 products q k into scores and weights.
struct ScoreRule {
    float factor, rest;     // float32 and what it left off: of scale * log2 e, or of scale / softcap
    float softcap;          // 0: none
    float slope, distance;  // ALiBi: slope * (distance + key), the keys counted from the tile's start
    const float *key_scale, *value_scale;  // [64] of codes, or null
    KeyRange seen;
};

template <class P> ScoreRule score_rule(const AttentionJob& job) {
    const double exact = job.softcap > 0 ? job.scale / job.softcap : job.scale * 1.4426950408889634;
    const float factor = float(exact);
    return {factor, float(exact - factor), job.softcap, 0, 0, nullptr, nullptr, {0, 0}};
}

template <class Isa> INFERPLANE_INLINE void rescale(const SoftmaxSums& sums, int64_t row, float factor) {
    const Floats<Isa> f = fill<Isa>(factor);
    store<Isa>(sums.total + row * lanes, load<Isa>(sums.total + row * lanes) * f);
    for (int64_t panel = 0; panel < sums.panels; ++panel) {
        float* out = sums.row_out(panel, row);
        for (int j = 0; j < panel_columns; j += lanes) store<Isa>(out + j, load<Isa>(out + j) * f);
    }
}

template <class Isa> INFERPLANE_INLINE float power_between(float from, float to) {
    alignas(64) float factor[lanes];
    store<Isa>(factor, exp2_small(fill<Isa>(from - to)));
    return factor[0];
}

// The score plus `base`. Everything in units of log 2, so that the exponential is one of base 2.
template <class Isa, bool rough, bool plain>
INFERPLANE_INLINE Floats<Isa> above(Floats<Isa> product, const ScoreRule& rule, int j, Floats<Isa> base) {
    if (plain && rough) return multiply_add(product, fill<Isa>(rule.factor), base);
    if (!plain && rule.key_scale) product = product * load<Isa>(rule.key_scale + j * lanes);
    if constexpr (rough) product = product * fill<Isa>(rule.factor);
    else product = multiply_add(product, fill<Isa>(rule.factor), product * fill<Isa>(rule.rest));
    if (!plain && rule.softcap > 0) product = tanh(product) * fill<Isa>(rule.softcap * log2_e);
    if (plain || rule.slope == 0) return product + base;
    const Floats<Isa> key = from_integers(lane_index<Isa>()) + fill<Isa>(float(j * lanes) + rule.distance);
    return multiply_add(key, fill<Isa>(rule.slope * log2_e), product) + base;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> only(Floats<Isa> values, KeyRange range, int j, float otherwise) {
    const Floats<Isa> key = from_integers(lane_index<Isa>()) + fill<Isa>(float(j * lanes)), none = fill<Isa>(otherwise);
    return where_less(key, fill<Isa>(float(range.high)), where_less(key, fill<Isa>(float(range.low)), none, values), none);
}

// products [16 * vectors] of row `row` -> weights, 0 for keys that it does not see; sums.total and sums.out follow the peak.
// partial: the mask guards the diagonal, the window, the row's end. It sees no keys beyond those of `vectors`.
template <class P, bool rough, bool plain, bool partial, int vectors>
INFERPLANE_INLINE void softmax(const SoftmaxSums& sums, int64_t row, const ScoreRule& rule, const float* products,
                               typename P::Left* weights) {
    using Isa = typename P::Isa;
    Floats<Isa> s[vectors], best;
    const auto measure = [&] {  // from the peak
        const Floats<Isa> base = fill<Isa>(-sums.peak[row]);
        best = fill<Isa>(-__builtin_inff());
        for (int j = 0; j < vectors; ++j) {
            s[j] = above<Isa, rough, plain>(load<Isa>(products + j * lanes), rule, j, base);
            if (partial) s[j] = only(s[j], rule.seen, j, -__builtin_inff());
            best = larger(s[j], best);
        }
    };
    measure();
    if (__builtin_expect(Isa::any_above(best, peak_slack), 0)) {
        const float old = sums.peak[row];
        sums.peak[row] = 0;
        measure();
        sums.peak[row] = maximum(best);
        if (old > nothing_seen) rescale<Isa>(sums, row, power_between<Isa>(old, sums.peak[row]));
        measure();
    }
    Floats<Isa> total = load<Isa>(sums.total + row * lanes);
    for (int j = 0; j < vectors; ++j) {
        Floats<Isa> w = exp2_small<Isa, rough>(s[j]);
        total = total + w;
        if (!plain && rule.value_scale) {
            w = w * load<Isa>(rule.value_scale + j * lanes);
            if (partial) w = only(w, rule.seen, j, 0.0f);  // another query's NaN scale
        }
        P::store_left(weights + j * lanes, w);
    }
    store<Isa>(sums.total + row * lanes, total);
}

// Row `row` of `into` takes the sums over the next chunk of keys.
template <class P> void fold(const SoftmaxSums& into, const SoftmaxSums& next, int64_t row) {
    using Isa = typename P::Isa;
    const float old = into.peak[row], other = next.peak[row], peak = other > old ? other : old;
    rescale<Isa>(into, row, power_between<Isa>(old, peak));
    const Floats<Isa> f = fill<Isa>(power_between<Isa>(other, peak));
    into.peak[row] = peak;
    const auto add = [&](float* to, const float* from) { store<Isa>(to, multiply_add(load<Isa>(from), f, load<Isa>(to))); };
    add(into.total + row * lanes, next.total + row * lanes);
    for (int64_t panel = 0; panel < into.panels; ++panel) {
        for (int j = 0; j < panel_columns; j += lanes) add(into.row_out(panel, row) + j, next.row_out(panel, row) + j);
    }
}

template <class P> void copy_row(const SoftmaxSums& to, const SoftmaxSums& from, int64_t row) {
    to.peak[row] = from.peak[row];
    __builtin_memcpy(to.total + row * lanes, from.total + row * lanes, lanes * sizeof(float));
    for (int64_t panel = 0; panel < to.panels; ++panel) {
        __builtin_memcpy(to.row_out(panel, row), from.row_out(panel, row), panel_columns * sizeof(float));
    }
}

}  // namespace inferplane
