#!/usr/bin/env bash
# Collects what ci/device.sh installs from, on a machine that has a network.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: ci/wheels.sh [DIR] [--python X.Y] [--arch A]

Downloads wheels of the packages that inferplane needs, and of what builds it, into DIR (default: ci/wheels), for a Linux machine
without a network. torch, triton and jax are not among them: that machine brings its own.

  --python X.Y    its Python (default: 3.12)
  --arch A        its processor: x86_64 or aarch64 (default: x86_64)

example
  ci/wheels.sh && scp -r . machine:inferplane && ssh machine inferplane/ci/device.sh --shard 1/12
TEXT
}

fail() { echo "ci/wheels.sh: $1" >&2; exit 2; }

folder="" python="3.12" arch="x86_64"
while (($#)); do
    case "$1" in
        -h | --help) usage; exit ;;
        --python | --arch)
            (($# > 1)) || fail "$1 needs a value; see --help"
            if [[ $1 == --python ]]; then python="$2"; else arch="$2"; fi
            shift 2 ;;
        -*) fail "unknown option $1; see --help" ;;
        *) [[ -z $folder ]] || fail "one folder, please: $folder or $1"; folder="$1"; shift ;;
    esac
done
[[ $python =~ ^3\.[0-9]+$ ]] || fail "--python $python: write X.Y, for instance 3.12"
[[ $arch == x86_64 || $arch == aarch64 ]] || fail "--arch $arch: x86_64 or aarch64"
folder="${folder:-ci/wheels}"

tool="$(command -v "${PYTHON:-python3}")" || fail "no ${PYTHON:-python3} on the PATH; name one with PYTHON=..."
mapfile -t needed < <("$tool" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    found = tomllib.load(file)
print(*found["project"]["dependencies"], *found["build-system"]["requires"], sep="\n")')
((${#needed[@]})) || fail "pyproject.toml names no dependencies, or $tool is older than 3.11"

mkdir -p "$folder"
"$tool" -m pip download --disable-pip-version-check --quiet --dest "$folder" --only-binary :all: --implementation cp \
    --python-version "$python" --platform "manylinux_2_28_$arch" --platform "manylinux_2_17_$arch" --platform "manylinux2014_$arch" \
    --constraint ci/constraints.txt "${needed[@]}"
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels for Python $python on $arch"
