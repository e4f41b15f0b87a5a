"""Records that say the same as an earlier one, left out: exact copies, and near ones by MinHash and exact Jaccard."""
