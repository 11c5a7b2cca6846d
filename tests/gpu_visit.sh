#!/usr/bin/env bash
# One visit to a machine with a GPU: correctness first, then the figures that only a GPU can give.
#   bash tests/gpu_visit.sh OUT [STEP ...]        steps: tests records parity bench cifar (default: all, in this order)
# Environment: NETWORKS ("resnet50 resnext50_32x4d") and BACKENDS ("dali ffcv") of the bench, some five minutes each; SAMPLES, a folder of ImageNet JPEGs named WNID_NAME.JPEG; ARCHIVE, the CIFAR-100 archive; PYTHON (python3);
# WORK (.kit/visit), where records are kept between calls. What a step writes lands in OUT: logs, tables, JSON.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps=("$@")
[[ ${#steps[@]} -gt 0 ]] || steps=(tests records parity bench cifar)
python=${PYTHON:-python3}
work=${WORK:-.kit/visit}
samples=${SAMPLES:-../shared/data/imagenet-samples}
archive=${ARCHIVE:-../shared/data/cifar-100-python.tar.xz}
mkdir -p "$work"

step_tests() {
    "$python" -m pytest -q -m gpu --durations=10 &&
        "$python" -m pytest -q tests/test_{loader,dali_backend,finish,caching,experiment,evaluation,checkpoint,tracking}.py
}

step_records() {
    "$python" -c "
import sys; from pathlib import Path; sys.path[:0] = ['.', 'tests']
from drills import imagenet_list; imagenet_list(Path('$samples'), Path('$work/list.txt'))" &&
        "$python" tools/convert.py list --root "$samples" --list "$work/list.txt" --recipe imagenet_lt \
            --out "$work/whole.beton" --force &&
        "$python" tools/convert.py list --root "$samples" --list "$work/list.txt" --recipe imagenet_lt_resize \
            --out "$work/short256.beton" --force &&
        "$python" tools/convert.py cifar100-lt --archive "$archive" --imbalance 100 --out "$work/cifar" --force
}

step_parity() { "$python" tests/parity.py "$work/whole.beton" --device cuda --markdown "$out/parity_cuda.md"; }

# Issue 3, check 6: (c)/(b) and (d)/(b) at least 0.97, (d)/(e) at least 1.25, for both networks and both backends.
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

step_cifar() {
    rm -rf "$work/speed"
    "$python" train/teacher.py configs/cifar100_lt/bsce_if100.yaml data.train="$work/cifar/train.beton" \
        data.test="$work/cifar/test.beton" eval.every_epochs=0 compile=true schedule.kind=constant schedule.milestones=[] \
        schedule.epochs=10 run="$work/speed"
}

status=0
for step in "${steps[@]}"; do
    echo "== $step, $(date +%T)"
    "step_$step" >"$out/$step.log" 2>&1 || { status=1; echo "   failed"; }
    tail -n 25 "$out/$step.log"
done
exit $status
