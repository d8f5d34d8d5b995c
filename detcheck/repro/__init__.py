"""Scripts that show a difference without detcheck, to attach to an issue of another project."""
