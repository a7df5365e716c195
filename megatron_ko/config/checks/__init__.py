"""Checks across sections, one file a topic. They read and report; they never change a value."""
