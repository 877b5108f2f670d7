#!/usr/bin/env bash
# Proves and measures a platform on its own chip: no network, in slices of under ten minutes.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

usage() {
    cat <<'TEXT'
usage: ci/device.sh [SLICE...] [options]

Installs inferplane from wheels beside this script, runs the conformance suite on the chip, measures, and keeps small files under
bench/results/CHIP/, to be committed. It changes no setting of the machine. What is complete is not run again.

slices; without one, all of them in this order
  --install         the environment alone (every other slice makes it where it is missing)
  --shard I/N       every N-th case of the suite, from the I-th on
  --merge           all shards as one bundle, and its verdict into the results
  --bench NAME      llama-8b: one stream, prefill and 64 streams against the chip's limits
                    qwen3-0.6b: nano-vllm's workload
                    transformers: the same workload on transformers' continuous batching, where that is installed

options
  --platform P      what is proven (default: cuda)
  --shards N        how many shards all slices together have (default: 12)
  --quick           the quick list instead of the full one
  --wheels DIR      what ci/wheels.sh collected (default: ci/wheels)
  --work DIR        environment, caches and bundles (default: .device)
  --results DIR     instead of bench/results/CHIP
  --seconds S       that a slice may take (default: 570)
  --again           run what is complete, too
  --rehearse        few cases and tiny shapes: tries this script, proves and measures nothing
  PYTHON=...        the Python that has torch and triton (default: python3)

examples
  ci/wheels.sh                             on a machine with a network; then copy the whole folder
  ci/device.sh --shard 1/12                on the machine with the chip; 2/12, 3/12, ...
  ci/device.sh --merge --bench llama-8b
  ci/device.sh --rehearse --platform cuda:interpreted
TEXT
}

say() { echo "ci/device.sh: $*" >&2; }
fail() { say "$1"; exit 2; }

benches=(llama-8b qwen3-0.6b transformers)
platform=cuda shards=12 wheels="$root/ci/wheels" work="$root/.device" results="" seconds=570 list=full again="" rehearse=""
slices=()
while (($#)); do
    case "$1" in
        -h | --help) usage; exit ;;
        --install | --merge) slices+=("${1#--}"); shift ;;
        --quick) list=quick; shift ;;
        --again) again=yes; shift ;;
        --rehearse) rehearse=yes list=rehearsal; shift ;;
        --shard | --bench | --platform | --shards | --wheels | --work | --results | --seconds)
            (($# > 1)) || fail "$1 needs a value; see --help"
            case "$1" in
                --shard) slices+=("shard $2") ;;
                --bench) slices+=("bench $2") ;;
                *) printf -v "${1#--}" %s "$2" ;;
            esac
            shift 2 ;;
        *) fail "unknown argument $1; see --help" ;;
    esac
done

[[ $shards =~ ^[1-9][0-9]*$ ]] || fail "--shards $shards: a number from 1 on"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "--seconds $seconds: a number from 1 on"
for slice in "${slices[@]}"; do
    case "$slice" in
        "shard "*)
            if ! [[ $slice =~ ^shard\ ([1-9][0-9]*)/([1-9][0-9]*)$ ]] || ((BASH_REMATCH[1] > BASH_REMATCH[2])); then
                fail "--$slice: write I/N with 1 <= I <= N, for instance 1/12"
            fi
            shards="${BASH_REMATCH[2]}" ;;
        "bench "*) [[ " ${benches[*]} " == *" ${slice#bench } "* ]] || fail "--bench ${slice#bench }: one of ${benches[*]}" ;;
    esac
