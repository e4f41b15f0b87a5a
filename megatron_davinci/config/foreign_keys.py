"""What Megatron-LM, Hugging Face and others call the keys of a recipe: a hint, never accepted. Torch-free."""

from collections.abc import Iterable

_PLACES = {
    "megatron.tensor_model_parallel_size": "tp tp_size tensor_parallel tensor_parallel_size tensor_model_parallel",
    "megatron.pipeline_model_parallel_size": "pp pp_size pipeline_parallel pipeline_parallel_size",
    "megatron.virtual_pipeline_model_parallel_size": "vpp num_layers_per_virtual_pipeline_stage",
    "megatron.context_parallel_size": "cp cp_size context_parallel",
    "megatron.sequence_parallel": "sp",
    "megatron.bf16": "mixed_precision torch_dtype dtype precision params_dtype",
    "megatron.recompute_granularity": "gradient_checkpointing activation_checkpointing recompute_activations",
    "megatron.adam_beta1": "beta1 betas",
    "megatron.adam_beta2": "beta2",
    "megatron.adam_eps": "adam_epsilon eps epsilon",
    "megatron.clip_grad": "max_grad_norm grad_clip gradient_clipping gradient_clip_val",
    "megatron.weight_decay": "wd",
    "megatron.transformer_impl": "use_transformer_engine",
    "batch.global_batch_size": "global_batch_size gradient_accumulation_steps gbs batch_size train_batch_size",
    "batch.micro_batch_size": "micro_batch_size per_device_train_batch_size mbs",
    "schedule.lr": "lr learning_rate max_lr peak_lr",
    "schedule.min_lr": "min_learning_rate",
    "schedule.lr_warmup_fraction": "warmup_ratio",
    "schedule.lr_warmup_iters": "warmup_steps num_warmup_steps warmup_iters lr_warmup_samples",
    "schedule.lr_decay_style": "lr_scheduler_type lr_scheduler scheduler decay_style",
    "data.seq_length": "seq_length max_seq_length max_seq_len seq_len max_length context_length sequence_length",
    "schedule.lr_wsd_decay_iters": "num_decay_steps wsd_decay_steps",
    "data.stages.0.epochs": "num_train_epochs num_epochs train_samples epochs",
    "data.stages.0.train_iters": "train_iters max_steps training_steps",
    "data.stages.0.train_tokens": "train_tokens max_tokens_to_train",
    "data.stages.0.blend": "data_path train_data dataset dataset_name train_file datasets data_cache_path",
    "checkpoint.dir": "output_dir save load checkpoint_dir save_dir out_dir logging_dir",
    "checkpoint.save_interval": "save_steps save_freq",
    "checkpoint.save_total_limit": "keep_last",
    "evaluation.eval_interval": "eval_steps eval_freq",
    "evaluation.held_out_documents": "split eval_iters val_split",
    "init_from": "model_name_or_path pretrained_model_name_or_path pretrained_checkpoint load_from",
    "tokenizer": "tokenizer_model tokenizer_name tokenizer_path tokenizer_type",
    "wandb.project": "report_to wandb_project",
    "objective.group_size": "num_generations n_samples_per_prompt rollout_n",
    "objective.max_tokens": "max_completion_length max_new_tokens response_length",
    "objective.kl_beta": "beta kl_coef kl_loss_coef",
    "objective.policy.kind": "loss_type adv_estimator importance_sampling_level",
    "objective.dynamic_sampling": "filter_groups",
    "objective.mask_truncated_completions": "mask_truncated_completions overlong_filter",
    "objective.policy.clip_low": "cliprange clip_ratio epsilon_low",
}  # fmt: skip
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}


def foreign_place(key: str, fields: Iterable[str], places: Iterable[str]) -> str | None:
    """Where a recipe sets what other tools, or another section, call `key`; None where nothing is known.

    `fields`: names of Megatron's that the section megatron takes; `places`: the recipe's own keys, with dots.
    """
    name = key.lower().replace("-", "_")
    if name in _PLACE_OF:
        return _PLACE_OF[name]
    if name in fields:
        return f"megatron.{name}"
    ends = [place for place in places if place.rpartition(".")[2] == name]
    return ends[0] if len(ends) == 1 else None
