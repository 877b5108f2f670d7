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
#include <optional>
#include <vector>

#include "memory.h"
#include "path.h"
#include "pool.h"
#include "threefry.h"

namespace inferplane {
namespace {

constexpr float never = -std::numeric_limits<float>::infinity();
constexpr int buckets = 2048;            // of logits below the peak, 1/64 of a natural logarithm each
constexpr int64_t chunk_tokens = 128;     // skipped together where none of them can matter
constexpr int64_t most_ranked = 1024;     // candidates that a nucleus is looked for in before the whole vocabulary is
constexpr double most_noise = 16.7;       // -log(-log u) at the largest u

struct Candidate {
    float logit;
    int32_t id;
    bool operator<(const Candidate& other) const { return logit > other.logit || (logit == other.logit && id < other.id); }
};

// The first of the largest logits; 0 in a row without numbers.
Candidate greedy(const Path& path, const float* logits, int64_t vocab) {
    Candidate first{path.largest(logits, std::min(vocab, chunk_tokens)), 0};
    for (int64_t start = chunk_tokens; start < vocab; start += chunk_tokens) {
        const float peak = path.largest(logits + start, std::min(vocab - start, chunk_tokens));
        if (peak > first.logit) first = {peak, int32_t(start)};
    }
    // Of a row of NaN and -infinity alone any chunk may hold it.
    const int64_t stop = first.logit == never ? vocab : std::min(vocab, first.id + chunk_tokens);
    for (int64_t i = first.id; i < stop; ++i) {
        if (logits[i] == first.logit) return {first.logit, int32_t(i)};
    }
    return {first.logit, 0};
}

// The `count` best, sorted. One pass: what cannot beat the worst of a full buffer is never stored.
std::vector<Candidate> best(const Path& path, const float* logits, int64_t vocab, int64_t count) {
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
    for (int64_t start = 0; start < vocab; start += chunk_tokens) {
        const int64_t stop = std::min(start + chunk_tokens, vocab);
        if (full && !(path.largest(logits + start, stop - start) > threshold)) continue;
        for (int64_t i = start; i < stop; ++i) {
            // An equal logit at a higher id ranks behind all that are kept.
            if (full ? !(logits[i] > threshold) : std::isnan(logits[i])) continue;
            kept.push_back({logits[i], int32_t(i)});
            if (int64_t(kept.size()) == room && room > count) shrink();
        }
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

// The candidate among `sorted` with which the probability mass, `mass` before them, reaches `wanted`; none: it does not.
std::optional<Cut> reach(const Row& row, const std::vector<Candidate>& sorted, double mass, double wanted) {
    for (const Candidate& c : sorted) {
        mass += row.weight(c.logit);
        if (mass >= wanted) return Cut{c};
    }
    return std::nullopt;
}

// top-p without sorting the vocabulary: masses per bucket find the one bucket to sort.
Cut wide_nucleus(const Row& row, const Path& path, double top_p) {
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
    return reach(row, sorted, before, wanted).value_or(Cut{sorted.back()});
}

// A trained model's nucleus is mostly among a few hundred tokens.
Cut nucleus(const Row& row, const Path& path, double top_p) {
    const double total = path.exponentials(row.logits, row.vocab, row.peak, float(1 / row.temperature), nullptr);
    const std::vector<Candidate> ranked = best(path, row.logits, row.vocab, std::min(row.vocab, most_ranked));
    const std::optional<Cut> found = reach(row, ranked, 0, top_p * total);
    return found ? *found : wide_nucleus(row, path, top_p);
}

Cut cut(const Row& row, const Path& path, int64_t top_k, double top_p) {
    if (top_k > 0 && top_k < row.vocab) {
        const std::vector<Candidate> kept = best(path, row.logits, row.vocab, top_k);
        if (top_p >= 1) return {kept.back()};
        double total = 0;
        for (const Candidate& c : kept) total += row.weight(c.logit);
        return reach(row, kept, 0, top_p * total).value_or(Cut{kept.back()});
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

// Approximate scores find the few tokens whose exact score can win. A chunk is passed over where its largest logit is
// cut, or could not win with the largest noise.
int32_t draw(const Row& row, const Path& path, Candidate peak, const Cut& last, double min_p) {
    const double margin = 1e-4 + 1e-6 * (std::fabs(row.peak) / row.temperature + 20);
    const float inverse = float(1 / row.temperature);
    Winner winner;
    winner.offer(row.score(peak.id), peak.id);  // every filter keeps it
    const auto kept = [&](int64_t token) {
        const float logit = row.logits[token];
        return logit > never && last.keeps({logit, int32_t(token)}) && (min_p <= 0 || row.weight(logit) >= min_p);
    };
    for (int64_t start = 0; start < row.vocab; start += chunk_tokens) {
        const float* logits = row.logits + start;
        const int64_t count = std::min(row.vocab - start, chunk_tokens);
        const float largest = path.largest(logits, count);
        if (!(largest > never) || largest < last.last.logit) continue;
        if (double(largest) * inverse + most_noise < winner.score - margin) continue;
        float scores[chunk_tokens];
        path.gumbel_scores(logits, start, count, inverse, row.key.x, row.key.y, scores);
        if (path.largest(scores, count) < winner.score - margin) continue;
        for (int64_t i = 0; i < count; ++i) {
            if (scores[i] >= winner.score - margin && kept(start + i)) winner.offer(row.score(int32_t(start + i)), int32_t(start + i));
        }
    }
    return winner.id;
}

int32_t sample_row(const SampleJob& job, const Path& path, int64_t i) {
    const float* logits = job.logits + i * job.vocab;
    const Candidate peak = greedy(path, logits, job.vocab);
    // No finite peak leaves no distribution to draw from.
    if (job.temperature[i] == 0 || !std::isfinite(peak.logit)) return peak.id;
    const WordPair<uint32_t> key = threefry_words({job.seed_low[i], job.seed_high[i]}, {job.index[i], job.position[i]});
    const Row row{logits, job.vocab, double(job.temperature[i]), peak.logit, key};
    return draw(row, path, peak, cut(row, path, job.top_k[i], job.top_p[i]), job.min_p[i]);
}

// The log of the sum of exponentials is base + sum, kept apart so that neither loses digits.
struct Total {
    double base, sum;
};

Total total_of(const Path& path, const float* logits, int64_t vocab) {
    const float peak = path.largest(logits, vocab);
    const float base = std::isfinite(peak) ? peak : 0.0f;
    return {base, std::log(path.exponentials(logits, vocab, base, 1.0f, nullptr))};
}

}  // namespace

void sample(const SampleJob& job) {
    const Path& path = active_path();
    parallel(job.samples, [&](int64_t i) { job.tokens[i] = sample_row(job, path, i); });
}

void logprobs(const ScoreJob& job) {
    const Path& path = active_path();
    parallel(job.samples, [&](int64_t i) {
        const float* row = job.logits + i * job.vocab;
        const Total total = total_of(path, row, job.vocab);
        job.out[i] = float(job.tokens ? double(row[job.tokens[i]]) - total.base - total.sum : total.base + total.sum);
    });
}

void top_logprobs(const TopJob& job) {
    const Path& path = active_path();
    parallel(job.samples, [&](int64_t i) {
        const float* row = job.logits + i * job.vocab;
        const Total total = total_of(path, row, job.vocab);
        const std::vector<Candidate> ranked = best(path, row, job.vocab, job.count);
        for (int64_t j = 0; j < job.count; ++j) {
            const bool found = j < int64_t(ranked.size());
            job.tokens[i * job.count + j] = found ? ranked[j].id : 0;
            job.logprobs[i * job.count + j] = found ? float(double(ranked[j].logit) - total.base - total.sum) : std::nanf("");
        }
    });
}

}  // namespace inferplane
