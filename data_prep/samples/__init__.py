"""Changes rebuilt as training documents, each proven by replay."""
