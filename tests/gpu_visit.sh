#!/usr/bin/env bash
# One visit to a machine with a GPU: what only a GPU can tell, the most telling first, in 25 minutes.
#   bash tests/gpu_visit.sh OUT [STEP ...]      steps: those of `all` below, in this order, unless some are named; also: reproduce
#   REHEARSE=1 bash tests/gpu_visit.sh OUT      on a machine without a GPU: every step at its smallest, on the CPU, to find typos
# Each step has its own time limit and its own OUT/STEP.log, beside which it leaves tables and JSON; one that fails or is stopped
# does not stop the others. OUT/summary.txt says how each ended. Records stay in WORK from call to call; a step makes those it lacks.
# Environment: LIMIT (1500), seconds for all steps; SAMPLES, a folder of ImageNet JPEGs named WNID_NAME.JPEG; ARCHIVE, the
# CIFAR-100 archive; WORK (.kit/visit); PYTHON (python3); JOBS (6) of reproduce.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(tests cifar recorded graphs trace syncs decoders bench exact caching memory wrapped optimizer experts routing parity others)
python=${PYTHON:-python3}
work=$(mkdir -p "${WORK:-.kit/visit}" && cd "${WORK:-.kit/visit}" && pwd)
samples=${SAMPLES:-../shared/data/imagenet-samples}
archive=${ARCHIVE:-../shared/data/cifar-100-python.tar.xz}

declare -A seconds=(
    [tests]=300 [cifar]=400 [recorded]=400 [graphs]=240 [trace]=180 [syncs]=120 [decoders]=120 [bench]=300 [exact]=420
    [caching]=180 [memory]=180 [wrapped]=120 [optimizer]=60 [experts]=120 [routing]=90 [parity]=120 [others]=300 [reproduce]=600
)

# ---- the size of things: of a visit, or of its rehearsal ----

if [[ -n ${REHEARSE:-} ]]; then
    device=cpu
    fast=(compile=false)
    recorded=(compile=false) # cuda_graph=true needs a GPU
    images=12 copies=1
    read -ra debug <<<"$(tr '\n' ' ' <configs/debug.txt)"
    cifar_size=("${debug[@]}" data.recipe.size=8 model.name=resnet8 track.ceiling=on)
    imagenet_size=("${debug[@]}" data.recipe.size=64 model.name=resnet10 track.ceiling=on)
    bench_size=(--images 8 --seconds 0.1 --rounds 1 --only b,c optim.batch=4 data.recipe.size=64 model.name=resnet10)
    study_size=(--rounds 1 --batch 10 --experts 2 --network resnet32)
    cache_size=(--rounds 1 --network resnet8)
    export ACCELERATE_USE_CPU=true
else
    device=cuda
    fast=(compile=true compile_mode=reduce-overhead precision=bf16)
    recorded=(cuda_graph=true compile=true precision=bf16)
    images=1000000 copies=8 # so that an epoch has several batches
    cifar_size=()
    imagenet_size=(optim.batch=256 optim.lr=0.01)
    bench_size=(--images 6000 --seconds 4 --only b,c optim.batch=256)
    study_size=(--precision bf16 --rounds 3 --batch 128)
    cache_size=(--rounds 3)
fi

short() { # settings of a training of some steps, which evaluates and saves at its end alone: short STEPS
    local steps=$1
    [[ -z ${REHEARSE:-} ]] || steps=2
    echo "schedule.epochs=null schedule.steps=$steps schedule.kind=constant schedule.milestones=[] schedule.warmup_epochs=0 \
eval.every_epochs=0 save.every_epochs=1000"
}

cifar() { # a teacher on CIFAR-100-LT: cifar RUN SETTINGS...; with `in_place=exec`, in place of this shell
    local run=$1
    shift
    ${in_place:-} "$python" train/teacher.py configs/cifar100_lt/bsce_if100.yaml data.train="$work/cifar/train.beton" \
        data.test="$work/cifar/test.beton" run="$work/$run" "${cifar_size[@]}" "$@"
}

