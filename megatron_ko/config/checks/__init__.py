"""Checks across sections, one file per topic. They read and report; they never change a value."""
