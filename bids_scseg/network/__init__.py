"""The network: one encoder per sequence, fusion at the bottleneck, one decoder."""
