#!/usr/bin/env bash
# What a GPU has to say, in one command, on a machine that has one with nvcc, make, a C compiler, and Python with NumPy and setuptools:
#     bash benchmarks/gpu.sh [PART ...]        default: all of them, in this order
#         check golden sessions models-llada models-dream kernels sanitize         models: both of them
# Builds for the device, runs every kernel against its C twin, the recorded runs of the originals, sessions beside each other, whole
# models beside plain torch, the timings of kernels, and the check of kernels under compute-sanitizer. Nothing is fetched. Without torch
# models run alone, without matplotlib there are no pictures, without compute-sanitizer it is left out. Writes after every part
# benchmarks/results/gpu-NAME-DATE.md, .csv, -models.csv and .png; exits with 0 if nothing failed. A part that outlasts PART_SECONDS
# (600) is stopped and counts as failed. DEVICE=cuda:1 another GPU; PYTHON=python3.12; RESULTS=DIR for the results; MODELS="--without
# torch" more arguments of gpu_models.py; WORK=DIR keeps the build there, and what other calls measured in the report.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda:0}
limit=${PART_SECONDS:-600}
index=${device#cuda}
index=${index#:}
index=${index%%:*}
[[ $index =~ ^[0-9]+$ ]] || index=0
python=${PYTHON:-python3}
families=(llada dream)

say() { printf '%s\n' "$@"; }
stop() {
    say "gpu.sh: $*" >&2
    exit 1
}

asked=" ${*:-all} "
for name in $asked; do
    case $name in
    all | check | golden | sessions | models | models-llada | models-dream | kernels | sanitize) ;;
    *) stop "unknown part $name: check golden sessions models models-llada models-dream kernels sanitize" ;;
    esac
done
wanted() { [[ $asked == *" all "* || $asked == *" $1 "* ]]; }

# ---- what is here -------------------------------------------------------------------------------------------------------------
cuda=${CUDA_HOME:-/usr/local/cuda}
PATH=$PATH:$cuda/bin:$cuda/compute-sanitizer:/usr/local/nvidia/bin
command -v nvidia-smi >/dev/null || stop "no GPU: nvidia-smi is not on this machine, so no driver is. Nothing was run."
IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES:-}" # which of the machine's GPUs is our number $index
smi() { nvidia-smi --id="${visible[$index]:-$index}" --query-gpu="$1" --format=csv,noheader; }
machine=$(smi name,driver_version,memory.total) || stop "no GPU: $machine"
capability=$(smi compute_cap)
nvcc=$(command -v nvcc) || stop "no nvcc: put it on PATH or set CUDA_HOME"
command -v make >/dev/null || stop "no make"
"$python" -c 'import numpy, setuptools' || stop "$python lacks NumPy or setuptools: set PYTHON to one that has them"
"$python" -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ||
    stop "$python has no headers (Python.h; on Debian the package python3-dev): set PYTHON to one that has them"
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
folder=${RESULTS:-benchmarks/results}
mkdir -p "$folder" && [[ -w $folder ]] || stop "$folder cannot be written: set RESULTS to a folder that can"
name=$(tr '[:upper:] ' '[:lower:]-' <<<"${machine%%,*}")
results=$folder/gpu-$name-$(date +%F)
say "$machine; sm_${capability/./}; $("$nvcc" --version | grep release | sed 's/,/;/g'); commit $commit"

