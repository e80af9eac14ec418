"""Training: `imprompt train`, which makes adapters for any base; its loop trains the embedded model too.

presets, settings, config    the configuration of a run: one TOML file, typed, without unknown keys
synonyms                     the settings of other trainers and their names here
samples, targets             raw data → samples, in parts → images of the size that the base learns
frozen_base, cache           the outputs of all frozen models, computed once and kept in shards
survey, estimates            --check: the data, and memory and time, before any work
batch_order, batches         which samples a step reads, with their noise
noising, objectives          what the base is to predict; the loss of what is trained
mechanisms                   how an image prompt reaches the base
optimizer_step, checkpoints  one step; what a run keeps
loop                         a run from its start, or from its last checkpoint
similarity, watching         evaluation during the run: log, terminal, page, model card
adapters                     `imprompt train`, made of all these
"""
