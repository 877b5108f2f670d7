// Choosing tokens from float32 logits: greedy, or temperature, top-k, top-p, min-p and the Gumbel maximum.
#pragma once

#include <cstdint>

namespace inferplane {

// Arrays are [samples]; logits [samples, vocab].
struct SampleJob {
    const float* logits;
    int64_t samples, vocab;
    const float *temperature, *top_p, *min_p;  // temperature 0: greedy; top_p >= 1, min_p <= 0: off
    const int32_t* top_k;                      // <= 0 or >= vocab: off
    const uint32_t *seed_low, *seed_high, *index, *position;
    int32_t* tokens;
};

struct ScoreJob {
    const float* logits;
    int64_t samples, vocab;
    const int32_t* tokens;  // null: the log of the sum of exponentials itself
    float* out;
};

// The `count` likeliest of each row, best first, ties to the lower id; behind the last number of a row: token 0, NaN.
struct TopJob {
    const float* logits;
    int64_t samples, vocab, count;
    int32_t* tokens;  // [samples, count]
    float* logprobs;
};

void sample(const SampleJob& job);
void logprobs(const ScoreJob& job);
void top_logprobs(const TopJob& job);

}  // namespace inferplane
