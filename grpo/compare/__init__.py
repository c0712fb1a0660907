"""Variants side by side on one recorded step: `python -m grpo.compare BATCH` (__main__.py).

    batch.py      a recorded step, and the policy that it met
    variants.py   what each variant makes of it: weights, clipped tokens, gradient
    table.py      in words and numbers
"""
