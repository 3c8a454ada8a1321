"""A HuBERT with random weights, as fairseq's own training saves it."""

from scripts import load

write_random_hubert = load("tools/bench_labels.py").write_random_hubert
