"""Where a model comes from, and who says so: keys and signatures, bill of materials, lineage, energy."""
