"""The paper's claim in miniature: warm starts, and the study that docs/claim.md reports."""
