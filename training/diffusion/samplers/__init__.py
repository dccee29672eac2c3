"""Samplers of the reverse process, one file each, behind one interface: a step, and the loop that repeats it."""
