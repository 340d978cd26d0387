"""Measuring a method: statistics today; runs, reports and scale as they come."""
