// Filters and draws. A row's token depends on its own logits and parameters alone.
//
//   order       larger logits first, ties to the lower id; each filter keeps a prefix of it, so a Cut tells it all
//   key         threefry(seed, (sample index, position))
//   noise       u(token) = threefry(key, (token / 2, 0))[token % 2], to 23 bits;  -log(-log u)
//   token       argmax over the kept of logit / temperature + noise               Gumbel maximum
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"
#include "threefry.h"

namespace inferplane {
namespace {

constexpr float never = -std::numeric_limits<float>::infinity();
constexpr int buckets = 2048;            // of logits below the peak, 1/64 of a natural logarithm each
constexpr size_t exact_draws = 512;      // candidates that are scored exactly at once

struct Candidate {
    float logit;
    int32_t id;
    bool operator<(const Candidate& other) const { return logit > other.logit || (logit == other.logit && id < other.id); }
};

int32_t first_of(const float* logits, int64_t count, float value) {
    for (int64_t i = 0; i < count; ++i) {
        if (logits[i] == value) return int32_t(i);
    }
    return 0;
}

// The `count` best, sorted. One pass: what cannot beat the worst of a full buffer is never stored.
std::vector<Candidate> best(const float* logits, int64_t vocab, int64_t count) {
    std::vector<Candidate> kept;
    const int64_t room = std::min(vocab, std::max<int64_t>(4 * count, 1024));
    kept.reserve(room);
    float threshold = never;
    bool full = false;
    const auto shrink = [&] {
        std::nth_element(kept.begin(), kept.begin() + (count - 1), kept.end());
        kept.resize(count);
        threshold = kept.back().logit;
        full = true;
    };
    for (int64_t i = 0; i < vocab; ++i) {
        // An equal logit at a higher id ranks behind all that are kept.
        if (full ? !(logits[i] > threshold) : std::isnan(logits[i])) continue;
        kept.push_back({logits[i], int32_t(i)});
        if (int64_t(kept.size()) == room && room > count) shrink();
    }
    if (int64_t(kept.size()) > count) shrink();
    std::sort(kept.begin(), kept.end());
    return kept;
}

struct Row {
    const float* logits;
    int64_t vocab;
    double temperature;
    float peak;
    WordPair<uint32_t> key;