imagenet() { # likewise on ImageNet photos
    local run=$1
    shift
    "$python" train/teacher.py configs/imagenet_lt/bsce_x50.yaml data.train="$work/whole.beton" \
        data.test="$work/whole.beton" run="$work/$run" "${imagenet_size[@]}" "$@"
}

# ---- what the steps need ----

records() {
    [[ -e $work/done ]] && return
    local copy photo name
    mkdir -p "$work/photos"
    for copy in $(seq "$copies"); do
        for photo in "$samples"/*.JPEG; do
            name=${photo##*/}
            cp "$photo" "$work/photos/${name%.JPEG}_$copy.JPEG"
        done
    done
    "$python" -c "
import sys; from pathlib import Path; sys.path[:0] = ['.', 'tests']
from drills.long import imagenet_list; imagenet_list(Path('$work/photos'), Path('$work/all.txt'))" &&
        head -n "$images" "$work/all.txt" >"$work/list.txt" &&
        "$python" tools/convert.py list --root "$work/photos" --list "$work/list.txt" --recipe imagenet_lt \
            --out "$work/whole.beton" --force || return
    if [[ -n ${REHEARSE:-} ]]; then
        mkdir -p "$work/cifar"
        "$python" -c "
import sys; from pathlib import Path; sys.path[:0] = ['.', 'tests']
from helpers.launch import write_tiny; write_tiny(Path('$work/cifar'))" || return
    else
        "$python" tools/convert.py cifar100-lt --archive "$archive" --imbalance 100 --out "$work/cifar" --force || return
    fi
    touch "$work/done"
}

# ---- the steps ----

# All that is marked gpu: backends, finish, ceiling, copies beside a busy stream, several processes.
step_tests() { "$python" -m pytest -q -p no:cacheprovider -m gpu --durations=10 tests; }

cold_and_warm() { # the full training with an empty compile cache and again with a warm one: cold_and_warm NAME SETTINGS...
    local name=$1 cache
    shift
    export TORCHINDUCTOR_CACHE_DIR=$work/compiled_$name
    rm -rf "$TORCHINDUCTOR_CACHE_DIR" "$work/run_${name}_cold" "$work/run_${name}_warm"
    for cache in cold warm; do
        time cifar "run_${name}_$cache" "$@" || return
        cp "$work/run_${name}_$cache/result.json" "$out/${name}_$cache.json"
    done
}

# 16,800 steps. Expected: with the warm cache in under 60 s.
step_cifar() { cold_and_warm cifar "${fast[@]}"; }

# The step as one CUDA graph beside the plain one: equal losses (to the bit), launches and milliseconds; then the full training with
# it, compiled and not. Expected: with the warm cache in under 60 s, and faster than `cifar`.
step_recorded() {
    "$python" tests/studies/device_facts.py --device "$device" recorded || return
    cold_and_warm recorded "${recorded[@]}" || return
    rm -rf "$work/run_recorded_plain"
    time cifar run_recorded_plain "${recorded[@]}" compile=false || return
    cp "$work/run_recorded_plain/result.json" "$out/recorded_plain.json"
}

# Whether CUDA graphs are recorded once and nothing is compiled twice: ceiling, training, evaluation, an online teacher.
step_graphs() {
    rm -rf "$work"/run_teacher "$work"/run_student
    export TORCH_LOGS=cudagraphs,recompiles,perf_hints
    # shellcheck disable=SC2046  # several settings
    cifar run_teacher "${fast[@]}" $(short 300) &&
        "$python" train/distill.py configs/cifar100_lt/dive_if100.yaml data.train="$work/cifar/train.beton" \
            data.test="$work/cifar/test.beton" distill.teacher="$work/run_teacher" run="$work/run_student" \
            "${cifar_size[@]}" "${fast[@]}" $(short 300)
}

