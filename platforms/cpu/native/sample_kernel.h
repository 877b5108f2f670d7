// The passes over a whole vocabulary, for one instruction set.
#pragma once

#include "sample.h"
#include "threefry.h"
#include "vector_math.h"

namespace inferplane {

template <class Isa> struct SplatWords {
    INFERPLANE_INLINE Words<Isa> operator()(uint32_t word) const { return fill_words<Isa>(word); }
};

template <class Isa> struct RotateWords {
    INFERPLANE_INLINE Words<Isa> operator()(Words<Isa> word, int bits) const {
        return shift_left(word, bits) | shift_right(word, 32 - bits);
    }
};

// The largest logit; NaN never wins, and -infinity stands for a row without numbers.
template <class Isa> float largest(const float* logits, int64_t count) {
    const Floats<Isa> never = fill<Isa>(-__builtin_inff());
    Floats<Isa> best[4] = {never, never, never, never};
    for (int64_t i = 0; i < count; i += lanes) {
        Floats<Isa> v = load_upto<Isa>(logits + i, count - i);
        if (count - i < lanes) {  // the mask guards the vocabulary's end
            v = where_less(from_integers(lane_index<Isa>()), fill<Isa>(float(count - i)), v, never);
        }
        best[i / lanes % 4] = larger(v, best[i / lanes % 4]);
    }
    return maximum(larger(larger(best[0], best[1]), larger(best[2], best[3])));
}

// exp((logit - peak) * inverse) into `out`, unless it is null; returns the sum, in double over short runs.
template <class Isa> double exponentials(const float* logits, int64_t count, float peak, float inverse, float* out) {
    double total = 0;
    const Floats<Isa> top = fill<Isa>(peak), factor = fill<Isa>(inverse);
    for (int64_t start = 0; start < count; start += 16 * lanes) {
        const int64_t stop = count - start < 16 * lanes ? count : start + 16 * lanes;
        Floats<Isa> run = fill<Isa>(0.0f);
        for (int64_t i = start; i < stop; i += lanes) {
            Floats<Isa> v = exp((load_upto<Isa>(logits + i, stop - i) - top) * factor);
            if (stop - i < lanes) {  // the mask guards the vocabulary's end
                v = where_less(from_integers(lane_index<Isa>()), fill<Isa>(float(stop - i)), v, fill<Isa>(0.0f));
            }
            if (out) store_upto<Isa>(out + i, v, stop - i);
            run = run + v;
        }
        total += sum(run);
    }
    return total;
}

// Approximate Gumbel scores logit * inverse - log(-log(u)) of tokens `first` (even) on, to about 1e-5 beside the logit's rounding.
template <class Isa>
void gumbel_scores(const float* logits, int64_t first, int64_t count, float inverse, uint32_t key_low, uint32_t key_high, float* scores) {
    const WordPair<Words<Isa>> key{fill_words<Isa>(key_low), fill_words<Isa>(key_high)};
    const Floats<Isa> zero = fill<Isa>(0.0f), unit = fill<Isa>(0x1p-23f), half = fill<Isa>(0.5f);
    for (int64_t i = 0; i < count; i += 2 * lanes) {
        const WordPair<Words<Isa>> counter{lane_index<Isa>() + fill_words<Isa>(uint32_t((first + i) / 2)), fill_words<Isa>(0)};
        const WordPair<Words<Isa>> bits = threefry(key, counter, SplatWords<Isa>{}, RotateWords<Isa>{});
        alignas(64) float noise[2][lanes];
        int side = 0;
        for (const Words<Isa>& words : {bits.x, bits.y}) {
            const Floats<Isa> u = (from_integers(shift_right(words, 9)) + half) * unit;
            store<Isa>(noise[side++], zero - log(zero - log(u)));
        }
        // Tokens 2c and 2c + 1 share counter c.
        const int64_t edge = count - i < 2 * lanes ? count - i : 2 * lanes;
        for (int64_t j = 0; j + 1 < edge; j += 2) {
            scores[i + j] = logits[i + j] * inverse + noise[0][j / 2];
            scores[i + j + 1] = logits[i + j + 1] * inverse + noise[1][j / 2];
        }
        if (edge % 2) scores[i + edge - 1] = logits[i + edge - 1] * inverse + noise[0][edge / 2];
    }
}

}  // namespace inferplane
