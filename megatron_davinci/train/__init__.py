"""The training loop around Megatron's schedules."""
