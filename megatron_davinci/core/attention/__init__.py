"""core_attention modules for Megatron's transformer layer."""
