"""Evolve what you train: multi-objective architecture search over a supernet (EvoNAS, arXiv 2603.19563)."""
