"""The processes around the data plane: one supervisor, its workers, and what they tell each other."""
