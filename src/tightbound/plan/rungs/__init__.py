"""The rungs of the ladder, one file each: what it tries, and when."""
