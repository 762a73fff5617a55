"""The network: EfficientNet, BiFPN and heads, from one scaling table."""
