"""What keeps a run safe, whatever it trains: its settings, directory, records, checkpoints, signals and memory.

Nothing here knows GRPO; of grpo it imports grpo.types alone.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: an error is one line, without a warning
