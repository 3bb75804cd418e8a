"""Evaluation: accuracies of mixtures, and the tables and pictures made of them."""