done
if ((${#slices[@]} == 0)); then
    slices=(install)
    for ((i = 1; i <= shards; i++)); do slices+=("shard $i/$shards"); done
    slices+=(merge)
    for name in "${benches[@]}"; do slices+=("bench $name"); done
fi

tool="$(command -v "${PYTHON:-python3}")" || fail "no ${PYTHON:-python3} on the PATH; name one with PYTHON=..."
"$tool" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$tool is older than Python 3.11; name another one with PYTHON=..."
mkdir -p "$work"
work="$(cd "$work" && pwd)" python="$work/venv/bin/python"
export TRITON_CACHE_DIR="$work/triton" INFERPLANE_CACHE="$work/cache" PYTHONNOUSERSITE=1
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1

sources() { # a sum over everything that is installed
    (cd "$root" && find . -type f \( -name '*.py' -o -name '*.toml' -o -name '*.txt' -o -name '*.cpp' -o -name '*.h' -o -name '*.in' \) \
        -not -path './.*' -not -path './ci/*' -not -path './tests/*' -print0 | sort -z | xargs -0 cksum | cksum | cut -d' ' -f1)
}

install() {
    local sum
    sum="$(sources)"
    [[ -f $work/installed && $(<"$work/installed") == "$sum" ]] && return
    [[ -n $(find "$wheels" -name '*.whl' -print -quit 2>/dev/null) ]] ||
        fail "no wheels in $wheels; run ci/wheels.sh where there is a network, and copy the folder, or name one with --wheels"
    rm -f "$work/installed"
    [[ -x $python ]] || "$tool" -m venv --system-site-packages "$work/venv"
    "$python" -m pip install --quiet --find-links "$wheels" 'setuptools>=77' 'numpy>=2.0' ||
        fail "the wheels in $wheels do not fit $("$python" -V); collect them with ci/wheels.sh --python X.Y"
    # Without a compiler: the kernels of platform cpu have no part in this.
    CC=false CXX=false "$python" -m pip install --quiet --find-links "$wheels" --no-build-isolation "$root" ||
        fail "inferplane could not be installed from $wheels; the lines above say what is missing"
    echo "$sum" > "$work/installed"
}

inferplane() { (cd "$work" && "$python" -m inferplane.cli "$@"); }

limited() { # a slice's command, ended where it takes too long
    local code=0
    (cd "$work" && timeout --signal=INT --kill-after=20 "$seconds" "$@") || code=$?
    ((code != 124 && code != 137)) || fail "ended after $seconds s: $what. Take more shards, or --seconds"
    return "$code"
}

chip() { # as the name of a folder
    "$python" - "$platform" <<'PY'
import re, sys
from inferplane.platforms import registry
registry.find(sys.argv[1])
try:
    import torch
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and ":interpreted" not in sys.argv[1] else sys.argv[1]
except ImportError:
    name = sys.argv[1]
print(re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))
PY
}

shard() {
    local part="${1%/*}" folder queries=()
    folder="$bundles/$part-of-$shards"
    [[ -z $again && -f $folder/SHA256SUMS ]] && { say "shard $1 is complete: $folder"; return; }
    [[ $list == quick ]] && queries+=(--quick)
    [[ -n $rehearse ]] && queries+=(lookup.derive norm.rms)
    local code=0
    limited "$python" -m inferplane.cli conformance run --platform "$platform" --shard "$1" "${queries[@]}" -o "$folder.part" || code=$?
    [[ -f $folder.part/SHA256SUMS ]] || fail "shard $1 gave no bundle (exit code $code); the lines above say why"
    rm -rf "$folder"
    mv "$folder.part" "$folder"
    ((code == 0)) || failed=yes
}

merge() {
    local parts=() missing=() i code=0
    for ((i = 1; i <= shards; i++)); do
        if [[ -f $bundles/$i-of-$shards/SHA256SUMS ]]; then parts+=("$bundles/$i-of-$shards"); else missing+=("$i/$shards"); fi
    done
    ((${#missing[@]} == 0)) || fail "shards are missing: ${missing[*]}. Run ci/device.sh --shard ${missing[0]}; another number of shards: --shards N"
    inferplane conformance merge "${parts[@]}" -o "$bundles/whole" || code=$?
    "$python" - "$bundles/whole" "$results/conformance-$list.json" <<'PY'
import json, sys
from pathlib import Path
folder, to = map(Path, sys.argv[1:])
read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
to.write_text(json.dumps({"verdict": read("verdict.json"), "environment": read("environment.json")}, indent=1) + "\n", encoding="utf-8")
PY
    say "$results/conformance-$list.json"
    ((code == 0)) || failed=yes
}

bench() {
    local file="$results/$1.json" shape="$1" works="128:256:1,8192:1:1,128:256:64" command
    [[ -z $again && -f $file ]] && { say "$1 is measured: $file"; return; }
    [[ $1 == llama-8b ]] || shape=qwen3-0.6b works=nano-vllm
    [[ -z $rehearse ]] || shape=tiny works=6:3:2
    command=(inferplane.cli bench throughput --shape "$shape" --platform "$platform" --dtype bfloat16 --work "$works" --repeats 2)
    if [[ $1 == transformers ]]; then
        "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("transformers") is None)' ||
            { say "transformers is not installed here, and stays unmeasured"; return; }
        command=(inferplane.bench.peers.transformers_batching --shape "$shape" --work "$works" --repeats 2)
    fi
    limited "$python" -m "${command[@]}" --output "$file.part" || fail "$1 was not measured; the lines above say why"
    mv "$file.part" "$file"
    say "$file"
}

install
if ((${#slices[@]} > 1)) || [[ ${slices[0]} != install ]]; then
    chip="$(chip)" || fail "platform $platform cannot run here; the lines above say why"
    [[ -z $rehearse ]] || results="${results:-$work/rehearsal}"
    results="${results:-$root/bench/results/$chip}"
    mkdir -p "$results"
    results="$(cd "$results" && pwd)"
    bundles="$work/bundles/${platform//:/-}-$list-$(<"$work/installed")"
    mkdir -p "$bundles"
fi
failed=""
for what in "${slices[@]}"; do
    say "$what"
    case "$what" in
        install) ;;
        merge) merge ;;
        *) "${what%% *}" "${what#* }" ;;
    esac
done
[[ -z $failed ]] || { say "some cases failed; the verdict names them"; exit 1; }
