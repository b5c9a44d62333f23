"""Compress Hugging Face models for text and vision; every number measured."""
