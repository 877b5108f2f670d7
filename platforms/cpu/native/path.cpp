// Which path is active: the one selected, or the best that the processor has and that agrees with the portable one.
#include "path.h"

#include <atomic>
#include <mutex>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "invalid.h"

namespace inferplane {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if INFERPLANE_AMX
bool has_amx() { return has_avx512_bf16() && amx_usable(); }
#endif

#if defined(__aarch64__)
bool has_neon_bf16() {
#if defined(__linux__)
    constexpr unsigned long both = 1 << 14 | 1 << 13;  // HWCAP2_BF16 and HWCAP2_I8MM, which older headers lack
    return (getauxval(AT_HWCAP2) & both) == both;
#else
    return false;
#endif
}
#endif

std::atomic<const Path*> selected{nullptr};
std::mutex selection;
thread_local const Path* forced = nullptr;
std::string verdicts[path_count];
bool checked[path_count] = {};

// Once per process and path: a wrong kernel is found before its first result is used.
const std::string& verdict(int i) {
    if (!checked[i]) {
        verdicts[i] = self_check(paths[i].table());
        checked[i] = true;
    }
    return verdicts[i];
}

const Path& best_path() {
    for (int i = path_count - 1; i > 0; --i) {
        if (paths[i].supported() && verdict(i).empty()) return paths[i].table();
    }
    return portable_path();
}

}  // namespace

const PathEntry paths[path_count] = {
    {portable_path, always},
#if defined(__x86_64__)
    {avx2_path, has_avx2},
    {avx512_path, has_avx512},
    {avx512_vnni_path, has_avx512_vnni},
    {avx512_bf16_path, has_avx512_bf16},
#endif
#if INFERPLANE_AMX
    {amx_path, has_amx},
#endif
#if defined(__aarch64__)
    {neon_path, always},
    {neon_bf16_path, has_neon_bf16},
#endif
};

const Path& active_path() {
    if (forced) return *forced;
    if (const Path* path = selected.load(std::memory_order_acquire)) return *path;
    std::lock_guard<std::mutex> lock(selection);
    if (!selected.load()) selected.store(&best_path());
    return *selected.load();
}

void select_path(const std::string& name) {
    std::lock_guard<std::mutex> lock(selection);
    if (name == "auto") {
        selected.store(&best_path());
        return;
    }
    std::string known;
    for (int i = 0; i < path_count; ++i) {
        const Path& path = paths[i].table();
        known += std::string(i ? ", " : "") + path.name;
        if (name != path.name) continue;
        if (!paths[i].supported()) throw Invalid("select: this machine lacks the instructions of '" + name + "'; see features()");
        if (i > 0 && !verdict(i).empty()) throw Invalid("select: '" + name + "' disagrees with the portable path: " + verdict(i));
        selected.store(&path);
        return;
    }
    throw Invalid("select: unknown path '" + name + "'; known: auto, " + known);
}

UsePath::UsePath(const Path& path) : before_(forced) { forced = &path; }
UsePath::~UsePath() { forced = before_; }

}  // namespace inferplane
