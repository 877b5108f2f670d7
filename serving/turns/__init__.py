"""A model's turn: thoughts, words and tool calls, told apart in the text that it writes, one file per family of models."""
