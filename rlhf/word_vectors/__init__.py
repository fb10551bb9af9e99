"""Word vectors: training through gensim, their files, questions that measure them, and a model's first embeddings."""
