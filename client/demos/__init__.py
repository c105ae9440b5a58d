"""The two demos: what they run, measure and print."""
