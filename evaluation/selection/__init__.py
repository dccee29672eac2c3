"""The choice of the reported checkpoint, and the checkpoint that a name refers to. Steps, studies and the command line import it."""