if [[ ${WORK:-} ]]; then
    mkdir -p "$WORK"
    work=$(cd "$WORK" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
export DLLM_FAST_CUDA=1 DLLM_FAST_CUDA_ARCHS=${capability/./} PYTHONPATH=$work/lib${PYTHONPATH:+:$PYTHONPATH}
# What programs keep for later goes where we can write: a home may be read-only.
export XDG_CACHE_HOME=$work/cache TRITON_CACHE_DIR=$work/cache/triton TORCHINDUCTOR_CACHE_DIR=$work/cache/inductor
export MPLCONFIGDIR=$work/cache/matplotlib CUDA_CACHE_PATH=$work/cache/cuda PYTHONDONTWRITEBYTECODE=1

# ---- parts --------------------------------------------------------------------------------------------------------------------
failed=0
touch "$work/parts"
report() { # TITLE VERDICT SECONDS LAST-LINE
    local family models=()
    for family in "${families[@]}"; do [[ ! -e $work/models-$family.jsonl ]] || models+=("$work/models-$family.jsonl"); done
    [[ ! -e $work/kernels.csv ]] || cp "$work/kernels.csv" "$results.csv"
    { grep -vF "| $1 |" "$work/parts" || true; } >"$work/others"
    { cat "$work/others" && say "| $1 | $2 | $3 | $(tr '|' ' ' <<<"$4") |"; } >"$work/parts"
    "$python" benchmarks/gpu_report.py "$results" "$machine" "$commit" "$work/parts" ${models[@]+"${models[@]}"} || failed=$((failed + 1))
}

part() { # NAME COMMAND...
    local title=$1 began=$SECONDS status=0 verdict
    shift
    say "" "=== $title"
    timeout -k 15 "$limit" "$@" 2>&1 | tee "$work/log" || status=$?
    case $status in
    0) verdict=passed ;;
    124 | 137) verdict="stopped after $limit s" ;;
    *) verdict="failed with status $status" ;;
    esac
    ((status == 0)) || failed=$((failed + 1))
    say "--- $title: $verdict"
    report "$title" "$verdict" $((SECONDS - began)) "$(tail -n 1 "$work/log")"
    return "$status"
}

skip() { # NAME REASON
    say "" "=== $1: skipped: $2"
    report "$1" "skipped: $2" "" ""
}

build() {
    "$python" setup.py -q build_ext --build-temp "$work/objects" --build-lib "$work/lib"
    cp -r dllm_fast/. "$work/lib/dllm_fast"
    echo "import sys; from dllm_fast.cli import main; sys.exit(main(sys.argv[1:]))" >"$work/fast.py" # not in a folder with our sources
    "$python" "$work/fast.py" info | tee "$work/info"
    ! grep -q "^cuda:.*unavailable" "$work/info" || stop "the plug-in finds no GPU"
}

sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        skip compute-sanitizer "it is neither on PATH nor in $cuda"
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        part "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 --print-limit 20 \
            "$python" "$work/fast.py" check --device "cuda:$index:own" || true
    done
}

kernels() {
    local library sides=("cuda:$index:own")
    library=$(sed -n 's/^cuda:.*cuBLAS [0-9.]* (\(.*\))$/\1/p' "$work/info") # a path, "the system's", or nothing
    [[ $library == /* || -z $library ]] || library=system
    part "build of gpu_kernels" make -s -C tests/c -j"$(nproc)" OUT="$work/c" SANITIZE= CFLAGS=-O2 "$work/c/gpu_kernels" || return 0
    if [[ $library ]]; then sides+=("cuda:$index"); else skip "kernels with cuBLAS" "there is none (pip install nvidia-cublas)"; fi
    say "device,kernel,case,seconds,bytes,operations" >"$work/kernels.csv"
    for side in "${sides[@]}"; do
        part "kernels on $side" bash -c 'set -o pipefail; "$@" | tee -a "$0"' "$work/kernels.csv" "$work/c/gpu_kernels" \
            "$work/lib/dllm_fast/libdllm_cuda.so" "$([[ $side == *:own ]] && echo - || echo "$library")" "$side" || true
    done
}

models() { # FAMILY: stops by itself a minute before it would be stopped
    local more
    read -ra more <<<"${MODELS:-}"
    part "models-$1" "$python" -u benchmarks/gpu_models.py --family "$1" --device "$device" --seconds $((limit - 60)) \
        --out "$work/models-$1.jsonl" ${more[@]+"${more[@]}"} || true
}

say "" "=== build"
build
if wanted check; then
    part "kernels against their C twins" "$python" "$work/fast.py" check --device "$device" || true
fi
if wanted golden; then
    part "recorded runs, float32 and bfloat16" "$python" tests/golden.py --cases tests/golden --device "$device" || true
fi
if wanted sessions; then
    part "sessions beside each other" "$python" tests/gpu_sessions.py --device "$device" || true
fi
for family in "${families[@]}"; do
    if wanted "models-$family" || [[ $asked == *" models "* ]]; then models "$family"; fi
done
if wanted kernels; then kernels; fi
if wanted sanitize; then sanitize; fi

say "" "$failed parts failed; $results.md"
((failed == 0))
