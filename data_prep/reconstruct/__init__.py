"""A change as replayable edits: the algebra that samples are written with, and proven by."""
