"""What a model has learnt: next tokens, held-out loss, work of agents."""
