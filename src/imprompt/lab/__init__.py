"""The lab: how the embedded model is made, measured and exhibited. Only `cli` imports it.

Nothing of imprompt imports this but the command line.
"""
