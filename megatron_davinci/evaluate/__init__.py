"""How well a model predicts the next token, directly and after reasoning."""