# Five traced steps: the share of the time in which a kernel runs, and the launches; and the launches of each part of a step.
step_trace() {
    local name start=100 trace
    [[ -z ${REHEARSE:-} ]] || start=0
    "$python" tests/studies/launches.py --device "$device" || return
    for name in eager fast recorded; do
        rm -rf "$work/run_trace"
        local mode=(compile=false)
        [[ $name != fast ]] || mode=("${fast[@]}")
        [[ $name != recorded ]] || mode=("${recorded[@]}")
        # shellcheck disable=SC2046
        cifar run_trace "${mode[@]}" $(short 200) profile.start="$start" profile.steps=5 || return
        for trace in "$work"/run_trace/trace_*.json; do
            cp "$trace" "$out/trace_$name.json"
            "$python" tests/studies/device_facts.py busy "$trace" || return
        done
    done
}

# Every line at which the host waits for the device, over 100 steps and an evaluation, with their number.
step_syncs() {
    rm -rf "$work/run_syncs"
    # shellcheck disable=SC2046
    "$python" tests/studies/device_facts.py --device "$device" syncs teacher configs/cifar100_lt/bsce_if100.yaml \
        data.train="$work/cifar/train.beton" data.test="$work/cifar/test.beton" run="$work/run_syncs" "${cifar_size[@]}" \
        compile=false track.ceiling=off $(short 100)
}

# Which decoder takes each image, and whether pixels depend on the batch, at each share of the hardware decoder.
step_decoders() {
    DALI_NVIMGCODEC_LOG_LEVEL=5 "$python" tests/studies/device_facts.py --device "$device" pixels "$work/whole.beton" \
        >"$out/decoders.txt" 2>"$out/decoders_nvimgcodec.txt"
    local code=$?
    cat "$out/decoders.txt"
    grep -aoiE 'decoder[^,]*(hw|cuda|cpu|gpu|turbo)[a-z_-]*' "$out/decoders_nvimgcodec.txt" | sort | uniq -c | sort -rn | head -n 20
    return $code
}

# Expected: (c)/(b) at least 0.97. The share of the hardware decoder matters where DALI limits the speed.
step_bench() {
    local load
    for load in 0 0.65 1; do
        "$python" tools/bench.py configs/imagenet_lt/dive_x50.yaml data.train="$work/whole.beton" data.backend=dali \
            data.hw_decoder_load="$load" "${fast[@]:0:1}" "${bench_size[@]}" --json "$out/bench_dali_$load.json" || return
    done
    "$python" tools/bench.py configs/imagenet_lt/dive_x50.yaml data.train="$work/whole.beton" data.backend=ffcv \
        "${fast[@]:0:1}" "${bench_size[@]}" --json "$out/bench_ffcv.json"
}

# deterministic=true: the same bits in two runs, and in one that was killed; also with the step as one CUDA graph.
step_exact() { exact compile=false && exact "${recorded[@]}"; }

exact() {
    local run
    rm -rf "$work"/run_exact_* "$work"/compiled_exact_*
    for run in a b; do # compiled separately: nothing that is timed may choose a kernel
        # shellcheck disable=SC2046
        TORCHINDUCTOR_CACHE_DIR=$work/compiled_exact_$run cifar "run_exact_$run" "$@" deterministic=true $(short 400) || return
    done
    # shellcheck disable=SC2046
    in_place=exec cifar run_exact_killed "$@" deterministic=true $(short 400) save.every_steps=50 & # so that the signal reaches it
    local training=$!
    for _ in $(seq 600); do
        compgen -G "$work/run_exact_killed/checkpoints/step_*" >/dev/null && break
        kill -0 $training 2>/dev/null || break
        sleep 0.1
    done
    kill -9 $training 2>/dev/null
    wait $training
    # shellcheck disable=SC2046
    cifar run_exact_killed "$@" deterministic=true $(short 400) save.every_steps=50 || return
    sha256sum "$work"/run_exact_*/model.safetensors
    [[ $(sha256sum "$work"/run_exact_*/model.safetensors | cut -d' ' -f1 | sort -u | wc -l) == 1 ]]
}

