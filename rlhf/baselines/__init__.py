"""The models before the Transformer, as transformers models: the first rungs of the ladder (`table.BASELINES`)."""
