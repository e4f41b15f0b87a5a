"""The record of one change of a repository: the contract between sources and samples."""
