"""GRPO by hand in plain PyTorch. Start at grpo/trainer.py; each other file is one equation or one stage of it."""
