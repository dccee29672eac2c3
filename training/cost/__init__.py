"""Price an experiment before it runs: parameters, operations, memory, hours and money on a named accelerator."""
