"""Detection as pure tensor functions: boxes, anchors, targets, losses, post-processing."""