# ResNeXt-50 at batch 512 with an online teacher: the peak of torch's memory and of all, with DALI's pools and CUDA's contexts.
step_memory() {
    local batch=512 watch=
    rm -rf "$work"/run_large "$work"/run_large_student
    [[ -z ${REHEARSE:-} ]] || batch=4
    # shellcheck disable=SC2046
    imagenet run_large $(short 5) || return
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$out/memory_used.txt" &
        watch=$!
    fi
    # shellcheck disable=SC2046
    "$python" train/distill.py configs/imagenet_lt/dive_x50.yaml data.train="$work/whole.beton" data.test="$work/whole.beton" \
        distill.teacher="$work/run_large" run="$work/run_large_student" "${imagenet_size[@]}" optim.batch="$batch" \
        $(short 10)
    local code=$?
    if [[ -n $watch ]]; then
        kill "$watch"
        echo "peak of the whole GPU: $(sort -n "$out/memory_used.txt" | tail -n 1) MiB"
    fi
    cp "$work/run_large_student/result.json" "$out/memory.json"
    return $code
}

# What writing a cache costs the teacher, with up to 8,142 classes.
step_caching() { "$python" tests/studies/cache_speed.py --device "$device" --part write "${cache_size[@]}"; }

step_wrapped() { "$python" tests/studies/device_facts.py --device "$device" wrapped; }

step_optimizer() { "$python" tests/studies/device_facts.py --device "$device" optimizer; }

step_experts() { "$python" tests/studies/experts.py --device "$device" "${study_size[@]}"; }

step_routing() { "$python" tests/studies/routing.py --device "$device" "${study_size[@]}"; }

step_parity() { "$python" tests/studies/parity.py "$work/whole.beton" --device "$device" --markdown "$out/parity.md"; }

# Tests that run on the CPU on every machine, of the modules that differ most between versions of torch and DALI.
step_others() {
    local chosen=(tests/unit/train/test_{meters,step,graph,optim,ema}.py tests/unit/pipelines/{test_device,backends/test_dali}.py)
    [[ -n ${REHEARSE:-} ]] || chosen+=(tests/unit/train/{objectives,watch,run} tests/unit/pipelines/test_loader.py)
    "$python" -m pytest -q -p no:cacheprovider "${chosen[@]}"
}

# All rows, several seeds at once; goes on from call to call as long as WORK is kept. It is asked to stop before its limit: the
# trainings are saved then, and the table is written.
step_reproduce() {
    local code=0
    timeout --signal=INT "$((${seconds[reproduce]} - 60))" "$python" tools/reproduce.py cifar100-lt --archive "$archive" \
        --out "$work/reproduce" --jobs "${JOBS:-6}" "${fast[@]}" || code=$?
    cp "$work/reproduce"/cifar100_lt.{md,json} "$out"
    return $code
}

# ---- running them ----

if [[ ${1:-} == --step ]]; then # one step, in a process of its own that can be stopped
    out=$3
    records && "step_$2"
    exit
fi

out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps=("$@")
[[ ${#steps[@]} -gt 0 ]] || steps=("${all[@]}")
for step in "${steps[@]}"; do
    [[ -n ${seconds[$step]:-} ]] || { echo "no step is named $step: ${all[*]} reproduce" >&2; exit 2; }
done
end=$((SECONDS + ${LIMIT:-1500}))
status=0
: >"$out/summary.txt"
for step in "${steps[@]}"; do
    left=$((end - SECONDS))
    limit=${seconds[$step]}
    ((limit < left)) || limit=$left
    if ((limit < 10)); then
        echo "$step: no time left" | tee -a "$out/summary.txt"
        status=1
        continue
    fi
    echo "== $step, $(date +%T), at most $limit s"
    began=$SECONDS
    timeout --kill-after=20 "$limit" bash tests/gpu_visit.sh --step "$step" "$out" >"$out/$step.log" 2>&1
    code=$?
    tail -n 12 "$out/$step.log"
    case $code in
        0) how=done ;;
        124 | 137) how="stopped at its limit" ;;
        *) how="failed with $code" ;;
    esac
    ((code == 0)) || status=1
    echo "$step: $how, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
done
echo "== summary"
cat "$out/summary.txt"
exit $status
