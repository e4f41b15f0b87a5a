#!/bin/sh
# From a file of problems to the table of next-token accuracy: examples/smollm2-135m/run.sh PROBLEMS.jsonl
# What is there already is kept: started again, it goes on.
set -eu
PROBLEMS=${1:?give a file with "problem" and "solution" in each line}
HERE=examples/smollm2-135m
OUT=out/smollm2-135m
DAVINCI=.venv/bin/davinci

[ -f $OUT/held-out.jsonl ] || .venv/bin/python $HERE/prepare.py "$PROBLEMS" $OUT
for split in format train held-out; do
    [ -f $OUT/$split.idx ] || $DAVINCI data tokenize $OUT/$split.jsonl --tokenizer $OUT/hf --append-eod --out $OUT/$split
done
for split in train held-out; do
    [ -f $OUT/$split.entropy.json ] || $DAVINCI rmt annotate $OUT/$split --model $OUT/hf bf16=true
done
[ -f $OUT/entropies.png ] || $DAVINCI rmt entropies $OUT/train $OUT/held-out --out $OUT/entropies.png

traces() {
    [ -f "$OUT/$1.idx" ] || $DAVINCI rmt traces $OUT/format --tokenizer $OUT/hf --out "$OUT/$1" --template "$2" \
        --budgets 8 32 --thoughts 1 32 --max-tokens 256
}
traces traces suffix_1
traces traces-free suffix_free_1
for run in format rmt rpt ntp-only; do
    $DAVINCI train $HERE/$run.yaml
done
for run in rmt rpt; do
    $DAVINCI rmt figure $OUT/runs/$run --out $OUT/$run.png
done

# the same positions for all; rpt was trained to another prompt, and is asked by that as well
[ -d $OUT/eval ] || $DAVINCI eval next-token $HERE/rmt.yaml --corpus $OUT/held-out --out $OUT/eval --positions 60 \
    --model base=$OUT/hf --model format=$OUT/runs/format --model rmt=$OUT/runs/rmt \
    --model ntp-only=$OUT/runs/ntp-only --model rpt=$OUT/runs/rpt
[ -d $OUT/eval-free ] || $DAVINCI eval next-token $HERE/rpt.yaml --corpus $OUT/held-out --out $OUT/eval-free \
    --positions 60 --model format=$OUT/runs/format --model rpt=$OUT/runs/rpt