    double weight(float logit) const { return std::exp(double(logit) / temperature - double(peak) / temperature); }
    double noise(int32_t token) const;
    double score(int32_t token) const { return double(logits[token]) / temperature + noise(token); }
};

// u is float32 in (0, 1): 23 bits and a half are exact.
double Row::noise(int32_t token) const {
    const WordPair<uint32_t> bits = threefry_words(key, {uint32_t(token) >> 1, 0});
    const uint32_t word = token & 1 ? bits.y : bits.x;
    const float u = (float(word >> 9) + 0.5f) * 0x1p-23f;
    return -std::log(-std::log(double(u)));
}

// The last candidate kept; all that rank before it are kept as well.
struct Cut {
    Candidate last;
    bool keeps(const Candidate& c) const { return !(last < c); }
};

// The candidate among `sorted` with which the probability mass, `mass` before them, reaches `wanted`.
Cut reach(const Row& row, const std::vector<Candidate>& sorted, double mass, double wanted) {
    for (const Candidate& c : sorted) {
        mass += row.weight(c.logit);
        if (mass >= wanted) return {c};
    }
    return {sorted.back()};
}

// top-p over the whole vocabulary without sorting it: masses per bucket find the one bucket to sort.
Cut nucleus(const Row& row, const Path& path, double top_p) {
    static thread_local Scratch scratch;
    float* weights = scratch.get<float>(row.vocab);
    const float inverse = float(1 / row.temperature);
    path.exponentials(row.logits, row.vocab, row.peak, inverse, weights);
    const auto bucket = [&](int64_t i) {
        const float below = (row.peak - row.logits[i]) * inverse * 64;
        return below < buckets - 1 ? int(below) : buckets - 1;
    };
    std::vector<double> mass(buckets);
    for (int64_t i = 0; i < row.vocab; ++i) {
        if (weights[i] > 0) mass[bucket(i)] += weights[i];  // neither NaN nor what weighs nothing
    }
    const double wanted = top_p * std::accumulate(mass.begin(), mass.end(), 0.0);
    int last = 0;
    double before = 0;
    while (before + mass[last] < wanted) before += mass[last++];
    std::vector<Candidate> sorted;
    for (int64_t i = 0; i < row.vocab; ++i) {
        if (weights[i] > 0 && bucket(i) == last) sorted.push_back({row.logits[i], int32_t(i)});
    }
    std::sort(sorted.begin(), sorted.end());
    return reach(row, sorted, before, wanted);
}

Cut cut(const Row& row, const Path& path, int64_t top_k, double top_p) {
    if (top_k > 0 && top_k < row.vocab) {
        const std::vector<Candidate> kept = best(row.logits, row.vocab, top_k);
        if (top_p >= 1) return {kept.back()};
        double total = 0;
        for (const Candidate& c : kept) total += row.weight(c.logit);
        return reach(row, kept, 0, top_p * total);
    }
    if (top_p < 1) return nucleus(row, path, top_p);
    return {{never, int32_t(row.vocab)}};
}

struct Winner {
    double score = -std::numeric_limits<double>::infinity();
    int32_t id = -1;
    void offer(double other, int32_t token) {
        if (other > score || (other == score && token < id)) score = other, id = token;
    }
};

// Approximate scores of all tokens find the few whose exact score can win.
int32_t draw(const Row& row, const Path& path, const std::vector<int32_t>& kept) {
    Winner winner;
    if (kept.size() <= exact_draws) {
        for (const int32_t token : kept) winner.offer(row.score(token), token);
        return winner.id;
    }
    static thread_local Scratch scratch;
    float* scores = scratch.get<float>(row.vocab);
    path.gumbel_scores(row.logits, row.vocab, float(1 / row.temperature), row.key.x, row.key.y, scores);
    float highest = never;
    for (const int32_t token : kept) highest = std::max(highest, scores[token]);
    const float margin = 1e-4f + 1e-6f * float(std::fabs(row.peak) / row.temperature + 20);
    for (const int32_t token : kept) {
        if (scores[token] >= highest - margin) winner.offer(row.score(token), token);
    }
    return winner.id;
}

int32_t sample_row(const SampleJob& job, const Path& path, int64_t i) {
    const float* logits = job.logits + i * job.vocab;
    const float peak = path.largest(logits, job.vocab);
    const int32_t greedy = first_of(logits, job.vocab, peak);
    // No finite peak leaves no distribution to draw from.
    if (job.temperature[i] == 0 || !std::isfinite(peak)) return greedy;
    const WordPair<uint32_t> key = threefry_words({job.seed_low[i], job.seed_high[i]}, {job.index[i], job.position[i]});
    const Row row{logits, job.vocab, double(job.temperature[i]), peak, key};
    const Cut last = cut(row, path, job.top_k[i], job.top_p[i]);
    const double min_p = job.min_p[i];
    std::vector<int32_t> kept;
    for (int64_t token = 0; token < job.vocab; ++token) {
        if (!(logits[token] > never && last.keeps({logits[token], int32_t(token)}))) continue;
        if (min_p <= 0 || row.weight(logits[token]) >= min_p) kept.push_back(int32_t(token));
    }
    const int32_t token = draw(row, path, kept);
    return token < 0 ? greedy : token;
}

}  // namespace

void sample_greedy(const float* logits, int64_t samples, int64_t vocab, int32_t* tokens) {
    const Path& path = active_path();
    parallel(samples, [&](int64_t i) {
        const float* row = logits + i * vocab;
        tokens[i] = first_of(row, vocab, path.largest(row, vocab));
    });
}

void sample(const SampleJob& job) {
    const Path& path = active_path();
    parallel(job.samples, [&](int64_t i) { job.tokens[i] = sample_row(job, path, i); });
}

void logprobs(const ScoreJob& job) {
    const Path& path = active_path();
    parallel(job.samples, [&](int64_t i) {
        const float* row = job.logits + i * job.vocab;
        const float peak = path.largest(row, job.vocab);
        const double base = std::isfinite(peak) ? peak : 0.0;
        const double sum = std::log(path.exponentials(row, job.vocab, float(base), 1.0f, nullptr));
        job.out[i] = float(job.tokens ? double(row[job.tokens[i]]) - base - sum : base + sum);
    });
}

}  // namespace inferplane
