#!/bin/sh
# Corpora for the tiny recipes of daVinci-Dev, after `make demo`: examples/tiny-corpora.sh TRAJECTORIES RESOLVED.json
# TRAJECTORIES: a directory of SWE-agent's or mini-swe-agent's; RESOLVED.json: the evaluation's report, or a list of names.
set -eu
TRAJECTORIES=${1:?give a directory of trajectories}
RESOLVED=${2:?give a report with resolved_ids, or a JSON list of the tasks that were resolved}
DEMO=out/demo
OUT=out/tiny/corpus
DAVINCI=${DAVINCI:-.venv/bin/davinci}

mkdir -p $OUT
for records in $DEMO/records/*; do
    name=$(basename "$records")
    [ -d "$OUT/general-$name" ] || $DAVINCI data build "$records" --format general --out "$OUT/general-$name"
done
[ -d $OUT/rollouts ] || $DAVINCI data collect trajectories "$TRAJECTORIES" --resolved "$RESOLVED" --out $OUT/rollouts

tokenize() {
    corpus=$1
    shift
    [ -f "$OUT/$corpus.idx" ] || $DAVINCI data tokenize "$@" --tokenizer $DEMO/model --append-eod --out "$OUT/$corpus"
}
tokenize general $OUT/general-*/samples/*.jsonl.zst
tokenize python $DEMO/samples/*/samples/*.jsonl.zst
tokenize rollouts-passing $OUT/rollouts/passing.jsonl.zst --chat
tokenize rollouts-failing $OUT/rollouts/failing.jsonl.zst --chat
tokenize conversations $OUT/rollouts/passing.jsonl.zst $OUT/rollouts/failing.jsonl.zst --chat
