"""What docs/evidence.md rests on: a config for each set of questions, and the programs that train and measure on them.

Chosen before any training, by adapter.lint at the configs' temperature (benchmarks/results/evidence_before.json): sets of
which the base is right in 5 % to 70 % of samples, those with the most mixed groups first. They are aiw, needle_haystack,
chain_sum, family_relationships, basic_arithmetic and gcd; leg_counting was the seventh, and left out.
"""
