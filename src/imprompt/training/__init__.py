"""Training: `imprompt train`, which makes adapters for any base; its loop trains the embedded model too.

presets, settings, config   what a run is told: one TOML file, typed and closed
synonyms                    what other trainers call a setting
samples, targets            raw data → samples, in parts → pictures of the size that the base learns
frozen, cache               everything that does not learn, computed once and kept in shards
survey, estimates           --check: the data, and memory and time, before any work
order, batches, noising     which samples a step sees; their noise; what the base is to predict
objectives                  the loss of what learns
descent, checkpoints, loop  one step; what is kept of a run; a run from its start, or its last checkpoint
likeness, watching          what is looked at meanwhile: log, terminal, page, model card
adapters                    `imprompt train`, of all these
"""
