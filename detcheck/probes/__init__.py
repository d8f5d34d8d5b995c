"""Probes: which relation an op breaks (`ops`), which op broke an answer (`trace`), and both as
one assertion for a kernel's own tests (`asserts`)."""
