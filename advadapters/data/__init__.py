"""Images in: sources (random access), the step-addressed pipeline, augmentation."""
