"""Speed of rlmix beside the floor, its peers and the literal forms of the papers: `python -m benchmarks`."""
