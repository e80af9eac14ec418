"""Measuring: metrics over features, an independent judge, suites that make pictures and score them."""
