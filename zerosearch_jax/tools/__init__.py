"""What launch/ calls beside training: collection of searches, audit of a simulator."""
