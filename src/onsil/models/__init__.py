"""Shape to model: one transformer, its families on disk, and the n-gram floor below it."""
