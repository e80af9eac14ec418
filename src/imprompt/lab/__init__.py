"""The embedded model: made (`making`), measured (`suite`), exhibited (`figures`).

Nothing of imprompt imports this but the command line.
"""
