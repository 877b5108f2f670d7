// Filters and draws. A row's token depends on its own logits and parameters alone.
//
//   order       larger logits first, ties to the lower id
//   key         threefry(seed, (sample index, position))
//   noise       u(token) = threefry(key, (token / 2, 0))[token % 2], to 24 bits;  -log(-log u)
//   token       argmax over the kept of logit / temperature + noise               Gumbel maximum
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"
#include "threefry.h"

namespace inferplane {
namespace {

constexpr float never = -std::numeric_limits<float>::infinity();
constexpr int64_t first_nucleus = 256;  // candidates that usually hold the probability asked for

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

// u is float32 in (0, 1): near 1 the half would round up to 1 itself, whose noise is infinite.
double Row::noise(int32_t token) const {
    const WordPair<uint32_t> bits = threefry_words(key, {uint32_t(token) >> 1, 0});
    const uint32_t word = token & 1 ? bits.y : bits.x;
    const float u = std::min((float(word >> 8) + 0.5f) * 0x1p-24f, 1.0f - 0x1p-24f);
    return -std::log(-std::log(double(u)));
}

// Sorted candidates up to the one with which their probability reaches top_p.
size_t nucleus(const Row& row, const std::vector<Candidate>& sorted, double wanted) {
    double sum = 0;
    for (size_t i = 0; i < sorted.size(); ++i) {
        sum += row.weight(sorted[i].logit);
        if (sum >= wanted) return i + 1;
    }
    return sorted.size();
}

std::vector<Candidate> filter(const Row& row, const Path& path, int64_t top_k, double top_p, double min_p) {
    const bool limited = top_k > 0 && top_k < row.vocab;
    std::vector<Candidate> kept;
    if (limited) {
        kept = best(row.logits, row.vocab, top_k);
        if (top_p < 1) {
            double total = 0;
            for (const Candidate& c : kept) total += row.weight(c.logit);
            kept.resize(nucleus(row, kept, top_p * total));
        }
    } else if (top_p < 1) {
        const double wanted = top_p * path.sum_exponentials(row.logits, row.vocab, row.peak, float(1 / row.temperature));
        for (int64_t count = std::min(first_nucleus, row.vocab);; count = std::min(count * 8, row.vocab)) {
            kept = best(row.logits, row.vocab, count);
            const size_t size = nucleus(row, kept, wanted);
            const bool reached = size < kept.size() || count == row.vocab;
            kept.resize(size);
            if (reached) break;
        }
    } else {
        for (int64_t i = 0; i < row.vocab; ++i) {
            if (row.logits[i] > never && row.weight(row.logits[i]) >= min_p) kept.push_back({row.logits[i], int32_t(i)});
        }
    }
    if (min_p > 0) {
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Candidate& c) { return !(row.weight(c.logit) >= min_p); }), kept.end());
    }
    return kept;
}

struct Winner {
    double score = -std::numeric_limits<double>::infinity();
    int32_t id = -1;
    void offer(double other, int32_t token) {
        if (other > score || (other == score && token < id)) score = other, id = token;
    }
};

// Over the whole vocabulary: approximate scores find the few tokens whose exact score can win.
int32_t draw_from_all(const Row& row, const Path& path) {
    static thread_local Scratch scratch;
    float* scores = scratch.get<float>(row.vocab);
    path.gumbel_scores(row.logits, row.vocab, float(1 / row.temperature), row.key.x, row.key.y, scores);
    const float highest = path.largest(scores, row.vocab);
    const float spread = float((std::fabs(row.peak) + 20.0 * row.temperature) / row.temperature);
    const float margin = 1e-4f + 1e-6f * spread;
    Winner winner;
    for (int64_t i = 0; i < row.vocab; ++i) {
        if (scores[i] >= highest - margin) winner.offer(row.score(int32_t(i)), int32_t(i));
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
    const bool limited = job.top_k[i] > 0 && job.top_k[i] < job.vocab;
    if (!limited && job.top_p[i] >= 1 && job.min_p[i] <= 0) {
        const int32_t token = draw_from_all(row, path);
        return token < 0 ? greedy : token;
    }
    Winner winner;
    for (const Candidate& c : filter(row, path, job.top_k[i], job.top_p[i], job.min_p[i])) winner.offer(row.score(c.id), c.id);
    return winner.id < 0 ? greedy : winner.id;
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
        const double sum = std::log(path.sum_exponentials(row, job.vocab, float(base), 1.0f));
        job.out[i] = float(job.tokens ? double(row[job.tokens[i]]) - base - sum : base + sum);
    });
}

}  // namespace inferplane
