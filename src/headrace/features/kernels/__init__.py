"""The compiled loops behind the feature operators: they read Arrow's buffers and write a batch's final arrays."""
