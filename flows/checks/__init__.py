"""What is looked at before any work: by `elder doctor`, and before every run."""
