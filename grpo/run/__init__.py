"""What is the same around any algorithm: settings, task, directory, records, files, signals, memory.

It knows the nouns of grpo.types and grpo.config, and no equation.
"""
