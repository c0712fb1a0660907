"""What docs/evidence.md will rest on: a config for each set of questions, and the programs that train and measure on them.

Chosen before any training, by adapter.lint at the configs' temperature (benchmarks/results/evidence_before.json): sets of
which the base is right in 5 % to 70 % of samples, those with the most mixed groups first. They are aiw, needle_haystack,
chain_sum, family_relationships and basic_arithmetic; the sixth is gcd or leg_counting, whichever lint puts first.
"""
