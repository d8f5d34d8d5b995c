"""Probes: which relation an op breaks (`ops`), and which op changed an answer (`trace`).

`asserts` offers the relations as one assertion for a kernel's own tests.
"""
