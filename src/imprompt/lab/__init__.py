"""The embedded model: made (`making`). Nothing of imprompt imports this but the command line."""
