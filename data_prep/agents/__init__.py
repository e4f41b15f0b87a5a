"""Agents at work in environments: a loop over tools, any server's model, records of all of it."""
