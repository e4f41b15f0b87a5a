"""What runs inside vLLM's own processes and environment: no other module of this project is at hand there but those
that import the standard library, torch and xxhash alone."""
