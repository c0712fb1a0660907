"""What keeps a run safe: its settings, directory, records, files, signals, memory, alarms.

It knows the nouns of grpo.types and no equation. checkpoint.py saves what grpo's policy and updater hold; dry_step.py and
selftest.py ask them for a pass.
"""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: an error is one line, without a warning
