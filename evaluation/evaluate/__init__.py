"""The evaluation whose numbers are reported: options, plan, and run. Steps, studies, ablations and the command line import it."""
