"""Cleaning: a declared pipeline of small stages that say what they kept, changed and dropped, and why."""
