#!/usr/bin/env bash
# What an accelerator is to show: `experiments/benchmarks/accelerator.sh DATA OUT`, in the order of what matters most.
#
# DATA is a folder with train/<class>/* and test/<class>/* of CIFAR-10; OUT takes the tables and the runs. A run that is
# there already is not made again, and one that was stopped goes on, so the script can be called until all is done.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1 out=$2
mkdir -p "$out"

table() { # NAME COMMAND...
  [ -s "$out/$1.md" ] || { "${@:2}" > "$out/$1.part" && mv "$out/$1.part" "$out/$1.md"; }
}

run() { # NAME OPTIONS...
  if [ -s "$out/$1/summary.json" ]; then return; fi
  if [ -s "$out/$1/config.json" ]; then
    python -m experiments.train --resume "$out/$1"
  else
    python -m experiments.train --data "folder:$data" --model resnet18 --epochs 350 --dtype bfloat16 \
      --eval-every 10 --save-minutes 2 --output-dir "$out/$1" "${@:2}"
  fi
}

table step python -m experiments.benchmarks.step --dtype bfloat16
table models python -m experiments.benchmarks.models --dtype bfloat16
table update python -m experiments.benchmarks.update
table update_rbg python -m experiments.benchmarks.update --impl rbg
table pruning python -m experiments.benchmarks.pruning --picture "$out/pruning.png"
for method in flipout magnitude magnitude_noise; do
  run "$method" --method "$method" --sparsity 0.9990234375 --seed 42
done
run dense --method dense --seed 42
python -m experiments.compare "$out"/{dense,flipout,magnitude,magnitude_noise} --markdown "$out/compare.md"
