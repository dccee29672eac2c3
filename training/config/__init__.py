"""The experiment: one frozen, typed, validated object; its presets, overrides, files and run keys.

Imports nothing of ours and no torch. Everything else may import it.
"""
