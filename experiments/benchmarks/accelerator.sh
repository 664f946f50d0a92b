#!/usr/bin/env bash
# What an accelerator is to show: `experiments/benchmarks/accelerator.sh DATA OUT`, in the order of what matters most.
#
# DATA is a folder with train/<class>/* and test/<class>/* of CIFAR-10, or a .tar.xz of one; OUT takes the tables and the
# runs. A run that is there already is not made again, and one that was stopped goes on, so the script can be called
# until all is done. `python -m experiments.pages OUT/NAME` then puts the results into docs/results.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1 out=$2
mkdir -p "$out"

table() { # NAME COMMAND...
  [ -s "$out/$1.md" ] || { "${@:2}" > "$out/$1.part" && mv "$out/$1.part" "$out/$1.md"; }
}

experiment() { # NAME OPTIONS...
  python -m experiments.reproduce "$1" --data "folder:$data" --dtype bfloat16 --eval-every 10 --save-minutes 2 \
    --output-dir "$out/$1" "${@:2}"
}

if [ -f "$data" ]; then
  mkdir -p "$out/images/cifar10"
  [ -d "$out/images/cifar10/test" ] || tar -xJf "$data" -C "$out/images/cifar10"
  data=$out/images/cifar10
fi
table step python -m experiments.benchmarks.step --dtype bfloat16
table models python -m experiments.benchmarks.models --dtype bfloat16
table update python -m experiments.benchmarks.update
table update_rbg python -m experiments.benchmarks.update --impl rbg
table pruning python -m experiments.benchmarks.pruning --picture "$out/pruning.png"
# What decides on the paper's claim and on the recipe first: a grid goes on where another sparsity or method is added.
rivals=(--methods flipout magnitude magnitude_noise flipout:recipe=best magnitude:recipe=best magnitude_noise:recipe=best)
for name in flipout-resnet18-cifar10 flipout-vgg19-cifar10; do
  experiment "$name" "${rivals[@]}" --sparsities 0.9990234375
done
for name in flipout-resnet18-cifar10 flipout-vgg19-cifar10; do
  experiment "$name" "${rivals[@]}"
done
