"""The experiment: one frozen, typed, validated object, its sections, its presets, and overrides of its fields.

Imports nothing of ours and no torch. Everything else may import it.
"""
