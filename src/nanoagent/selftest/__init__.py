"""The worker attacks itself: canaries in every runtime, by the way jobs go."""
