"""What docs/evidence.md rests on: a config for each set of questions, and the programs that train and measure on them."""
