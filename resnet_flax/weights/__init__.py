"""Weights of the family, published, from the hub or from files of any naming: identifying, converting, loading."""
