"""The live path: policy, order gate and journal around the feature engine; and the replay that drives it."""
