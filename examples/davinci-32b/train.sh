#!/bin/bash
set -muo pipefail  # m: Ctrl-C comes to this shell alone, which has training save
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=1  # Megatron overlaps communication with it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # ranks that torchrun starts again would find addresses of dead ones
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

while :; do
    state() { python -m megatron_davinci.launch.state runs/davinci-32b; }
    before=$(state)
    [ "$before" = finished ] && echo runs/davinci-32b is finished >&2 && exit 0
    python -m torch.distributed.run --nproc-per-node=8 --max-restarts=3 --nnodes=8 --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:29500" -m megatron_davinci.train examples/davinci-32b/recipe.yaml &
    ranks=$!
    # Has training save and end; torchrun gives it 30 seconds for that.
    trap 'trap - TERM USR1 INT HUP; kill -TERM $ranks; wait $ranks; exit 143' TERM USR1 INT HUP
    wait $ranks || exit $?
    if [ "$(state)" = "$before" ]; then
        echo "nothing was saved after $before: see what training said" >&2
        exit 1
    fi
done
