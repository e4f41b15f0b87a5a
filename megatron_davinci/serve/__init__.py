"""vLLM servers: their environment, their processes, what they are asked, and how weights reach them."""
