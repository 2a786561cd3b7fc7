"""Where a model comes from: bill of materials, signature, lineage, energy."""
