"""What a layout will take, before there is a GPU: bytes, seconds, and the layouts that are best. Torch-free."""
