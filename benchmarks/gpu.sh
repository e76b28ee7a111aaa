#!/usr/bin/env bash
# What a GPU has to say, in one command, on a machine that has one with nvcc, make, a C compiler, and Python with NumPy and setuptools:
#     bash benchmarks/gpu.sh [PART ...]        parts: check sanitize golden kernels; default: all of them
# Builds for the device, runs every kernel against its C twin, the same under compute-sanitizer, the recorded runs of the
# originals, and the timings of kernels. A part that outlasts PART_SECONDS (600) is stopped and counts as failed. Writes
# benchmarks/results/gpu-NAME-DATE.md, .csv and, with matplotlib, .png; exits with 0 if nothing failed. DEVICE=cuda:1 picks another GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda:0}
limit=${PART_SECONDS:-600}
index=${device#cuda}
index=${index#:}
index=${index%%:*}
python=${PYTHON:-python3}

say() { printf '%s\n' "$@"; }
stop() {
    say "gpu.sh: $*" >&2
    exit 1
}

# ---- what is here -------------------------------------------------------------------------------------------------------------
command -v nvidia-smi >/dev/null || stop "no GPU: nvidia-smi is not on this machine, so no driver is. Nothing was run."
machine=$(nvidia-smi --id="${index:-0}" --query-gpu=name,driver_version,memory.total --format=csv,noheader) || stop "no GPU: $machine"
capability=$(nvidia-smi --id="${index:-0}" --query-gpu=compute_cap --format=csv,noheader)
nvcc=$(command -v nvcc || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc") || stop "no nvcc: put it on PATH or set CUDA_HOME"
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
name=$(tr '[:upper:] ' '[:lower:]-' <<<"${machine%%,*}")
results=benchmarks/results/gpu-$name-$(date +%F)
say "$machine; sm_${capability/./}; $("$nvcc" --version | grep release | sed 's/,/;/g'); commit $commit"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DLLM_FAST_CUDA=1 DLLM_FAST_CUDA_ARCHS=${capability/./} PYTHONPATH=$work/lib

# ---- parts --------------------------------------------------------------------------------------------------------------------
failed=0
: >"$work/parts"
part() { # NAME COMMAND...
    local title=$1 began=$SECONDS status=0 verdict
    shift
    say "" "=== $title"
    timeout "$limit" "$@" 2>&1 | tee "$work/log" || status=$?
    case $status in
    0) verdict=passed ;;
    124) verdict="stopped after $limit s" ;;
    *) verdict="failed with status $status" ;;
    esac
    ((status == 0)) || failed=$((failed + 1))
    say "--- $title: $verdict"
    say "| $title | $verdict | $((SECONDS - began)) | $(tail -n 1 "$work/log" | tr -d '|') |" >>"$work/parts"
}

skip() { # NAME REASON
    say "" "=== $1: skipped: $2"
    say "| $1 | skipped: $2 | | |" >>"$work/parts"
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
        skip compute-sanitizer "it is not on PATH"
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        part "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            "$python" "$work/fast.py" check --device "cuda:${index:-0}:own"
    done
}

kernels() {
    local cublas sides=("cuda:${index:-0}:own")
    cublas=$(cd "$work" && "$python" -c "from dllm_fast import cuda; print(cuda._cublas() or '-')")
    make -s -C tests/c -j"$(nproc)" OUT="$work/c" SANITIZE= CFLAGS=-O2 "$work/c/gpu_kernels"
    if [[ $cublas == - ]]; then skip "kernels with cuBLAS" "the package nvidia-cublas is not installed"; else sides+=("cuda:${index:-0}"); fi
    say "device,kernel,case,seconds,bytes,operations" >"$work/kernels.csv"
    for side in "${sides[@]}"; do
        part "kernels on $side" bash -c 'set -o pipefail; "$@" | tee -a "$0"' "$work/kernels.csv" \
            "$work/c/gpu_kernels" "$work/lib/dllm_fast/libdllm_cuda.so" "$([[ $side == *:own ]] && echo - || echo "$cublas")" "$side"
    done
    cp "$work/kernels.csv" "$results.csv"
}

for asked in "${@:-all}"; do
    case $asked in
    all | check | sanitize | golden | kernels) ;;
    *) stop "unknown part $asked: check sanitize golden kernels" ;;
    esac
done
wanted() { [[ " ${asked_for} " == *" all "* || " ${asked_for} " == *" $1 "* ]]; }
asked_for="${*:-all}"
say "" "=== build"
build
if wanted check; then
    part "kernels against their C twins" "$python" "$work/fast.py" check --device "$device"
fi
if wanted golden; then
    part "recorded runs, float32" "$python" tests/golden.py --cases tests/golden --device "$device"
fi
if wanted sanitize; then sanitize; fi
if wanted kernels; then kernels; fi
skip "sessions of full-size models" "benchmarks/ has no measurement of sessions on GPUs yet"

"$python" benchmarks/gpu_report.py "$results" "$machine" "$commit" "$work/parts"
say "" "$failed parts failed; $results.md"
((failed == 0))
