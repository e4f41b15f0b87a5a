"""The packages of this project, from the lowest up. Each imports only packages above it in this list, and itself."""

LAYERS = (
    "data_prep.io",  # files, errors, progress, resumable shards
    "data_prep.tokenizers",  # three kinds of tokenizers, one contract
    "data_prep.corpus",  # indexed datasets, annotations, pack plans
    "data_prep.tokenize",  # texts and conversations -> corpora
    "data_prep.leakage",  # benchmarks in corpora
    "data_prep.changes",  # the record of one change: the contract between sources and samples
    "data_prep.sources",  # local git histories, trajectories
    "data_prep.sources.github",  # pull requests by GitHub's API
    "data_prep.reconstruct",  # a change as replayable edits
    "data_prep.samples",  # training documents in several formats
    "data_prep.environments.sandbox",  # where strangers' code runs
    "data_prep.environments",  # tasks that really run, and the judge
    "data_prep.agents",  # models at work in them: the loop, the records
    "data_prep.pipeline",  # sharded jobs on one machine, Slurm or Ray
    "data_prep.deduplicate",  # exact and near copies among records, left out
    "data_prep",  # what the package exports
    "data_prep.cli",  # typer alone
    "megatron_davinci",  # the version
    "megatron_davinci.models",  # families as data, sizes, FLOPs, memory, layout
    "megatron_davinci.weights",  # Hugging Face <-> torch_dist in slices, without Megatron
    "megatron_davinci.serve",  # vLLM servers: environment, processes, weights to them
    "megatron_davinci.config",  # recipes
    "megatron_davinci.data",  # global batches, packed rows, the ledger
    "megatron_davinci.plan",  # bytes and seconds of layouts, before there is a GPU
    "megatron_davinci.core.losses",  # tensor functions
    "megatron_davinci.core.attention",  # packed documents, trees, decoding
    "megatron_davinci.core",  # what touches Megatron-Core: groups, models, optimizer, one step
    "megatron_davinci.testing",  # real processes, whole tensors, small models
    "megatron_davinci.rl",  # prompts, grading, trees, rollout files
    "megatron_davinci.serve.worker",  # what runs inside vLLM
    "megatron_davinci.rl.engines",  # who answers prompts
    "megatron_davinci.rl.objectives",  # how rollouts become a global batch
    "megatron_davinci.report",  # what a run reports, its files and its page
    "megatron_davinci.train.checkpoint",  # checkpoints of a run
    "megatron_davinci.train",  # the loop
    "megatron_davinci.evaluate",  # held-out loss, next tokens, SWE-bench
    "megatron_davinci.evaluate.tasks",  # benchmarks: their data, prompts, scoring
    "megatron_davinci.evaluate.text_models",  # who answers them
    "megatron_davinci.evaluate.benchmarks",  # the run, the tables
    "megatron_davinci.launch",
    "megatron_davinci.bench",
    "megatron_davinci.demo",
    "megatron_davinci.doctor",
    "megatron_davinci.cli",  # typer alone
)
