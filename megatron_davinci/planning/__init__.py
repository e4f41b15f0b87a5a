"""What a model costs: arithmetic on sizes. Torch-free."""
