"""Weights of the family: published ones, files of any naming, the hub; what they are and how they are loaded."""
