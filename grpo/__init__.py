"""GRPO by hand in plain PyTorch. Start at grpo/trainer.py; each other file is one equation or one stage of it.

run/, guards/, speed/ and ranks/ are rooms beside the algorithm; report/ and compare/ read what a run has left behind.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: an error is one line, without a warning
