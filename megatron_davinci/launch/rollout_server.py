"""A rollout server of its own node, for a run on others. Torch-free."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_prep import InputError, WorkFailed
from data_prep.io.files import make_parent
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.rollouts import VllmRollouts
from megatron_davinci.models.config import load_model_config
from megatron_davinci.serve.rollout_servers import StartedServer, node_address

_POLL_SECONDS = 1.0


def serve_rollouts(recipe: Recipe, stage: str | None, out: Path, host: str | None) -> None:
    """Start a server, write its address to `out`, and wait for a signal. Raises InputError, and WorkFailed where the
    server ends."""
    if out.suffix != ".json":
        raise InputError(f"--out {out} must end in .json: objective.rollouts.servers looks for such files")
    chosen, options = _stage_of(recipe, stage)
    model = load_model_config(recipe.model)
    make_parent(out)
    server = StartedServer(
        out.with_suffix(""),
        options.environment,
        model,
        chosen.seq_length,
        "bfloat16" if chosen.megatron.bf16 else "float32",
        host or node_address(),
        options.timeout,
        options.devices,
        options.arguments,
    )
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm has the trainer save by it, which may still ask
    try:
        [address] = server.connect()
        address.write(out)
        print(f"{address.url} waits for weights; {out} has its token", file=sys.stderr, flush=True)
        while server.process is not None and not server.process.has_ended():
            time.sleep(_POLL_SECONDS)
        raise WorkFailed(f"the server has ended: {server.process.last_error() if server.process else ''}")
    except KeyboardInterrupt:
        return
    finally:
        server.close()
        out.unlink(missing_ok=True)


def _end(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _stage_of(recipe: Recipe, name: str | None) -> tuple[StageRecipe, VllmRollouts]:
    for index, stage in enumerate(recipe.data.stages):
        chosen = recipe.stage(index)
        rollouts = getattr(chosen.objective, "rollouts", None)
        if name in (None, stage.name) and isinstance(rollouts, VllmRollouts):
            return chosen, rollouts
    where = f"stage {name}" if name is not None else "no stage"
    raise InputError(f"{where} has objective.rollouts.engine vllm: name a stage that has")
