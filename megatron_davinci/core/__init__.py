"""What touches Megatron-Core: groups, models, attention, losses, optimizer, one step."""
