"""KV memory: pools of blocks, the prefix index, and the canonical form in which blocks travel."""
