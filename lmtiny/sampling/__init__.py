"""Weights -> text."""
