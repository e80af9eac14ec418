"""The engine: generations that run in turns on shared models, and whose U-Net calls are put together."""
