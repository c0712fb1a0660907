"""What keeps a run safe: its settings, directory, records, files, signals, memory, alarms.

It knows the nouns of grpo.types, and no equation, policy or engine; dry_step.py asks grpo's updater for one pass.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: an error is one line, without a warning
