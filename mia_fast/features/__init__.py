"""Features: the catalogue, the plan made from it, and the engine that runs it."""
