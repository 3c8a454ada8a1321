"""One page about a run, and one about a corpus."""
