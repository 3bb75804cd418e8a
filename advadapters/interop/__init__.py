"""Weights of other frameworks: names and layouts, no code of theirs. One file each."""
