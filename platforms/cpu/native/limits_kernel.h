// Loops that do nothing but read, or nothing but multiply and add in registers.
#pragma once

#include "tile.h"

namespace inferplane {

constexpr int64_t read_ahead = 1024;  // floats

template <class Isa, bool past> INFERPLANE_INLINE float read_fetched(const float* from, int64_t count) {
    Floats<Isa> sums[4] = {fill<Isa>(0.0f), fill<Isa>(0.0f), fill<Isa>(0.0f), fill<Isa>(0.0f)};
    for (int64_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
        for (int j = 0; j < 4; ++j) {
            if constexpr (past) Isa::prefetch_once(from + i + j * lanes + read_ahead);
            else Isa::prefetch(from + i + j * lanes + read_ahead);
            sums[j] = sums[j] + load<Isa>(from + i + j * lanes);
        }
    }
    return sum(sums[0] + sums[1] + (sums[2] + sums[3]));
}

template <class Isa> float read_lines(const float* from, int64_t count) {
    return fetches_past_caches ? read_fetched<Isa, true>(from, count) : read_fetched<Isa, false>(from, count);
}

// Twelve registers of independent chains: more than latency times issue rate.
template <class P> double peak_rate(int64_t rounds, float* sink) {
    using Isa = typename P::Isa;
    constexpr int chains = 12 / Isa::parts;
    alignas(64) typename P::Right ones[panel_columns] = {};
    typename P::Left left[4] = {};
    const typename P::Vector a = P::broadcast(left, 0), b = P::load_right(ones, 0);
    Floats<Isa> sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = fill<Isa>(float(i));
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) sums[i] = P::multiply(a, b, sums[i]);
    }
    for (int i = 1; i < chains; ++i) sums[0] = sums[0] + sums[i];
    *sink = sum(sums[0]);
    return 2.0 * P::k_per_step / P::passes * lanes * chains * double(rounds);
}

}  // namespace inferplane
