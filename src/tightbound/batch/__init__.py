"""Many fits at once: `tb.fit_batch` and what it returns."""
