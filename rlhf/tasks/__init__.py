"""How predictions are judged: pure functions of what is true and what was predicted, and their pictures."""
