"""Policy-gradient learning on a `Batch`: advantages, losses, the jitted update."""
