#!/usr/bin/env bash
# One visit to a machine with a GPU: correctness first, then the figures that only a GPU can give.
#   bash tests/gpu_visit.sh OUT [STEP ...]        steps: tests records parity bench modes reproduce (default: all, in this order)
# Environment: NETWORKS ("resnet50 resnext50_32x4d") and BACKENDS ("dali ffcv") of the bench, some five minutes each; SAMPLES, a folder of ImageNet JPEGs named WNID_NAME.JPEG; ARCHIVE, the CIFAR-100 archive; PYTHON (python3);
# WORK (.kit/visit), where records are kept between calls. What a step writes lands in OUT: logs, tables, JSON.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps=("$@")
[[ ${#steps[@]} -gt 0 ]] || steps=(tests records parity bench modes reproduce)
python=${PYTHON:-python3}
work=${WORK:-.kit/visit}
samples=${SAMPLES:-../shared/data/imagenet-samples}
archive=${ARCHIVE:-../shared/data/cifar-100-python.tar.xz}
mkdir -p "$work"

step_tests() {
    "$python" -m pytest -q -m gpu --durations=10 &&
        "$python" -m pytest -q tests/unit/pipelines/{test_loader,backends/test_dali,augment/test_finish}.py \
            tests/unit/train/{test_experiment,objectives/test_caching,run/test_checkpoint,watch/test_tracking}.py \
            tests/unit/train/evaluation
}

step_records() {
    "$python" -c "
import sys; from pathlib import Path; sys.path[:0] = ['.', 'tests']
from drills.long import imagenet_list; imagenet_list(Path('$samples'), Path('$work/list.txt'))" &&
        "$python" tools/convert.py list --root "$samples" --list "$work/list.txt" --recipe imagenet_lt \
            --out "$work/whole.beton" --force &&
        "$python" tools/convert.py list --root "$samples" --list "$work/list.txt" --recipe imagenet_lt_resize \
            --out "$work/short256.beton" --force &&
        "$python" tools/convert.py cifar100-lt --archive "$archive" --imbalance 100 --out "$work/cifar" --force
}

step_parity() { "$python" tests/studies/parity.py "$work/whole.beton" --device cuda --markdown "$out/parity_cuda.md"; }

# Expected: (c)/(b) and (d)/(b) at least 0.97, (d)/(e) at least 1.25, for both networks and both backends.
step_bench() {
    local network backend
    for network in ${NETWORKS:-resnet50 resnext50_32x4d}; do
        for backend in ${BACKENDS:-dali ffcv}; do
            "$python" tools/bench.py configs/imagenet_lt/dive_x50.yaml data.train="$work/whole.beton" model.name="$network" \
                data.backend="$backend" optim.batch=256 --images 6000 --seconds 6 \
                --json "$out/bench_${network}_$backend.json" --markdown "$out/bench_${network}_$backend.md"
        done
    done
}

# What compilation, CUDA graphs and deterministic=true do to the speed of CIFAR's small step and of ResNet-50's. The runs
# say images/s and the share of the ceiling.
step_modes() {
    local mode name
    for mode in "compile=false" "compile=true" "compile=true compile_mode=reduce-overhead" "compile=true deterministic=true"; do
        name=${mode// /-}
        rm -rf "$work/speed"
        # shellcheck disable=SC2086  # several settings
        "$python" train/teacher.py configs/cifar100_lt/bsce_if100.yaml data.train="$work/cifar/train.beton" \
            data.test="$work/cifar/test.beton" eval.every_epochs=0 schedule.kind=constant schedule.milestones=[] \
            schedule.epochs="${EPOCHS:-20}" schedule.warmup_epochs=0 run="$work/speed" $mode || return
        cp "$work/speed/result.json" "$out/modes_cifar_$name.json"
        rm -rf "$work/speed"
        # shellcheck disable=SC2086
        "$python" train/teacher.py configs/imagenet_lt/bsce_x50.yaml data.train="$work/whole.beton" data.test="$work/whole.beton" \
            model.name="${NETWORK:-resnet50}" eval.every_epochs=0 schedule.epochs="${EPOCHS:-20}" optim.batch="${BATCH:-256}" \
            optim.lr=0.01 run="$work/speed" $mode || return
        cp "$work/speed/result.json" "$out/modes_imagenet_$name.json"
    done
}

# All rows, several seeds at once; goes on from call to call as long as the folder is kept. It is asked to stop after LIMIT
# seconds, for machines that are lent for ten minutes at a time: the trainings are saved then, and the table is written.
step_reproduce() {
    local code=0
    timeout --signal=INT "${LIMIT:-540}" "$python" tools/reproduce.py cifar100-lt --archive "$archive" --out "$work/reproduce" \
        --jobs "${JOBS:-6}" precision=bf16 compile=true compile_mode=reduce-overhead || code=$?
    cp "$work/reproduce"/cifar100_lt.{md,json} "$out"
    return $code
}

status=0
for step in "${steps[@]}"; do
    echo "== $step, $(date +%T)"
    "step_$step" >"$out/$step.log" 2>&1 || { status=1; echo "   failed"; }
    tail -n 25 "$out/$step.log"
done
exit $status
