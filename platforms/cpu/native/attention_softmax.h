// Online softmax of a query's scores, 64 keys at a time, and the folding of chunks of keys.
//
//   peak' = max(peak, scores)    w = 2^(scores - peak')    total = total 2^(peak - peak') + w    out = out 2^(peak - peak') + w V
//
// Milakov and Gimelshein 2018; Dao et al. 2022. Each chunk of 1,024 keys begins anew and is folded into those before it
// by the same rule, so that who computes a chunk, and when, changes no bit.
#pragma once

#include "attention.h"
#include "tile.h"
#include "vector_math.h"

namespace inferplane {

constexpr float log2_e = 1.44269504f;

struct KeyRange { int64_t low, high; };  // keys of a tile, relative to its start

template <class P> void clear(const SoftmaxSums& sums) {
    __builtin_memset(sums.out, 0, (sums.total - sums.out + sums.rows * lanes) * sizeof(float));
    for (int64_t row = 0; row < sums.rows; ++row) sums.peak[row] = -__builtin_inff();
}

// How one query turns 64 products q k into scores and weights.
struct ScoreRule {
    float factor, rest;     // float32 and what it left off: of scale * log2 e, or of scale / softcap
    float softcap;          // 0: none
    float slope, distance;  // ALiBi: slope * (distance + key), the keys counted from the tile's start
    const float *key_scale, *value_scale;  // [64] of codes, or null
    KeyRange seen;
};

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
    store<Isa>(factor, exp2_nonpositive(fill<Isa>(from - to)));
    return factor[0];
}

// Everything in units of log 2, so that the exponential is one of base 2.
template <class Isa, bool rough> INFERPLANE_INLINE Floats<Isa> score(Floats<Isa> product, const ScoreRule& rule, int j) {
    if (rule.key_scale) product = product * load<Isa>(rule.key_scale + j * lanes);
    if constexpr (rough) product = product * fill<Isa>(rule.factor);
    else product = multiply_add(product, fill<Isa>(rule.factor), product * fill<Isa>(rule.rest));
    if (rule.softcap > 0) product = tanh(product) * fill<Isa>(rule.softcap * log2_e);
    if (rule.slope == 0) return product;
    const Floats<Isa> key = from_integers(lane_index<Isa>()) + fill<Isa>(float(j * lanes) + rule.distance);
    return multiply_add(key, fill<Isa>(rule.slope * log2_e), product);
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> only(Floats<Isa> values, KeyRange range, int j, float otherwise) {
    const Floats<Isa> key = from_integers(lane_index<Isa>()) + fill<Isa>(float(j * lanes)), none = fill<Isa>(otherwise);
    return where_less(key, fill<Isa>(float(range.high)), where_less(key, fill<Isa>(float(range.low)), none, values), none);
}

// products [64] of row `row` -> weights [64], 0 for keys that it does not see; sums.total and sums.out follow the peak.
template <class P, bool rough>
void softmax(const SoftmaxSums& sums, int64_t row, const ScoreRule& rule, const float* products, typename P::Left* weights) {
    using Isa = typename P::Isa;
    constexpr int vectors = key_tile / lanes;
    const bool partial = rule.seen.low > 0 || rule.seen.high < key_tile;  // the mask guards the diagonal, the window, the row's end
    Floats<Isa> s[vectors];
    for (int j = 0; j < vectors; ++j) s[j] = score<Isa, rough>(load<Isa>(products + j * lanes), rule, j);
    if (partial) {
        for (int j = 0; j < vectors; ++j) s[j] = only(s[j], rule.seen, j, -__builtin_inff());
    }
    const Floats<Isa> best = larger(larger(fill<Isa>(-__builtin_inff()), s[0]), larger(s[1], larger(s[2], s[3])));
    const float highest = maximum(best), old = sums.peak[row], peak = highest > old ? highest : old;
    if (peak > old) {
        sums.peak[row] = peak;
        if (old > -__builtin_inff()) rescale<Isa>(sums, row, power_between<Isa>(old, peak));
    }
    // A row that has seen nothing yet has the peak -infinity: its weights are 2^-infinity, not NaN.
    const Floats<Isa> base = fill<Isa>(peak > -__builtin_inff() ? peak : 0.0f);
    Floats<Isa> total = load<Isa>(sums.total + row * lanes);
    for (int j = 0; j < vectors; ++j) {
        Floats<Isa> w = exp2_nonpositive<Isa, rough>(s[j] - base);
        total = total + w;
        if (rule.value_scale) {
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
    const float base = peak > -__builtin_inff() ? peak : 0.0f;
    rescale<Isa>(into, row, power_between<Isa>(old, base));
    const Floats<Isa> f = fill<Isa>(power_between<Isa>(other, base));
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
